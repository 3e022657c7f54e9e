"""Sends one key's transactions: simulates, journals, signs, broadcasts, follows to the end.

A transaction has three outcomes: mined with success; refused, in the simulation (then nothing was
broadcast) or in a block (final, F-76); or pending. A missing receipt is never a failure (F-75): the
process sends the same bytes again, which no node can turn into a second transaction. When the base
fee passes a bid, the process raises the bid on the same nonce, within the budget.

With a durable journal, this is on disk before that:

    intent           before signing; a refused or too expensive transaction leaves no row
    bytes and nonce  before they are broadcast; a higher bid likewise
    broadcast        before the next one is sent
    mined, reverted  before waiting callers get the result
"""

import asyncio
import logging
import time
from typing import Final

from channel.errors import (
    ChainUnavailableError,
    LedgerUnavailableError,
    MppSessionError,
    OperatorError,
)
from channel.types import Address, TxHash
from settlement.alarms import Alarms
from settlement.errors import (
    LeaseLostError,
    NonceTakenError,
    RpcRefusedError,
    TransactionPendingError,
    TransactionReplacedError,
    contract_reverted,
)
from settlement.log_once import LogOnce
from settlement.node.rpc import Rpc
from settlement.tx.cache import TxCache
from settlement.tx.fees import Fee, FeePolicy
from settlement.tx.journal.interface import Journal
from settlement.tx.journal.memory import MemoryJournal
from settlement.tx.monitor import TxLimits, TxMonitor
from settlement.tx.nonces import UsedNonces
from settlement.tx.pricing import Quote, TxPricer
from settlement.tx.reasons import reason_of, refusal
from settlement.tx.signer import Signer
from settlement.tx.state import (
    Abandoned,
    Intent,
    JournalTx,
    NodeAnswer,
    Overtaken,
    Purpose,
    Sent,
    Signed,
    TxStatus,
)
from settlement.types import Receipt, RevertReason

__all__ = ["TxLimits", "TxManager"]

_log: Final = logging.getLogger(__name__)

_SIGNING_TRIES: Final = 3


