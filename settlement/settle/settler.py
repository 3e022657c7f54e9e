"""The payee's side of the chain: settles and closes, many channels in one transaction.

Whatever is asked for while one transaction is being prepared goes into the next: a lone close
waits for nobody, and a hundred at once share their gas. Each entry is simulated on its own before
it is sent, so that one the escrow would refuse costs the others nothing (F-79); the escrow leaves
out, with its reason, what was refused only in the block. What one key has under way for a channel
is joined, not repeated, also after a restart (F-40).
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final

import msgspec

from channel.chain import CloseResult
from channel.errors import (
    ConfigError,
    InvariantError,
    MppSessionError,
    SettlementPendingError,
    TransactionRevertedError,
)
from channel.ledger.interface import Ledger
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
from settlement.settle.jobs import Job, JobQueue, JobResult, SettleResult
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


class SettlerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much goes into one transaction, and how much is under way at once."""

    batch_max: int = 100
    batches_max: int = 16
    """Transactions under way: nodes keep only so many of one account."""
    wait_s: float | None = None
    """How long whoever asked waits to be answered; as long as the sender waits, if None."""


class EscrowSettler:
    """Settles and closes the channels of one payee in one escrow (`channel.chain.ChannelCloser`).

    Which voucher to use is not decided here (`channel.state.ladder`), and what is durable in the
    books before a voucher leaves is the caller's care (decision 5).
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
            reader: The escrow.
            sender: The account that sends and pays the gas.
            calls: How it is put to the escrow; as the payee, by `sender`, if None.
            budget: What gas may cost; unbounded if None.
            quarantine: Where channels go that the chain refuses; nowhere if None.
            limits: How much at once.
            hour: What all of it may cost within an hour; unbounded if None.
        """
        self._reader = reader
        self._sender = sender
        self._calls: PayoutCalls = calls or OwnCalls(sender.address)
        self._budget = budget
        self._outcomes = Outcomes(reader, quarantine)
        self._limits = limits or SettlerLimits()
        self._hour = hour
        self._queue = JobQueue(batch_max=self._limits.batch_max)
        self._worker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(self._limits.batches_max)
        self._bug: BaseException | None = None

    @property
    def payee(self) -> Address:
        """Whose channels are settled and closed."""
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

        Repeating it for a channel that is closed already, or is being closed, returns that close.
        `value` is what is at risk, in base units, and `deadline` the chain's time at which the
        payer may take it: they decide the order and what gas may cost.

        Raises:
            ContractRevertedError: The contract refused; nothing changed on chain.
            ChannelQuarantinedError: It refuses for now; ask again.
            TransactionPendingError: Not mined within the bound; ask again (F-75).
            SettlementPendingError: Not sent within the bound; ask again.
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
        """Take over, after a start, what the journal holds: sent transactions, and quarantine.

        Channels of transactions under way are joined when they are asked for, not sent again.
        """
        await self._outcomes.load()
        self._adopt(await self._sender.recover())

    async def forget_ended(self, ledger: Ledger) -> None:
        """Let out of quarantine what the books say has ended, by whomever.

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
                self._start(self._see_through(jobs, tx.versions[0].tx_hash))

    def require_sound(self) -> None:
        """Raise what only a bug raises, or that the key is another settler's by now."""
        if self._bug is not None:
            raise self._bug

    async def drain(self) -> None:
        """Wait for what is under way: before the process ends."""
        while self._worker is not None or self._tasks:
            running = [*self._tasks, *([] if self._worker is None else [self._worker])]
            await asyncio.wait(running)

    async def aclose(self) -> None:
        """Stop at once. What was sent is in the journal, and is gone on with from there."""
        running = [*self._tasks, *([] if self._worker is None else [self._worker])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for job in self._queue.unanswered():
            job.fail(SettlementPendingError("The settler has stopped; ask again."))

    # Asking.

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
                raise SettlementPendingError("Not sent yet; ask again.") from None
            raise TransactionPendingError(job.tx_hash) from None

    async def _escalate(self, tx_hash: TxHash) -> None:
        """Let what is under way bid for what presses by now: its payer has asked for the rest."""
        budget_wei, deadline = self._stake(self._queue.sent_in(tx_hash))
        await self._sender.escalate(tx_hash, budget_wei=budget_wei, deadline=deadline)

    def _stake(self, jobs: Sequence[Job]) -> tuple[int | None, int]:
        """Return what one transaction for all of them may cost, and when it must be mined."""
        budget_wei = None
        if self._budget is not None:
            budget_wei = self._budget.cover(job.value for job in jobs)
        return budget_wei, min([job.deadline for job in jobs if job.deadline], default=0)

    def _enqueue(self, job: Job) -> None:
        self._queue.add(job)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
            self._worker.add_done_callback(self._ended)

    # Sending.

    async def _work(self) -> None:
        """Take what waits, the most urgent first, and send it; until nothing waits."""
        try:
            await self._send_all()
        finally:
            self._worker = None

    async def _send_all(self) -> None:
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
                self._start(self._see_through(sent, tx_hash, has_room=True))

    async def _send(self, batch: Sequence[Job]) -> TxHash | None:
        """Leave out what would be refused, and broadcast the rest; None when nothing is left."""
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
        except RpcRefusedError as error:  # too much gas for one transaction, perhaps
            if len(jobs) == 1:
                jobs[0].fail(error)
            else:
                self._try_smaller(jobs, len(jobs) // 2)
            return None
        for job in jobs:
            job.tx_hash = tx_hash
        return tx_hash

    async def _simulate(self, batch: Sequence[Job]) -> list[Job]:
        """Answer those that would be refused, by the state as it is now (F-79, F-80)."""
        calls = [build_simulation(job.purpose, job.entry) for job in batch]
        refusals = await self._reader.rpc.try_calls(self._reader.escrow, calls, sender=self.payee)
        passed = []
        for job, refusal in zip(batch, refusals, strict=True):
            if refusal is None:
                passed.append(job)
            else:
                self._start(self._refuse(job, refusal))
        return passed

    # Seeing through.

    async def _see_through(
        self, jobs: Sequence[Job], tx_hash: TxHash, *, has_room: bool = False
    ) -> None:
        """Wait for the transaction, for ever, and answer each of its channels."""
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
        """Ask until there is an answer: giving up would send the same thing twice."""
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
                _log.warning("transaction 0x%s was not seen: %s", tx_hash.hex(), error)
                await asyncio.sleep(_RETRY_S)

    async def _refuse_all(self, jobs: Sequence[Job], error: ContractRevertedError) -> None:
        """Answer a refusal of the whole; of many, smaller lots show whose it is.

        One by a block has cost gas: then each is tried alone at once.
        """
        if len(jobs) == 1:
            await self._refuse(jobs[0], error)
        else:
            self._try_smaller(jobs, len(jobs) // 2 if error.tx_hash is None else 1)

    def _try_smaller(self, jobs: Sequence[Job], batch_max: int) -> None:
        """Send again, fewer at a time: some of these must not hold up the others (F-79)."""
        for job in jobs:
            job.batch_max = batch_max
            job.tx_hash = None
            self._enqueue(job)

    async def _refuse(self, job: Job, error: ContractRevertedError) -> None:
        refusal = await self._outcomes.refuse(job, error)
        if refusal is not None:
            self._note(refusal)

    # Keeping count.

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note(error)

    def _note(self, error: BaseException) -> None:
        if isinstance(error, InvariantError | LeaseLostError) or not isinstance(
            error, MppSessionError
        ):
            self._bug = self._bug or error

    def _require_ours(self, key: ChannelKey) -> None:
        if (key.chain_id, key.escrow) != (self._reader.chain_id, self._reader.escrow):
            msg = f"The channel is of escrow 0x{key.escrow.hex()} on chain {key.chain_id}."
            raise ConfigError(msg)
