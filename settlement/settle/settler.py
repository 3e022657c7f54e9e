"""Sends the payee's settles and closes, many channels in one transaction.

Requests that arrive while a transaction is prepared go into the next one: a lone close waits for
nothing, and a hundred together share their gas. Each entry is simulated alone before it is sent, so
that one the escrow would refuse costs the others nothing (F-79). An entry refused only in the block
is skipped by the escrow with a reason. A request for a channel whose transaction is open joins it,
also after a restart (F-40).
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from channel.errors import (
    ConfigError,
    InvariantError,
    MppSessionError,
    SettlementPendingError,
    TransactionRevertedError,
)
from channel.ledger.interface import Ledger
from channel.tasks import Tasks
from channel.types import Address, ChannelKey, TxHash
from settlement import abi
from settlement.errors import (
    ContractRevertedError,
    LeaseLostError,
    RpcRefusedError,
    TransactionPendingError,
    TransactionReplacedError,
)
from settlement.escrow.payout_calls import OwnCalls, PayoutCalls, build_simulation
from settlement.escrow.reader import EscrowReader
from settlement.settle.jobs import CloseResult, Job, JobQueue, JobResult, SettleResult
from settlement.settle.outcomes import Outcomes
from settlement.settle.quarantine import Quarantine
from settlement.tx.fees import GasBudget
from settlement.tx.gas_hour import GasHour
from settlement.tx.manager import TxManager
from settlement.tx.state import JournalTx, Purpose
from settlement.types import BatchEntry, Receipt

__all__ = ["EscrowSettler", "SettleResult", "SettlerLimits"]

_log: Final = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
_SENDING: Final = "sending"


class SettlerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one transaction, and on open transactions."""

    batch_max: int = 100
    batches_max: int = 16
    """Open transactions: nodes keep a limited number per account."""
    wait_s: float | None = None
    """Seconds a caller waits for the answer; None: as long as the sender waits."""


