"""One key's transactions: simulated, journalled, signed, broadcast, and seen through.

Three outcomes and no fourth: mined with success; refused, in the simulation (nothing was
broadcast) or in a block (final, F-76); or pending. A missing receipt is never a failure (F-75):
the same bytes are sent again, which no node can turn into a second transaction, and a bid that
the base fee has overtaken is raised on the same nonce, within the transaction's budget.

What is on disk before what, with a durable journal:

    intent           before anything is signed; what is refused or too dear leaves no row
    bytes and nonce  before they are broadcast; a higher bid likewise
    broadcast        before the next one is sent
    mined, reverted  before whoever waits is told
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
    """Sends transactions from one key on one chain. At most one per key at a time (F-74, F-110).

    The journal says which: one on disk has a lease, one in memory has nobody else's word.
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
        """Whose transactions these are."""
        return self._pricer.address

    @property
    def alarms(self) -> Alarms:
        """What rings when this key's transactions are held up."""
        return self._monitor.alarms

    @property
    def wait_s(self) -> float:
        """How long a transaction is waited for."""
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

        `budget_wei` is the most it may cost, `deadline` the chain's time by which it must be
        mined: see `fees.fee_ceiling`.

        Raises:
            ContractRevertedError: The contract refused; with `tx_hash` set, in a block.
            TransactionPendingError: Broadcast and not mined within the bound; see `resume`.
            TransactionReplacedError: The key's nonce went to a transaction from elsewhere.
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
        """Simulate, price, journal, sign and broadcast; return as soon as it is on its way.

        Raises:
            ContractRevertedError: The simulation was refused; nothing was broadcast.
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
                    # Its bytes are in the journal, and perhaps out: whoever asked must not ask for
                    # the same thing again. The lane goes on with it.
                    _log.warning("what became of a transaction was not noted: %s", error)
                    return tx.versions[0].tx_hash
                if tx.status is not TxStatus.REPLACED:
                    return tx.versions[0].tx_hash
        raise TransactionReplacedError(tx.nonce or 0)

    async def resume(self, tx_hash: TxHash) -> Receipt:
        """Wait for a transaction that was broadcast; may be called again after it gave up.

        Any version's hash serves: the receipt is that of the version that was mined.

        Raises:
            ContractRevertedError: It was mined and reverted.
            TransactionReplacedError: Its nonce went to a transaction that is not ours.
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
        """Let a transaction that is under way cost more, or be due sooner, from now on.

        Not written down: whoever presses does so again after a start.
        """
        tx_id = await self._cache.id_of(tx_hash)
        if tx_id is not None:
            self._cache.escalate(tx_id, budget_wei=budget_wei, deadline=deadline)

    async def recover(self) -> list[JournalTx]:
        """Take over what the journal holds, after a start; return what is not ended.

        What was wanted and never signed is given up: nobody can have it, and whoever wanted it
        decides anew from the books (F-80). All else goes on with the same bytes (F-75).
        """
        for tx in await self._journal.open_transactions():
            if tx.status is TxStatus.INTENT:
                await self._cache.record(tx, Abandoned("never signed"))
            else:
                self._cache.keep(tx)
        return self._cache.monitor()

    async def run(self) -> None:
        """See every open transaction through, whoever waits for it or not.

        Raises:
            LeaseLostError: Another settler has the key.
            InvariantError: A bug.
        """
        log_once = LogOnce(_log, "transactions were not looked at; tried again: %s")
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
        raise NonceTakenError("Somebody else gives nonces of this key.")

    async def _nonces_used(self, quote: Quote, given: int) -> int:
        """Return what the chain has used: `pending` only where no journal knows better.

        More than the journal has given was used elsewhere, or is a node's mistake: then every
        node is asked, and by a journal that is kept, for a while.
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
        """Broadcast new bytes. Only a plain no on this first way out frees the nonce again.

        Of several nodes each must have said it: bytes that one has may be mined one day, and bytes
        that none will ever take would hold up every later nonce.
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
        """Whether the nonce of bytes just refused went to somebody else for sure.

        Never where another node may have had them mined before this one refused (F-82), and not
        on this one's word alone. What is left in doubt is seen through like any other.
        """
        if self.rpc.node_count > 1:
            return False
        try:
            used = await self.rpc.nonces_used(self.address)
            receipt = await self.rpc.receipt(tx.newest.tx_hash)
        except ChainUnavailableError:
            return False
        return receipt is None and (tx.nonce or 0) < used

    # What came of it.

    async def _outcome(self, tx: JournalTx) -> Receipt | None:
        """Return the receipt of a success, None while there is none, or raise what it became."""
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
            return None  # the node is away; the transaction is not
