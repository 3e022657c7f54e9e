"""Requests to the settler that are not answered yet: those waiting, and those sent."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from channel.errors import SettlementPendingError
from channel.types import ChannelFact, ChannelId, TxHash
from settlement.tx.state import Purpose
from settlement.types import BatchEntry

__all__ = ["CloseResult", "Job", "JobQueue", "JobResult", "SettleResult"]


_BATCH_BYTES_MAX: Final = 96 * 1024
"""Nodes relay no transaction above 128 KiB; a wallet's signature has up to four."""
_ENTRY_BYTES: Final = 192
"""Bytes of an entry beside its signature."""


class CloseResult(msgspec.Struct, frozen=True, gc=False):
    """A closed channel, and the transaction that closed it."""

    tx_hash: TxHash
    fact: ChannelFact
    gas_used: int


class SettleResult(msgspec.Struct, frozen=True, gc=False):
    """A channel after a settle. `tx_hash` is None if as much was settled before."""

    tx_hash: TxHash | None
    fact: ChannelFact


JobResult = CloseResult | SettleResult


class Job:
    """One channel's settle or close, from the request until the answer."""

    def __init__(self, purpose: Purpose, entry: BatchEntry, *, value: int, deadline: int) -> None:
        self.purpose = purpose
        self.entry = entry
        self.value = value
        self.deadline = deadline
        self.batch_max: int | None = None
        """Most jobs in a transaction with this one, itself included: with more it failed."""
        self.tx_hash: TxHash | None = None
        self.answer: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> tuple[Purpose, ChannelId, int]:
        """Identity: one close per channel for any amount; one settle per amount."""
        amount = 0 if self.purpose is Purpose.CLOSE else self.entry.cumulative_amount
        return self.purpose, self.entry.channel_id, amount

    def escalate(self, other: "Job") -> bool:
        """Adopt a higher value or an earlier deadline; return whether either changed."""
        before = (self.value, self.deadline)
        self.value = max(self.value, other.value)
        self.deadline = min(filter(None, (self.deadline, other.deadline)), default=0)
        return before != (self.value, self.deadline)

    def urgency(self) -> tuple[float, int]:
        """Sort key: deadline, then value (F-66)."""
        return (self.deadline or math.inf, -self.value)

    def fail(self, error: BaseException) -> None:
        """Answer with an error; cancellation becomes a pending settlement."""
        if isinstance(error, asyncio.CancelledError):
            error = SettlementPendingError("The settler has stopped: retry later.")
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # retrieved, so that asyncio does not log it

    def succeed(self, result: JobResult) -> None:
        """Answer with the result."""
        if not self.answer.done():
            self.answer.set_result(result)


class JobQueue:
    """Open jobs, which later requests may join, and those of them that wait to be sent."""

    def __init__(self, *, batch_max: int) -> None:
        self._batch_max = batch_max
        self._known: dict[tuple[Purpose, ChannelId, int], Job] = {}
        self._waiting: list[Job] = []

    def __bool__(self) -> bool:
        """Whether a job waits to be sent."""
        return bool(self._waiting)

    def unanswered(self) -> list[Job]:
        """Return every open job."""
        return list(self._known.values())

    def sent_in(self, tx_hash: TxHash) -> list[Job]:
        """Return the open jobs of a transaction."""
        return [job for job in self._known.values() if job.tx_hash == tx_hash]

    def joined(self, job: Job) -> Job | None:
        """Return the open job with the same identity as this one."""
        return self._known.get(job.name)

    def register(self, job: Job) -> None:
        """Let later requests join the job until it is answered."""
        name = job.name
        self._known[name] = job

        def forget(_: asyncio.Future[JobResult]) -> None:
            if self._known.get(name) is job:
                del self._known[name]

        job.answer.add_done_callback(forget)

    def add(self, job: Job) -> None:
        """Queue the job to be sent."""
        self._waiting.append(job)

    def next_batch(self) -> Sequence[Job]:
        """Remove and return the next transaction's jobs: the most urgent, and others like it."""
        self._waiting.sort(key=Job.urgency)
        first = self._waiting[0]
        kind = (first.purpose, first.batch_max)
        same_kind = [job for job in self._waiting if (job.purpose, job.batch_max) == kind]
        bound = min(self._batch_max, first.batch_max or self._batch_max)
        batch = _fitting(_one_each(same_kind)[:bound])
        taken = set(map(id, batch))
        self._waiting = [job for job in self._waiting if id(job) not in taken]
        return batch


def _fitting(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return as many of these, in order, as fit into a transaction that nodes relay."""
    size = 0
    for count, job in enumerate(jobs):
        size += _ENTRY_BYTES + len(job.entry.signature)
        if size > _BATCH_BYTES_MAX:
            return jobs[: max(1, count)]
    return jobs


def _one_each(jobs: Iterable[Job]) -> list[Job]:
    """Keep one settle per channel; the next one goes into a later transaction."""
    by_channel: dict[ChannelId, Job] = {}
    for job in jobs:
        by_channel.setdefault(job.entry.channel_id, job)
    return list(by_channel.values())
