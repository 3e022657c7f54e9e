"""Whatever arrives while a commit runs goes into the next; nobody is answered early."""

import asyncio
from collections.abc import Sequence

import pytest

from channel.errors import InvariantError, LedgerUnavailableError
from channel.ledger.group_commit import GroupCommit


class Disk:
    """Commits when it is told to, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_commit = asyncio.Event()
        self.error: BaseException | None = None
        self.results: dict[int, Exception] = {}

    async def commit(self, jobs: list[int]) -> Sequence[int | Exception]:
        self.batches.append(jobs)
        await self.may_commit.wait()
        if self.error is not None:
            raise self.error
        return [self.results.get(job, job * 10) for job in jobs]


def submit(commits: GroupCommit[int, int], *jobs: int) -> "list[asyncio.Future[int]]":
    return [asyncio.ensure_future(commits.submit(job)) for job in jobs]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_nobody_is_answered_before_the_commit_has_returned() -> None:
    """Decision 3."""
    disk = Disk()
    calls = submit(GroupCommit(disk.commit), 1, 2)
    await turns()
    assert disk.batches == [[1, 2]]
    assert not any(call.done() for call in calls)
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [10, 20]


async def test_what_arrives_during_a_commit_shares_the_next_in_order() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit)
    calls = submit(commits, 1)
    await turns()
    calls += submit(commits, 2, 3, 4)
    await turns()
    assert disk.batches == [[1]]
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [10, 20, 30, 40]
    assert disk.batches == [[1], [2, 3, 4]]


async def test_a_batch_is_bounded() -> None:
    disk = Disk()
    disk.may_commit.set()
    await asyncio.gather(*submit(GroupCommit(disk.commit, batch_max=3), *range(8)))
    assert [len(batch) for batch in disk.batches] == [3, 3, 2]


async def test_a_full_queue_refuses_and_does_not_grow() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit, queue_max=2)
    calls = submit(commits, 1)
    await turns()
    calls += submit(commits, 2, 3)
    await turns()
    with pytest.raises(LedgerUnavailableError):
        await commits.submit(4)
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [10, 20, 30]


async def test_a_cancelled_caller_does_not_take_its_job_back() -> None:
    """F-42."""
    disk = Disk()
    calls = submit(GroupCommit(disk.commit), 1, 2)
    await turns()
    calls[0].cancel()
    disk.may_commit.set()
    assert await calls[1] == 20
    assert disk.batches == [[1, 2]]


async def test_one_failing_job_does_not_harm_the_others() -> None:
    disk = Disk()
    disk.may_commit.set()
    disk.results[2] = LedgerUnavailableError("no")
    commits = GroupCommit(disk.commit)
    results = await asyncio.gather(*submit(commits, 1, 2, 3), return_exceptions=True)
    assert (results[0], results[2]) == (10, 30)
    assert isinstance(results[1], LedgerUnavailableError)
    assert await commits.submit(4) == 40


async def test_a_failed_commit_answers_every_job_of_its_batch_and_the_next_is_tried() -> None:
    """F-51."""
    disk = Disk()
    disk.may_commit.set()
    disk.error = LedgerUnavailableError("disk full")
    commits = GroupCommit(disk.commit)
    results = await asyncio.gather(*submit(commits, 1, 2), return_exceptions=True)
    assert all(isinstance(one, LedgerUnavailableError) for one in results)
    assert results[0] is not results[1]
    disk.error = None
    assert await commits.submit(3) == 30


async def test_a_bug_ends_it_for_good_but_answers_those_that_were_committed() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit)
    calls = submit(commits, 1, 2)
    await turns()
    calls += submit(commits, 3)
    await turns()
    disk.results[2] = InvariantError("bug")
    disk.may_commit.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] == 10
    assert [type(one) for one in results[1:]] == [InvariantError, InvariantError]
    assert disk.batches == [[1, 2]]
    with pytest.raises(InvariantError):
        await commits.submit(4)


async def test_nobody_waits_for_ever_when_the_writer_breaks() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit)
    calls = submit(commits, 1)
    await turns()
    calls += submit(commits, 2)
    await turns()
    disk.error = asyncio.CancelledError()
    disk.may_commit.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in results] == [LedgerUnavailableError, LedgerUnavailableError]


async def test_closing_commits_what_is_queued_and_refuses_what_is_new() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit)
    calls = submit(commits, 1)
    await turns()
    calls += submit(commits, 2)
    await turns()
    closing = asyncio.ensure_future(commits.close())
    await turns()
    with pytest.raises(LedgerUnavailableError):
        await commits.submit(3)
    assert not closing.done()
    disk.may_commit.set()
    assert await asyncio.gather(*calls) == [10, 20]
    await closing
    await commits.close()
