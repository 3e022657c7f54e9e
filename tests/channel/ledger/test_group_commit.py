"""Calls that arrive while a commit runs go into the next; no call is answered early."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import pytest

from channel.errors import InvariantError, LedgerUnavailableError, StorageFailedError
from channel.ledger.group_commit import GroupCommit, ThreadGroupCommit
from tests.waiting import PATIENCE_S

Commits: TypeAlias = GroupCommit[int, int] | ThreadGroupCommit[int, int]


class Disk:
    """Commits when the test says so, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_commit = threading.Event()
        self.error: BaseException | None = None
        self.results: dict[int, Exception] = {}
        self.thread: ThreadPoolExecutor | None = None

    def start(self, batch_max: int = 100, queue_max: int = 100) -> Commits:
        """Return a queue in front of this disk: in the event loop, or in the thread it has."""
        if self.thread is None:
            return GroupCommit(self.commit_in_loop, batch_max=batch_max, queue_max=queue_max)
        return ThreadGroupCommit(
            self.commit_in_thread,
            self.post,
            batch_max=batch_max,
            queue_max=queue_max,
        )

    def post(self, task: Callable[[], None]) -> None:
        assert self.thread is not None
        try:
            self.thread.submit(task)
        except RuntimeError as error:
            raise LedgerUnavailableError("closed") from error

    async def commit_in_loop(self, jobs: list[int]) -> Sequence[int | Exception]:
        self.batches.append(jobs)
        await asyncio.to_thread(self.may_commit.wait)
        return self._results(jobs)

    def commit_in_thread(self, jobs: list[int]) -> Sequence[int | Exception]:
        self.batches.append(jobs)
        self.may_commit.wait()
        return self._results(jobs)

    def _results(self, jobs: list[int]) -> Sequence[int | Exception]:
        if self.error is not None:
            raise self.error
        return [self.results.get(job, job * 10) for job in jobs]


@pytest.fixture(params=["loop", "thread"])
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    made = Disk()
    if request.param == "thread":
        made.thread = ThreadPoolExecutor(1)
    yield made
    made.may_commit.set()
    if made.thread is not None:
        made.thread.shutdown()


def submit(commits: Commits, *jobs: int) -> "list[asyncio.Future[int]]":
    return [asyncio.ensure_future(commits.submit(job)) for job in jobs]


async def begun(disk: Disk, batches: int = 1) -> None:
    """Wait until so many batches have begun to be committed, in whichever thread."""
    while len(disk.batches) < batches:  # noqa: ASYNC110 - a thread makes it so
        await asyncio.sleep(0.001)


async def occupied(disk: Disk, commits: Commits) -> "list[asyncio.Future[int]]":
    """Have job 0 being committed, so that what comes now waits together."""
    calls = submit(commits, 0)
    await begun(disk)
    return calls


async def test_no_call_is_answered_before_the_commit_has_returned(disk: Disk) -> None:
    """Decision 3."""
    calls = await occupied(disk, disk.start())
    await asyncio.sleep(0.01)
    assert not any(call.done() for call in calls)
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [0]


async def test_what_arrives_during_a_commit_shares_the_next_in_order(disk: Disk) -> None:
    commits = disk.start()
    calls = await occupied(disk, commits)
    calls += submit(commits, 2, 3, 4)
    await asyncio.sleep(0.01)
    assert disk.batches == [[0]]
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [0, 20, 30, 40]
    assert disk.batches == [[0], [2, 3, 4]]


async def test_those_who_come_together_go_on_together(disk: Disk) -> None:
    """The answers of one batch make its callers' next jobs: one turn of the loop, one commit."""
    commits = disk.start()
    calls = await occupied(disk, commits)

    async def twice(job: int) -> None:
        await commits.submit(job)
        await commits.submit(job + 10)

    both = [asyncio.ensure_future(twice(job)) for job in (1, 2, 3)]
    await asyncio.sleep(0)
    disk.may_commit.set()
    await asyncio.gather(*calls, *both)
    assert disk.batches == [[0], [1, 2, 3], [11, 12, 13]]


async def test_a_batch_is_bounded(disk: Disk) -> None:
    commits = disk.start(batch_max=3)
    calls = await occupied(disk, commits)
    calls += submit(commits, *range(1, 9))
    await asyncio.sleep(0)
    disk.may_commit.set()
    await asyncio.gather(*calls)
    assert [len(batch) for batch in disk.batches] == [1, 3, 3, 2]


async def test_a_full_queue_refuses_and_does_not_grow(disk: Disk) -> None:
    commits = disk.start(queue_max=2)
    calls = await occupied(disk, commits)
    calls += submit(commits, 2, 3)
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):  # one that took the job would wait for the disk
        with pytest.raises(LedgerUnavailableError):
            await commits.submit(4)
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [0, 20, 30]


