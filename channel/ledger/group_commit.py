"""Group commit: jobs that arrive while a commit runs go into the next one.

One writer and no timer (decision 3): a lone caller waits for no other, and the more callers there
are, the more of them share one sync to disk. Reads from disk are grouped in the same way. This
module knows neither SQL nor channels.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeAlias, TypeVar

from channel.errors import InvariantError, LedgerUnavailableError, MppSessionError
from channel.limits import COMMIT_BATCH_MAX, COMMIT_QUEUE_MAX

__all__ = ["GroupCommit", "OnCommit", "ThreadGroupCommit"]

J = TypeVar("J")
R = TypeVar("R")
_Batch: TypeAlias = "list[tuple[J, asyncio.Future[R]]]"
OnCommit: TypeAlias = Callable[[int, float], None]
"""Takes the number of jobs in a commit, and its seconds."""


class GroupCommit(Generic[J, R]):
    """A bounded queue in front of one function that makes a batch durable.

    `commit` takes the jobs in order of arrival and returns one result or error for each. If it
    raises, every job of the batch fails with that error. After an `InvariantError`, whether raised
    or returned, nothing is committed any more.
    """

    def __init__(
        self,
        commit: Callable[[list[J]], Awaitable[Sequence[R | Exception]]],
        *,
        batch_max: int = COMMIT_BATCH_MAX,
        queue_max: int = COMMIT_QUEUE_MAX,
    ) -> None:
        self.on_commit: OnCommit | None = None
        """Called after each commit that did not fail. It must not raise."""
        self._commit = commit
        self._jobs: _Jobs[J, R] = _Jobs(batch_max, queue_max)
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, job: J) -> R:
        """Return the job's result once its batch is durable. Cancelling does not withdraw the job.

        Raises:
            LedgerUnavailableError: The queue is full or closed, or the commit failed.
            InvariantError: A bug was found, now or before; nothing is committed any more.
        """
        answer = self._jobs.put(job)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await answer

    async def close(self) -> None:
        """Refuse new jobs, commit the queued ones, and return when that is done."""
        self._jobs.close()
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        try:
            while batch := self._jobs.take():
                began = time.monotonic()
                try:
                    self._jobs.answer(batch, await self._commit([job for job, _ in batch]))
                    if self.on_commit is not None:
                        self.on_commit(len(batch), time.monotonic() - began)
                except Exception as error:  # noqa: BLE001 - a bug, see `fail`
                    self._jobs.fail(batch, error)
                except BaseException:
                    self._jobs.lose(batch)
                    raise
        finally:
            self._writer = None


class ThreadGroupCommit(Generic[J, R]):
    """The same for a blocking function, run in the one thread of `post`.

    Between a job and its answer there are two thread changes and nothing else. If the batch before
    had one job, the next starts immediately. Otherwise it starts at the end of the current turn of
    the event loop, so that all jobs of that turn share the sync.
    """

    def __init__(
        self,
        commit: Callable[[list[J]], Sequence[R | Exception]],
        post: Callable[[Callable[[], None]], None],
        *,
        batch_max: int = COMMIT_BATCH_MAX,
        queue_max: int = COMMIT_QUEUE_MAX,
    ) -> None:
        """Attach to the running event loop.

        `post` raises `LedgerUnavailableError` when its thread has ended.
        """
        self.on_commit: OnCommit | None = None
        """See `GroupCommit.on_commit`; called in the event loop."""
        self._commit = commit
        self._post = post
        self._jobs: _Jobs[J, R] = _Jobs(batch_max, queue_max)
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._idle.set()
        self._batch_before = 1

    async def submit(self, job: J) -> R:
        """See `GroupCommit.submit`."""
        answer = self._jobs.put(job)
        if self._idle.is_set():
            self._idle.clear()
            self._start()
        return await answer

    async def close(self) -> None:
        """See `GroupCommit.close`."""
        self._jobs.close()
        await self._idle.wait()

    def _start(self) -> None:
        if self._batch_before > 1:
            self._loop.call_soon(self._post_batch)
        else:
            self._post_batch()

    def _post_batch(self) -> None:
        try:
            self._post(self._run_batch)
        except LedgerUnavailableError as error:
            self._jobs.stop(error)
            self._idle.set()

    def _run_batch(self) -> None:
        """Run in the thread. The loop posts nothing more before it has seen the result."""
        batch = self._jobs.take()
        began = time.monotonic()
        try:
            results = self._commit([job for job, _ in batch])
        except Exception as error:  # noqa: BLE001 - a bug, see `fail`
            done = partial(self._jobs.fail, batch, error)
        except BaseException:  # noqa: BLE001 - this thread has no caller to raise it to
            done = partial(self._jobs.lose, batch)
        else:
            done = partial(self._answer, batch, results, time.monotonic() - began)
        self._loop.call_soon_threadsafe(self._end_batch, len(batch), done)

    def _answer(
        self, batch: "_Batch[J, R]", results: Sequence[R | Exception], seconds: float
    ) -> None:
        self._jobs.answer(batch, results)
        if self.on_commit is not None:
            self.on_commit(len(batch), seconds)

    def _end_batch(self, size: int, done: Callable[[], None]) -> None:
        self._batch_before = size
        done()
        if self._jobs:
            self._start()
        else:
            self._idle.set()


class _Jobs(Generic[J, R]):
    """Jobs that wait for a commit, each with its future. All but `take` run in the event loop."""

    def __init__(self, batch_max: int, queue_max: int) -> None:
        self._loop = asyncio.get_running_loop()  # kept: each call costs a system call
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._queue: deque[tuple[J, asyncio.Future[R]]] = deque()
        self._ended: MppSessionError | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, job: J) -> "asyncio.Future[R]":
        if self._ended is not None:
            raise _copy(self._ended)
        if len(self._queue) >= self._queue_max:
            raise LedgerUnavailableError("Too much is waiting for the ledger.")
        answer: asyncio.Future[R] = self._loop.create_future()
        self._queue.append((job, answer))
        return answer

    def take(self) -> "_Batch[J, R]":
        take = min(len(self._queue), self._batch_max)
        return [self._queue.popleft() for _ in range(take)]

    def answer(self, batch: "_Batch[J, R]", results: Sequence[R | Exception]) -> None:
        bug: InvariantError | None = None
        for (_, answer), result in zip(batch, results, strict=True):
            if isinstance(result, InvariantError):
                bug = result
            _answer(answer, result)
        if bug is not None:
            self.stop(bug)

    def fail(self, batch: "_Batch[J, R]", error: Exception) -> None:
        """Answer a batch with the reason of its failure. An unforeseen exception is a bug."""
        if not isinstance(error, MppSessionError):
            error = InvariantError(f"{type(error).__name__} in a commit: {error}")
        for _, answer in batch:
            _answer(answer, _copy(error))
        if isinstance(error, InvariantError):
            self.stop(error)

    def lose(self, batch: "_Batch[J, R]") -> None:
        lost = LedgerUnavailableError("The ledger's writer ended; load the state and look.")
        self.fail(batch, lost)
        self.stop(lost)

    def close(self) -> None:
        if self._ended is None:
            self._ended = LedgerUnavailableError("The ledger is closed.")

    def stop(self, error: MppSessionError) -> None:
        self._ended = error
        waiting = [*self._queue]
        self._queue.clear()
        for _, answer in waiting:
            _answer(answer, _copy(error))


def _answer(answer: asyncio.Future[R], result: R | Exception) -> None:
    if answer.done():  # its caller was cancelled; the change is durable anyway
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _copy(error: MppSessionError) -> MppSessionError:
    """Return a separate error for each caller, because raising one extends its traceback."""
    return type(error)(*error.args)