class TxManager:
    """Sends transactions from one key on one chain. Only one manager may use a key (F-74, F-110).

    A durable journal enforces that with its lease; a journal in memory relies on its owner.
    """

    def __init__(
        self,
        rpc: Rpc,
        signer: Signer,
        *,
        journal: Journal | None = None,
        fees: FeePolicy | None = None,
        limits: TxLimits | None = None,
    ) -> None:
        self.rpc = rpc
        self.signer = signer
        self._journal: Journal = journal or MemoryJournal()
        self._limits = limits or TxLimits()
        self._pricer = TxPricer(
            rpc,
            signer,
            fees=fees or FeePolicy(),
            gas_margin_percent=self._limits.gas_margin_percent,
        )
        self._cache = TxCache(self._journal)
        self._used = UsedNonces(rpc, signer.address)
        self._monitor = TxMonitor(
            rpc, self._journal, self._cache, self._pricer, self._limits, used=self._used
        )
        self._signing = asyncio.Lock()

    @property
    def address(self) -> Address:
        """The account that sends."""
        return self._pricer.address

    @property
    def alarms(self) -> Alarms:
        """Alarms about transactions of this key that are held up."""
        return self._monitor.alarms

    @property
    def wait_s(self) -> float:
        """Seconds that a caller waits for a transaction."""
        return self._limits.mined_within_s

    # Sending.

    async def send(
        self,
        to: Address | None,
        calldata: bytes,
        *,
        value_wei: int = 0,
        purpose: Purpose = Purpose.OTHER,
        budget_wei: int | None = None,
        deadline: int = 0,
    ) -> Receipt:
        """Simulate, broadcast, and return the receipt of a success. `to` None creates a contract.

        `budget_wei` is the most it may cost. `deadline` is the chain time by which it must be
        mined; see `fees.fee_ceiling`.

        Raises:
            ContractRevertedError: The contract refused; `tx_hash` is set if it refused in a block.
            TransactionPendingError: Broadcast but not mined within the bound; see `resume`.
            TransactionReplacedError: Another transaction, not from this journal, used the nonce.
            FeeAboveBudgetError: It would cost more than its budget now; nothing was broadcast.
            ChainUnavailableError: Nothing was broadcast.
        """
        return await self.resume(
            await self.broadcast(
                to,
                calldata,
                value_wei=value_wei,
                purpose=purpose,
                budget_wei=budget_wei,
                deadline=deadline,
            )
        )

    async def broadcast(
        self,
        to: Address | None,
        calldata: bytes,
        *,
        value_wei: int = 0,
        purpose: Purpose = Purpose.OTHER,
        budget_wei: int | None = None,
        deadline: int = 0,
    ) -> TxHash:
        """Simulate, price, journal, sign and broadcast; return once the bytes are sent.

        Raises:
            ContractRevertedError: The contract refused the simulation; nothing was broadcast.
            FeeAboveBudgetError: It would cost more than its budget now; nothing was broadcast.
            ChainUnavailableError: Nothing was broadcast.
        """
        intent = Intent(
            to=to,
            calldata=calldata,
            value_wei=value_wei,
            purpose=purpose,
            budget_wei=budget_wei,
            deadline=deadline,
        )
        async with self._signing:
            for _ in range(_SIGNING_TRIES):
                quote = await self._pricer.quote(intent)
                fee = self._pricer.first_fee(intent, quote)
                tx = await self._journal.add(intent, at=int(time.time()))
                try:
                    tx = await self._sign_first(tx, quote, fee)
                except LeaseLostError:
                    raise
                except MppSessionError as error:
                    await self._journal.record(tx.tx_id, [Abandoned(reason_of(error))])
                    raise
                self._cache.keep(tx)
                try:
                    tx = await self._put_first(tx, quote)
                except LedgerUnavailableError as error:
                    # The journal has the bytes, and a node may have them: the caller must not ask
                    # for the same
                    # transaction again. The monitor continues with this one.
                    _log.warning("the outcome of a broadcast was not recorded: %s", error)
                    return tx.versions[0].tx_hash
                if tx.status is not TxStatus.REPLACED:
                    return tx.versions[0].tx_hash
        raise TransactionReplacedError(tx.nonce or 0)

    async def resume(self, tx_hash: TxHash) -> Receipt:
        """Wait for a transaction that was broadcast; may be called again after a timeout.

        The hash of any version works: the receipt is that of the version that was mined.

        Raises:
            ContractRevertedError: It was mined and reverted.
            TransactionReplacedError: Another transaction, not from this journal, used its nonce.
            TransactionPendingError: Not mined within the bound.
        """
        started = time.monotonic()
        pause_s = self._limits.poll_min_s
        tx_id = await self._cache.id_of(tx_hash)
        while True:
            if tx_id is None:
                receipt = await self._receipt_or_none(tx_hash)
                if receipt is not None and not receipt.is_success:
                    raise contract_reverted(RevertReason.UNKNOWN, tx_hash=tx_hash)
            else:
                await self._monitor.look()
                receipt = await self._outcome(await self._cache.known(tx_id, tx_hash))
            if receipt is not None:
                return receipt
            if time.monotonic() - started >= self._limits.mined_within_s:
                raise TransactionPendingError(tx_hash)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._limits.poll_max_s)

    async def escalate(self, tx_hash: TxHash, *, budget_wei: int | None, deadline: int) -> None:
        """Give an open transaction a higher budget or an earlier deadline from now on.

        The change is not stored: after a restart the caller escalates again.
        """
        tx_id = await self._cache.id_of(tx_hash)
        if tx_id is not None:
            self._cache.escalate(tx_id, budget_wei=budget_wei, deadline=deadline)

    async def recover(self) -> list[JournalTx]:
        """Resume the journal's transactions after a start; return those still open.

        An intent that was never signed is abandoned: no node can have it, and its caller decides
        again from the ledger (F-80). Every other one continues with the same bytes (F-75).
        """
        for tx in await self._journal.open_transactions():
            if tx.status is TxStatus.INTENT:
                await self._cache.record(tx, Abandoned("never signed"))
            else:
                self._cache.keep(tx)
        return self._cache.open()

    async def run(self) -> None:
        """Follow every open transaction to its end, even if no caller waits for it.

        Raises:
            LeaseLostError: Another settler has the key.
            InvariantError: A bug.
        """
        log_once = LogOnce(_log, "check of open transactions failed, will retry: %s")
        while True:
            try:
                await self._monitor.look()
                log_once.over()
            except LeaseLostError:
                raise
            except OperatorError as error:
                log_once.make(error)
            await asyncio.sleep(self._limits.poll_max_s)

    # The first signature.

    async def _sign_first(self, tx: JournalTx, quote: Quote, fee: Fee) -> JournalTx:
        """Choose the nonce, sign, and store the bytes with it."""
        for _ in range(_SIGNING_TRIES):
            given = await self._journal.next_nonce()
            nonce = max(given, await self._nonces_used(quote, given))
            version = await self._pricer.sign(tx.intent, nonce, quote.gas, fee)
            try:
                return await self._journal.record(tx.tx_id, [Signed(nonce, quote.gas, version)])
            except NonceTakenError:
                continue
        raise NonceTakenError("Another process assigns nonces of this key: stop all but one.")

    async def _nonces_used(self, quote: Quote, given: int) -> int:
        """Return the chain's transaction count; includes `pending` only without a durable journal.

        A count above what the journal assigned means that another process uses the key, or that a
        node is wrong. Every node is then asked, and with a durable journal for some time.
        """
        is_durable, used = self._journal.is_durable, quote.nonces_mined
        if not is_durable:
            used = max(used, quote.nonces_pending)
        if used <= given or (self.rpc.node_count == 1 and not is_durable):
            return used
        return await self._used.beyond(
            given,
            used,
            within_s=self._limits.jump_checked_s if is_durable else 0.0,
            with_pending=not is_durable,
        )

    async def _put_first(self, tx: JournalTx, quote: Quote) -> JournalTx:
        """Broadcast new bytes. Only a plain refusal of this first broadcast frees the nonce again.

        Every node must have refused: bytes that one node has may be mined one day, and bytes that
        no node ever takes would hold up every later nonce.
        """
        for _ in range(_SIGNING_TRIES):
            try:
                answer = await self._monitor.put(tx)
            except RpcRefusedError as error:
                after = await self._cache.record(tx, Abandoned(error.message))
                if after.status is TxStatus.ABANDONED:
                    raise
                return after
            except ChainUnavailableError:
                return tx  # it may have arrived: pending, and `resume` sends the same bytes again
            if answer is NodeAnswer.NONCE_USED:
                is_theirs = await self._is_overtaken(tx)
                return await self._cache.record(tx, Overtaken()) if is_theirs else tx
            if answer is NodeAnswer.KNOWN:
                return await self._cache.record(tx, Sent())
            (ceiling_wei,) = self._pricer.ceilings([tx], quote.head)
            raised = await self._monitor.raise_bid(tx, quote.head, quote.tip_wei, ceiling_wei)
            if raised is None:
                break
            tx = raised
        return tx

    async def _is_overtaken(self, tx: JournalTx) -> bool:
        """Whether the nonce of bytes just refused was certainly used by another transaction.

        Never if another node may have had the bytes mined before this one refused (F-82), and not
        by this node's answer alone. A doubtful one is followed like any other transaction.
        """
        if self.rpc.node_count > 1:
            return False
        try:
            used = await self.rpc.nonces_used(self.address)
            receipt = await self.rpc.receipt(tx.newest.tx_hash)
        except ChainUnavailableError:
            return False
        return receipt is None and (tx.nonce or 0) < used

    # Outcomes.

    async def _outcome(self, tx: JournalTx) -> Receipt | None:
        """Return the receipt of a success, None while there is none; raise any other outcome."""
        if tx.status in (TxStatus.REPLACED, TxStatus.ABANDONED):
            raise TransactionReplacedError(tx.nonce or 0)
        if tx.inclusion is None:
            return None
        if not tx.inclusion.is_success:
            raise refusal(tx.reason, tx.inclusion)
        mined = tx.inclusion.tx_hash
        return self._cache.receipts.get(mined) or await self._receipt_or_none(mined)

    async def _receipt_or_none(self, tx_hash: TxHash) -> Receipt | None:
        try:
            return await self.rpc.receipt(tx_hash)
        except ChainUnavailableError:
            return None  # an unreachable node says nothing about the transaction