async def test_a_cancelled_caller_does_not_take_its_job_back(disk: Disk) -> None:
    """F-42."""
    commits = disk.start()
    calls = await occupied(disk, commits)
    calls += submit(commits, 1, 2)
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[1].cancel()
    disk.may_commit.set()
    assert await calls[2] == 20
    assert disk.batches == [[0], [1, 2]]


async def test_one_failing_job_does_not_harm_the_others(disk: Disk) -> None:
    disk.may_commit.set()
    disk.results[2] = LedgerUnavailableError("no")
    commits = disk.start()
    results = await asyncio.gather(*submit(commits, 1, 2, 3), return_exceptions=True)
    assert (results[0], results[2]) == (10, 30)
    assert isinstance(results[1], LedgerUnavailableError)
    assert await commits.submit(4) == 40


async def test_a_failed_commit_answers_every_job_of_its_batch_and_the_next_is_tried(
    disk: Disk,
) -> None:
    """F-51."""
    disk.error = LedgerUnavailableError("disk full")
    commits = disk.start()
    calls = await occupied(disk, commits)
    calls += submit(commits, 1, 2)
    await asyncio.sleep(0)
    disk.may_commit.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, LedgerUnavailableError) for one in results)
    assert results[1] is not results[2]
    disk.error = None
    assert await commits.submit(3) == 30


async def test_a_bug_ends_it_for_good_but_answers_those_that_were_committed(disk: Disk) -> None:
    commits = disk.start(batch_max=2)
    calls = await occupied(disk, commits)
    calls += submit(commits, 1, 2, 3)
    await asyncio.sleep(0)
    disk.results[2] = InvariantError("bug")
    disk.may_commit.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[:2] == [0, 10]
    assert [type(one) for one in results[2:]] == [InvariantError, InvariantError]
    assert disk.batches == [[0], [1, 2]]
    with pytest.raises(InvariantError):
        await commits.submit(4)


async def test_no_call_waits_for_ever_when_the_writer_breaks(disk: Disk) -> None:
    commits = disk.start()
    calls = await occupied(disk, commits)
    calls += submit(commits, 2)
    await asyncio.sleep(0)
    disk.error = asyncio.CancelledError()
    disk.may_commit.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in results] == [LedgerUnavailableError, LedgerUnavailableError]
    with pytest.raises(LedgerUnavailableError):
        await commits.submit(3)
    assert disk.batches == [[0]]


async def test_closing_commits_what_is_queued_and_refuses_what_is_new(disk: Disk) -> None:
    commits = disk.start()
    calls = await occupied(disk, commits)
    calls += submit(commits, 2)
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(commits.close())
    await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailableError):
        await commits.submit(3)
    assert not closing.done()
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [0, 20]
    await closing
    await commits.close()


async def test_an_unexpected_error_is_a_bug_and_stops_the_worker(disk: Disk) -> None:
    """Habit 7: books that answer 503 for ever would look as if they were only away."""
    disk.error = OverflowError("int too large to convert")
    disk.may_commit.set()
    commits = disk.start()
    for _ in range(2):
        with pytest.raises(InvariantError, match="OverflowError in a commit: int too large"):
            await commits.submit(1)
    assert disk.batches == [[1]]


async def test_after_a_disk_that_failed_nothing_is_committed(disk: Disk) -> None:
    """F-51: after a sync that failed, a later one may succeed without what the first lost."""
    disk.error = StorageFailedError("fsync failed")
    commits = disk.start()
    calls = await occupied(disk, commits)
    calls += submit(commits, 1)
    await asyncio.sleep(0)
    disk.may_commit.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in results] == [StorageFailedError, StorageFailedError]
    disk.error = None
    with pytest.raises(StorageFailedError, match="fsync failed"):
        await commits.submit(2)
    assert disk.batches == [[0]]


@pytest.mark.parametrize("disk", ["thread"], indirect=True)
async def test_a_thread_that_has_ended_answers_every_call(disk: Disk) -> None:
    commits = disk.start()
    assert disk.thread is not None
    disk.thread.shutdown()
    with pytest.raises(LedgerUnavailableError):
        await commits.submit(1)
    await commits.close()


async def test_each_commit_that_succeeds_is_reported_with_its_jobs_and_time(disk: Disk) -> None:
    commits = disk.start()
    reports: list[tuple[int, float]] = []
    commits.on_commit = lambda jobs, seconds: reports.append((jobs, seconds))
    disk.may_commit.set()
    await asyncio.gather(*submit(commits, 1, 2))
    assert sum(jobs for jobs, _ in reports) == 2
    assert all(0 <= seconds < PATIENCE_S for _, seconds in reports)
    disk.error = LedgerUnavailableError("The disk is full.")
    before = len(reports)
    with pytest.raises(LedgerUnavailableError):
        await submit(commits, 3)[0]
    assert len(reports) == before
    await commits.close()