class EscrowSettler:
    """Settles and closes the channels of one payee in one escrow.

    It does not choose the voucher (`channel.state.ladder` does). The caller must make the ledger
    durable before it passes a voucher here (decision 5).
    """

    def __init__(
        self,
        reader: EscrowReader,
        sender: TxManager,
        *,
        calls: PayoutCalls | None = None,
        budget: GasBudget | None = None,
        quarantine: Quarantine | None = None,
        limits: SettlerLimits | None = None,
        hour: GasHour | None = None,
    ) -> None:
        """Settle and close by `sender`.

        Args:
            reader: Reads the escrow.
            sender: The account that sends and pays the gas.
            calls: Builds the calls; as the payee's own, sent by `sender`, if None.
            budget: Bound on gas per transaction; unbounded if None.
            quarantine: Holds channels that the chain refuses; not used if None.
            limits: Bounds on transactions.
            hour: Bound on gas within an hour; unbounded if None.
        """
        self._reader = reader
        self._sender = sender
        self._calls: PayoutCalls = calls or OwnCalls(sender.address)
        self._budget = budget
        self._outcomes = Outcomes(reader, quarantine)
        self._limits = limits or SettlerLimits()
        self._hour = hour
        self._queue = JobQueue(
            batch_max=self._limits.batch_max if reader.interface.has_extensions else 1
        )
        self.tasks = Tasks(report=self._note)
        """The sending, and the open transactions: a failure is a bug or the lost lease."""
        self._room = asyncio.Semaphore(self._limits.batches_max)

    @property
    def payee(self) -> Address:
        """The payee of the channels."""
        return self._calls.payee

    async def close_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,
        deadline: int = 0,
    ) -> CloseResult:
        """Close the channel at `cumulative_amount` and return once it is mined.

        Repeating it for a closed or closing channel returns that close. `value` is the amount at
        risk in base units. `deadline` is the chain time at which the payer may withdraw it. Both
        decide the order and the gas budget.

        Raises:
            ContractRevertedError: The contract refused; nothing changed on chain.
            ChannelQuarantinedError: It refuses for now; retry later.
            TransactionPendingError: Not mined within the bound; retry later (F-75).
            SettlementPendingError: Not sent within the bound; retry later.
            ChainUnavailableError: Nothing was broadcast.
        """
        entry = BatchEntry(key.channel_id, cumulative_amount, signature)
        result = await self._ask(Purpose.CLOSE, key, entry, value=value, deadline=deadline)
        if not isinstance(result, CloseResult):  # pragma: no cover - answers are made by purpose
            raise InvariantError("a close was answered like a settle")
        return result

    async def settle_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,
        deadline: int = 0,
    ) -> SettleResult:
        """Settle up to `cumulative_amount`; the channel stays open. Errors as `close_channel`."""
        entry = BatchEntry(key.channel_id, cumulative_amount, signature)
        result = await self._ask(Purpose.SETTLE, key, entry, value=value, deadline=deadline)
        if not isinstance(result, SettleResult):  # pragma: no cover - answers are made by purpose
            raise InvariantError("a settle was answered like a close")
        return result

    async def recover(self) -> None:
        """After a start, resume the journal's sent transactions and the quarantine.

        Later requests for their channels join them and send nothing.
        """
        await self._outcomes.load()
        self._adopt(await self._sender.recover())

    async def forget_ended(self, ledger: Ledger) -> None:
        """Release from quarantine the channels that the ledger shows as ended.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        await self._outcomes.forget_ended(ledger)

    def _adopt(self, transactions: Iterable[JournalTx]) -> None:
        for tx in transactions:
            if tx.intent.to != self._reader.escrow or tx.intent.purpose is Purpose.OTHER:
                continue
            jobs = []
            for entry in abi.decode_entries(tx.intent.calldata):
                job = Job(tx.intent.purpose, entry, value=0, deadline=tx.intent.deadline)
                self._queue.register(job)
                jobs.append(job)
            if jobs:
                self.tasks.start(self._see_through(jobs, tx.versions[0].tx_hash))

    async def aclose(self) -> None:
        """Stop now. Sent transactions are in the journal, and the next process resumes them."""
        await self.tasks.aclose()
        for job in self._queue.unanswered():
            job.fail(SettlementPendingError("The settler has stopped: retry later."))

    # Requests.

    async def _ask(
        self, purpose: Purpose, key: ChannelKey, entry: BatchEntry, *, value: int, deadline: int
    ) -> JobResult:
        self._require_ours(key)
        job = Job(purpose, entry, value=value, deadline=deadline)
        known = self._queue.joined(job)
        if known is None:
            self._outcomes.require_allowed(job)
            self._queue.register(job)
            self._enqueue(job)
        else:
            if known.escalate(job) and known.tx_hash is not None:
                await self._escalate(known.tx_hash)
            job = known
        wait_s = self._sender.wait_s if self._limits.wait_s is None else self._limits.wait_s
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(job.answer)
        except TimeoutError:
            if job.tx_hash is None:
                raise SettlementPendingError("The transaction is not sent yet: retry.") from None
            raise TransactionPendingError(job.tx_hash) from None

    async def _escalate(self, tx_hash: TxHash) -> None:
        """Raise the budget of an open transaction whose payer has requested a close since."""
        budget_wei, deadline = self._stake(self._queue.sent_in(tx_hash))
        await self._sender.escalate(tx_hash, budget_wei=budget_wei, deadline=deadline)

    def _stake(self, jobs: Sequence[Job]) -> tuple[int | None, int]:
        """Return the budget of one transaction for all jobs, and its deadline."""
        budget_wei = None
        if self._budget is not None:
            budget_wei = self._budget.cover(job.value for job in jobs)
        return budget_wei, min([job.deadline for job in jobs if job.deadline], default=0)

    def _enqueue(self, job: Job) -> None:
        self._queue.add(job)
        self.tasks.share(_SENDING, self._send_all)

    # Sending.

    async def _send_all(self) -> None:
        """Send waiting jobs, the most urgent first, until none waits."""
        while self._queue:
            await self._room.acquire()
            batch = self._queue.next_batch()
            try:
                tx_hash = await self._send(batch)
            except BaseException as error:
                self._room.release()
                for job in batch:
                    job.fail(error)
                if not isinstance(error, MppSessionError):
                    raise
                self._note(error)
                continue
            if tx_hash is None:
                self._room.release()
            else:
                sent = [job for job in batch if job.tx_hash == tx_hash]  # others were refused
                self.tasks.start(self._see_through(sent, tx_hash, has_room=True))

    async def _send(self, batch: Sequence[Job]) -> TxHash | None:
        """Drop entries that would be refused, and broadcast the others; None if none is left."""
        jobs = batch
        try:
            if len(batch) > 1:
                jobs = await self._simulate(batch)
            if not jobs:
                return None
            entries = [job.entry for job in jobs]
            budget_wei, deadline = self._stake(jobs)
            if self._hour is not None:
                await self._hour.require_room(deadline=deadline)
            tx_hash = await self._sender.broadcast(
                self._reader.escrow,
                await self._calls.build(jobs[0].purpose, entries),
                purpose=jobs[0].purpose,
                budget_wei=budget_wei,
                deadline=deadline,
            )
        except ContractRevertedError as error:
            await self._refuse_all(jobs, error)
            return None
        except RpcRefusedError as error:  # perhaps too much gas for one transaction
            if len(jobs) == 1:
                jobs[0].fail(error)
            else:
                self._try_smaller(jobs, len(jobs) // 2)
            return None
        for job in jobs:
            job.tx_hash = tx_hash
        return tx_hash

    async def _simulate(self, batch: Sequence[Job]) -> list[Job]:
        """Answer the jobs that the escrow would refuse, by its current state (F-79, F-80)."""
        calls = [build_simulation(job.purpose, job.entry) for job in batch]
        refusals = await self._reader.rpc.try_calls(self._reader.escrow, calls, sender=self.payee)
        passed = []
        for job, refusal in zip(batch, refusals, strict=True):
            if refusal is None:
                passed.append(job)
            else:
                self.tasks.start(self._refuse(job, refusal))
        return passed

    # Following transactions.

    async def _see_through(
        self, jobs: Sequence[Job], tx_hash: TxHash, *, has_room: bool = False
    ) -> None:
        """Wait for the transaction without limit, and answer each of its channels."""
        for job in jobs:
            job.tx_hash = tx_hash
        try:
            receipt = await self._receipt(tx_hash)
            for refusal in await self._outcomes.answer(jobs, receipt):
                self._note(refusal)
        except ContractRevertedError as error:
            await self._refuse_all(jobs, error)
        except BaseException as error:
            for job in jobs:
                job.fail(error)
            raise
        finally:
            if has_room:
                self._room.release()

    async def _receipt(self, tx_hash: TxHash) -> Receipt:
        """Retry until there is an answer: giving up would send the same call twice."""
        while True:
            try:
                return await self._sender.resume(tx_hash)
            except TransactionPendingError:
                _log.warning("transaction 0x%s is not mined yet", tx_hash.hex())
            except (TransactionRevertedError, TransactionReplacedError, LeaseLostError):
                raise
            except MppSessionError as error:
                if isinstance(error, InvariantError):
                    raise
                _log.warning("reading transaction 0x%s failed: %s", tx_hash.hex(), error)
                await asyncio.sleep(_RETRY_S)

    async def _refuse_all(self, jobs: Sequence[Job], error: ContractRevertedError) -> None:
        """Answer the refusal of a whole batch; smaller batches then show whose refusal it is.

        A refusal by a block has cost gas: each job is then retried alone, without a pause.
        """
        if len(jobs) == 1:
            await self._refuse(jobs[0], error)
        else:
            self._try_smaller(jobs, len(jobs) // 2 if error.tx_hash is None else 1)

    def _try_smaller(self, jobs: Sequence[Job], batch_max: int) -> None:
        """Send again in smaller batches, so that one channel does not hold up the others (F-79)."""
        for job in jobs:
            job.batch_max = batch_max
            job.tx_hash = None
            self._enqueue(job)

    async def _refuse(self, job: Job, error: ContractRevertedError) -> None:
        refusal = await self._outcomes.refuse(job, error)
        if refusal is not None:
            self._note(refusal)

    def _note(self, error: BaseException) -> None:
        if isinstance(error, InvariantError | LeaseLostError) or not isinstance(
            error, MppSessionError
        ):
            self.tasks.fail(error)

    def _require_ours(self, key: ChannelKey) -> None:
        if (key.chain_id, key.escrow) != (self._reader.chain_id, self._reader.escrow):
            msg = f"The channel is of escrow 0x{key.escrow.hex()} on chain {key.chain_id}."
            raise ConfigError(msg)
