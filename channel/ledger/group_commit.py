"""Many callers, one commit: whatever arrives while a commit runs goes into the next.

One writer, no timer (decision 3): a lone caller waits for nobody, and the more callers there
are, the more of them share one sync to disk. Reads from disk share their way to it in the same
manner. This module knows no SQL and no channel.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from channel.errors import InvariantError, LedgerUnavailableError, MppSessionError
from channel.limits import COMMIT_BATCH_MAX, COMMIT_QUEUE_MAX

__all__ = ["GroupCommit"]

J = TypeVar("J")
R = TypeVar("R")


class GroupCommit(Generic[J, R]):
    """A bounded queue in front of one function that makes a batch durable.

    `commit` takes the jobs in order of arrival and returns one result or error for each. If it
    raises, every job of the batch failed by that error.
    """

    def __init__(
        self,
        commit: Callable[[list[J]], Awaitable[Sequence[R | Exception]]],
        *,
        batch_max: int = COMMIT_BATCH_MAX,
        queue_max: int = COMMIT_QUEUE_MAX,
    ) -> None:
        self._commit = commit
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._queue: deque[tuple[J, asyncio.Future[R]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._ended: MppSessionError | None = None

    async def submit(self, job: J) -> R:
        """Return the job's result once its batch is durable. Cancelling does not take it back.

        Raises:
            LedgerUnavailableError: The queue is full or closed, or the commit failed.
            InvariantError: A bug was found, now or before; nothing is committed any more.
        """
        if self._ended is not None:
            raise _copy(self._ended)
        if len(self._queue) >= self._queue_max:
            raise LedgerUnavailableError("Too much is waiting for the ledger.")
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append((job, answer))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await answer

    async def close(self) -> None:
        """Refuse what is new, commit what is queued, and return when that is done."""
        if self._ended is None:
            self._ended = LedgerUnavailableError("The ledger is closed.")
        if self._writer is not None:
            await asyncio.wait([self._writer])

    def stop(self, error: MppSessionError) -> None:
        """Refuse everything from now on, what is queued included."""
        self._ended = error
        while self._queue:
            _answer(self._queue.popleft()[1], _copy(error))

    async def _write(self) -> None:
        try:
            while self._queue:
                take = min(len(self._queue), self._batch_max)
                await self._write_batch([self._queue.popleft() for _ in range(take)])
        finally:
            self._writer = None

    async def _write_batch(self, batch: list[tuple[J, asyncio.Future[R]]]) -> None:
        try:
            results = await self._commit([job for job, _ in batch])
        except MppSessionError as error:
            results = [_copy(error) for _ in batch]
        except BaseException:
            lost = LedgerUnavailableError("The ledger's writer ended; load the state and look.")
            for _, answer in batch:
                _answer(answer, _copy(lost))
            self.stop(lost)
            raise
        bug: InvariantError | None = None
        for (_, answer), result in zip(batch, results, strict=True):
            if isinstance(result, InvariantError):
                bug = result
            _answer(answer, result)
        if bug is not None:
            self.stop(bug)


def _answer(answer: asyncio.Future[R], result: R | Exception) -> None:
    if answer.done():  # its caller was cancelled; the change stands all the same
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _copy(error: MppSessionError) -> MppSessionError:
    """Return an error of its own for each caller: a traceback grows where it is raised."""
    return type(error)(*error.args)
