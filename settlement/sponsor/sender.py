"""The settler's side of sponsored deposits: broadcasts the workers' orders and follows them.

An order is broadcast once. Its transaction is in the journal before it is sent, so a process that
continues after a crash finds it there by its calldata; without a row, the simulation refuses a
deposit that was made already. The sender checks a refusal before it records it: a deposit made by
another sender's transaction, exactly as signed, counts as made (AMB-10).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from channel.errors import (
    ChainUnavailableError,
    ConfigError,
    LedgerUnavailableError,
    OperatorError,
)
from channel.limits import DEPOSIT_WANTED_S_MAX
from channel.tasks import Tasks
from channel.types import Address, TxHash
from settlement.errors import (
    ContractRevertedError,
    FeeAboveBudgetError,
    LeaseLostError,
    TransactionPendingError,
    TransactionReplacedError,
)
from settlement.escrow.already_made import find_made
from settlement.escrow.deposit_calls import parse_deposit_call
from settlement.escrow.reader import EscrowReader
from settlement.log_once import LogOnce
from settlement.sponsor.orders.interface import (
    GWEI,
    DepositOrder,
    DepositOrders,
    OrderStatus,
    to_gwei,
)
from settlement.sponsor.worker import CLOSE_PENDING, FEE_TOO_HIGH, NONCE_TAKEN, NOT_SENT
from settlement.tx.journal.interface import Journal
from settlement.tx.manager import TxManager
from settlement.tx.reasons import reason_of
from settlement.tx.state import TxStatus
from settlement.types import Receipt, RevertReason

__all__ = ["WANTED_LOOK_S", "DepositSender"]

_log: Final = logging.getLogger(__name__)

WANTED_LOOK_S: Final = 0.05
"""Seconds between two looks for orders; a client waits for each order."""
_RETRY_S: Final = 1.0
_RETRY_S_MAX: Final = 10.0
_PRUNE_S: Final = 3600.0
_KEPT_S: Final = 30 * 24 * 3600
_URGENT_S: Final = 300
"""A client waits, so the whole budget may be bid (`settlement.tx.fees`)."""
_RECOVERED: Final = 1000
"""Journal transactions searched for those of a previous process."""
_MARGIN_S: Final = 15
"""Seconds before its expiry in which a deposit is not broadcast: it would revert, at a cost."""


_NEVER_MINED: Final = frozenset((TxStatus.INTENT, TxStatus.REPLACED, TxStatus.ABANDONED))


class DepositSender:
    """Broadcasts the open orders of one escrow, from one key."""

    def __init__(
        self,
        orders: DepositOrders,
        reader: EscrowReader,
        sender: TxManager,
        journal: Journal,
        *,
        look_s: float = WANTED_LOOK_S,
        earliest: Callable[[], int] | None = None,
    ) -> None:
        """Look for orders every `look_s` seconds; `journal` is the sender's.

        `earliest` gives the time in Unix seconds by which old orders are dropped or given up: the
        least of the clocks. Default: this machine's clock.
        """
        self._orders = orders
        self._reader = reader
        self._sender = sender
        self._journal = journal
        self._look_s = look_s
        self._earliest = earliest or (lambda: int(time.time()))
        self._carrying = Tasks()
        self._busy: Counter[Address] = Counter()
        self._sent: dict[bytes, TxHash] = {}

    async def run(self) -> None:
        """Look for orders for ever.

        Raises:
            LeaseLostError: Another settler has the key.
            InvariantError: A bug.
        """
        await self._recover()
        async with self._carrying as tasks:
            tasks.start(self._look_repeatedly())
            await tasks.until_failure()

    async def _look_repeatedly(self) -> None:
        pruned_at = 0.0
        log_once = LogOnce(_log, "looking for deposits failed, will retry: %s")
        while True:
            try:
                await self._look()
                log_once.over()
                if time.monotonic() - pruned_at > _PRUNE_S or not pruned_at:
                    pruned_at = time.monotonic()
                    await self._orders.prune(self._earliest() - _KEPT_S)
            except LedgerUnavailableError as error:
                log_once.make(error)
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(self._look_s)

    async def _recover(self) -> None:
        """Find the orders whose transactions are in the journal: they are followed, not sent again.

        Includes ended ones: the previous process may have died before it stored the order's hash.
        """
        newest = await self._journal.next_nonce()
        for tx in await self._journal.transactions_from(max(0, newest - _RECOVERED)):
            if tx.intent.to != self._reader.escrow or tx.status in _NEVER_MINED:
                continue
            if tx.versions:
                self._sent[tx.intent.calldata] = tx.versions[0].tx_hash

    async def _look(self) -> None:
        """Start the open orders, one deposit at a time for each funder.

        What a funder signed for two deposits may suffice for one: a nonce, a balance. Only a
        simulation after the first is mined shows it; earlier, the second could cost gas for a
        revert.
        """
        orders = await self._orders.list_open()
        orders.sort(key=lambda order: not self._is_sent(order))  # sent ones block their funders
        for order in orders:
            if self._carrying.find(order.order_id) is not None:
                continue
            if order.funder in self._busy and not self._is_sent(order):
                continue
            self._busy[order.funder] += 1
            task = self._carrying.share(order.order_id, partial(self._carry, order))
            task.add_done_callback(partial(self._free, order.funder))

    def _is_sent(self, order: DepositOrder) -> bool:
        return order.tx_hash is not None or order.calldata in self._sent

    def _free(self, funder: Address, _: object) -> None:
        self._busy[funder] -= 1
        if not self._busy[funder]:
            del self._busy[funder]

    async def _carry(self, order: DepositOrder) -> None:
        """Follow one order until its outcome is on disk. Each try is a row of the journal."""
        pause_s = _RETRY_S
        is_doubtful = False
        while True:
            try:
                if is_doubtful:
                    await self._recover()
                await self._submit(order)
            except LeaseLostError:
                raise
            except OperatorError as error:  # node, database or signer: may recover
                _log.warning("a deposit failed, will retry: %s", error)
                # The journal may hold the transaction although its answer was lost.
                is_doubtful = isinstance(error, LedgerUnavailableError)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S_MAX)
            else:
                return

    async def _submit(self, order: DepositOrder) -> None:
        tx_hash = order.tx_hash or self._sent.get(order.calldata)
        try:
            if tx_hash is None:
                tx_hash = await self._broadcast(order)
                if tx_hash is None:
                    return
                self._sent[order.calldata] = tx_hash
            await self._orders.update(order.order_id, OrderStatus.SENT, tx_hash=tx_hash)
            receipt = await self._receipt(tx_hash)
        except ContractRevertedError as error:
            await self._refuse(order, error)
        except TransactionReplacedError:
            await self._give_up(order, NONCE_TAKEN)
        else:
            gas_gwei = to_gwei(receipt.cost_wei)
            _log.info("deposit into 0x%s: %d gwei", order.key.channel_id.hex(), gas_gwei)
            await self._orders.update(
                order.order_id, OrderStatus.MADE, tx_hash=receipt.tx_hash, gas_gwei=gas_gwei
            )
        self._sent.pop(order.calldata, None)

    async def _broadcast(self, order: DepositOrder) -> TxHash | None:
        """Send it, or record why not. Raises the simulation's refusal.

        Raises:
            ContractRevertedError: Nothing was broadcast.
        """
        if order.wanted_at + DEPOSIT_WANTED_S_MAX < self._earliest():
            await self._give_up(order, NOT_SENT)
            return None
        head = await self._reader.rpc.block()
        if order.deadline < head.timestamp + _MARGIN_S:
            reason = RevertReason.AUTHORIZATION_EXPIRED.name
            await self._give_up(order, reason)
            return None
        fact = await self._reader.read_channel(order.key.channel_id)
        if fact is not None and fact.close_requested_at:  # requested since the order (O-34)
            await self._give_up(order, CLOSE_PENDING)
            return None
        try:
            return await self._sender.broadcast(
                self._reader.escrow,
                order.calldata,
                budget_wei=order.gas_gwei * GWEI,
                deadline=min(order.deadline, head.timestamp + _URGENT_S),
            )
        except (ContractRevertedError, LeaseLostError, ChainUnavailableError):
            raise
        except (FeeAboveBudgetError, ConfigError):
            await self._give_up(order, FEE_TOO_HIGH)
        return None

    async def _give_up(self, order: DepositOrder, reason: str) -> None:
        made = await self._find_made(order)
        if made is None:
            await self._orders.update(
                order.order_id, OrderStatus.REFUSED, reason=reason, gas_gwei=0
            )
        else:
            await self._orders.update(order.order_id, OrderStatus.MADE, tx_hash=made, gas_gwei=0)

    async def _receipt(self, tx_hash: TxHash) -> Receipt:
        """Retry until there is an answer: giving up would send the same call twice."""
        while True:
            try:
                return await self._sender.resume(tx_hash)
            except TransactionPendingError:
                _log.warning("deposit 0x%s is not mined yet", tx_hash.hex())

    async def _refuse(self, order: DepositOrder, error: ContractRevertedError) -> None:
        """Record a refusal, unless another sender has made the same deposit."""
        spent = None if error.tx_hash is None else await self._reader.rpc.receipt(error.tx_hash)
        gas_gwei = 0 if spent is None else to_gwei(spent.cost_wei)
        tx_hash = await self._find_made(order)
        if tx_hash is not None:
            status = OrderStatus.MADE
        else:
            tx_hash = error.tx_hash
            status = OrderStatus.REFUSED if tx_hash is None else OrderStatus.REVERTED
        _log.info("deposit into 0x%s: %s: %s", order.key.channel_id.hex(), status.name, error)
        await self._orders.update(
            order.order_id, status, tx_hash=tx_hash, reason=reason_of(error), gas_gwei=gas_gwei
        )

    async def _find_made(self, order: DepositOrder) -> TxHash | None:
        call = parse_deposit_call(order.calldata)
        return await find_made(self._reader, order.key.channel_id, call)
