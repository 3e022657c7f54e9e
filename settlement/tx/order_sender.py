"""The settler's side of orders: broadcasts what workers ordered and follows it to its end.

An order is broadcast once. Its transaction is in the journal before it is sent, so a process that
continues after a crash finds it there by its calldata; without a row, the simulation refuses a call
whose effect is there already. The sender checks a refusal before it records it: the same effect by
another sender's transaction, exactly as signed, counts as made (AMB-10).
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeVar

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
from settlement.log_once import LogOnce
from settlement.tx.journal.interface import Journal
from settlement.tx.manager import TxManager
from settlement.tx.orders import (
    FEE_TOO_HIGH,
    GWEI,
    NONCE_TAKEN,
    NOT_SENT,
    Order,
    OrderBook,
    OrderStatus,
    to_gwei,
)
from settlement.tx.reasons import reason_of
from settlement.tx.state import TxStatus
from settlement.types import Receipt, RevertReason

__all__ = ["WANTED_LOOK_S", "OrderSender"]

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
"""Seconds before its expiry in which an order is not broadcast: it would revert, at a cost."""


_NEVER_MINED: Final = frozenset((TxStatus.INTENT, TxStatus.REPLACED, TxStatus.ABANDONED))

OneOrder = TypeVar("OneOrder", bound=Order)


class OrderSender(ABC, Generic[OneOrder]):
    """Broadcasts the open orders of one contract, from one key."""

    def __init__(
        self,
        orders: OrderBook[OneOrder],
        sender: TxManager,
        journal: Journal,
        *,
        to: Address,
        what: str,
        look_s: float = WANTED_LOOK_S,
        earliest: Callable[[], int] | None = None,
    ) -> None:
        """Look for orders every `look_s` seconds; `journal` is the sender's.

        `to` is the contract that is called, and `what` names an order in the log.

        `earliest` gives the time in Unix seconds by which old orders are dropped or given up: the
        least of the clocks. Default: this machine's clock.
        """
        self._orders = orders
        self._sender = sender
        self._journal = journal
        self._to = to
        self._what = what
        self._look_s = look_s
        self._earliest = earliest or (lambda: int(time.time()))
        self._carrying = Tasks()
        self._busy: Counter[bytes] = Counter()
        self._sent: dict[bytes, TxHash] = {}

    @abstractmethod
    async def _find_made(self, order: OneOrder) -> TxHash | None:
        """Return the transaction that had exactly the order's effect, by any sender, or None.

        Raises:
            ChainUnavailableError: No node answers.
        """

    async def _why_not(self, order: OneOrder) -> str | None:  # noqa: ARG002 -- for subclasses
        """Return why an order must not be broadcast any more, or None."""
        return None

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
        log_once = LogOnce(_log, f"looking for orders ({self._what}) failed, will retry: %s")
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
            if tx.intent.to != self._to or tx.status in _NEVER_MINED:
                continue
            if tx.versions:
                self._sent[tx.intent.calldata] = tx.versions[0].tx_hash

    async def _look(self) -> None:
        """Start the open orders, one at a time for each payer.

        What a payer signed for two orders may suffice for one: a nonce, a balance. Only a
        simulation after the first is mined shows it; earlier, the second could cost gas for a
        revert.
        """
        orders = await self._orders.list_open()
        # Sent ones block their payers.
        for order in sorted(orders, key=lambda order: not self._is_sent(order)):
            if self._carrying.find(order.order_id) is not None:
                continue
            if order.funder in self._busy and not self._is_sent(order):
                continue
            self._busy[order.funder] += 1
            task = self._carrying.share(order.order_id, partial(self._carry, order))
            task.add_done_callback(partial(self._free, order.funder))

    def _is_sent(self, order: OneOrder) -> bool:
        return order.tx_hash is not None or order.calldata in self._sent

    def _free(self, funder: bytes, _: object) -> None:
        self._busy[funder] -= 1
        if not self._busy[funder]:
            del self._busy[funder]

    async def _carry(self, order: OneOrder) -> None:
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
                _log.warning("%s failed, will retry: %s", self._what, error)
                # The journal may hold the transaction although its answer was lost.
                is_doubtful = isinstance(error, LedgerUnavailableError)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S_MAX)
            else:
                return

    async def _submit(self, order: OneOrder) -> None:
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
            _log.info("%s 0x%s: %d gwei", self._what, order.order_id.hex(), gas_gwei)
            await self._orders.update(
                order.order_id, OrderStatus.MADE, tx_hash=receipt.tx_hash, gas_gwei=gas_gwei
            )
        self._sent.pop(order.calldata, None)

    async def _broadcast(self, order: OneOrder) -> TxHash | None:
        """Send it, or record why not. Raises the simulation's refusal.

        Raises:
            ContractRevertedError: Nothing was broadcast.
        """
        if order.wanted_at + DEPOSIT_WANTED_S_MAX < self._earliest():
            await self._give_up(order, NOT_SENT)
            return None
        head = await self._sender.rpc.block()
        if order.deadline < head.timestamp + _MARGIN_S:
            await self._give_up(order, RevertReason.AUTHORIZATION_EXPIRED.name)
            return None
        why = await self._why_not(order)
        if why is not None:
            await self._give_up(order, why)
            return None
        try:
            return await self._sender.broadcast(
                self._to,
                order.calldata,
                budget_wei=order.gas_gwei * GWEI,
                deadline=min(order.deadline, head.timestamp + _URGENT_S),
            )
        except (ContractRevertedError, LeaseLostError, ChainUnavailableError):
            raise
        except (FeeAboveBudgetError, ConfigError):
            await self._give_up(order, FEE_TOO_HIGH)
        return None

    async def _give_up(self, order: OneOrder, reason: str) -> None:
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
                _log.warning("%s: 0x%s is not mined yet", self._what, tx_hash.hex())

    async def _refuse(self, order: OneOrder, error: ContractRevertedError) -> None:
        """Record a refusal, unless another sender's transaction had the same effect."""
        spent = None if error.tx_hash is None else await self._sender.rpc.receipt(error.tx_hash)
        gas_gwei = 0 if spent is None else to_gwei(spent.cost_wei)
        tx_hash = await self._find_made(order)
        if tx_hash is not None:
            status = OrderStatus.MADE
        else:
            tx_hash = error.tx_hash
            status = OrderStatus.REFUSED if tx_hash is None else OrderStatus.REVERTED
        _log.info("%s 0x%s: %s: %s", self._what, order.order_id.hex(), status.name, error)
        await self._orders.update(
            order.order_id, status, tx_hash=tx_hash, reason=reason_of(error), gas_gwei=gas_gwei
        )
