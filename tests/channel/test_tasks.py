"""One owner of tasks: what it keeps alive, what it reports, and how it ends."""

import asyncio
import gc
import logging
import weakref

import pytest

from channel.errors import LedgerUnavailableError
from channel.tasks import RequestMark, Tasks, current_request, first_of, log_failure
from tests.waiting import until


async def break_down() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError("a bug")


class Work:
    """Runs until it is let go, and records how it ended."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.runs = 0
        self.ended: list[str] = []

    async def __call__(self) -> int:
        self.runs += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return self.runs


async def test_a_task_without_references_runs_to_its_end() -> None:
    """F-42: the event loop itself refers weakly to its tasks."""
    tasks = Tasks()
    futures: weakref.WeakSet[asyncio.Future[None]] = weakref.WeakSet()
    ended: list[bool] = []

    async def wait_for_a_lone_future() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        futures.add(future)
        await future
        ended.append(True)

    tasks.start(wait_for_a_lone_future())
    await asyncio.sleep(0)
    gc.collect()
    for future in futures:
        future.set_result(None)
    await tasks.drain()
    assert ended == [True]


async def test_a_task_outlives_the_caller_that_waits_for_it() -> None:
    """F-42: a cancelled request cancels nothing of what it began."""
    tasks, work = Tasks(), Work()

    async def request() -> int:
        return await asyncio.shield(tasks.start(work()))

    caller = asyncio.create_task(request())
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    work.go.set()
    await tasks.drain()
    assert work.ended == ["done"]


async def test_a_bug_reaches_the_owner_immediately() -> None:
    """It polls nothing: the wait for the failure itself raises."""
    tasks = Tasks()
    tasks.require_sound()
    tasks.start(break_down())
    async with asyncio.timeout(5):
        with pytest.raises(ZeroDivisionError):
            await tasks.until_failure()
    with pytest.raises(ZeroDivisionError):
        tasks.require_sound()


async def test_only_the_first_bug_counts() -> None:
    """What fails because of it would hide the cause."""
    tasks = Tasks()
    tasks.start(break_down())
    await tasks.drain()
    tasks.fail(ValueError("a later one"))
    with pytest.raises(ZeroDivisionError):
        await tasks.until_failure()


async def test_a_failure_cancels_no_other_task() -> None:
    """Each of them may be in the middle of a change; its owner decides."""
    tasks, work = Tasks(), Work()
    other = tasks.start(work())
    with pytest.raises(ZeroDivisionError):
        await tasks.start(break_down())
    assert not other.done()
    work.go.set()
    await tasks.drain()
    assert work.ended == ["done"]


async def test_a_cancelled_task_is_no_failure() -> None:
    """So that a stop in order does not look like a bug."""
    tasks, work = Tasks(), Work()
    task = tasks.start(work())
    await asyncio.sleep(0)
    task.cancel()
    await tasks.drain()
    tasks.require_sound()


async def test_an_owner_may_judge_the_errors_itself() -> None:
    """`report` then stands in place of `fail`."""
    said: list[BaseException] = []
    tasks = Tasks(report=said.append)
    tasks.start(break_down())
    await tasks.drain()
    assert [type(error) for error in said] == [ZeroDivisionError]
    tasks.require_sound()


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_key_has_one_task_at_a_time(*, cancel: bool) -> None:
    """Concurrent callers share it; after its end another starts, even in the same turn."""
    tasks, work = Tasks(), Work()
    first = tasks.share("key", work)
    assert tasks.share("key", work) is first
    assert tasks.find("key") is first
    assert tasks.share("another", work) is not first
    await asyncio.sleep(0)
    if cancel:
        first.cancel()
    else:
        work.go.set()
    while not first.done():  # noqa: ASYNC110 - and not a moment later
        await asyncio.sleep(0)
    assert tasks.find("key") is None
    work.go.clear()
    second = tasks.share("key", work)
    assert second is not first
    await asyncio.sleep(0)
    assert tasks.find("key") is second
    work.go.set()
    assert await second == 3
    assert tasks.find("key") is None


async def test_the_end_of_the_block_cancels_the_tasks_and_waits_for_them() -> None:
    """Nothing runs on when the resources of a task are closed."""
    work = Work()
    async with Tasks() as tasks:
        tasks.start(work())
        await asyncio.sleep(0)
    assert work.ended == ["cancelled"]


async def test_a_task_that_starts_another_at_its_end_leaves_none_behind() -> None:
    """As a look that was cut off and has just found more work."""
    tasks, first, second = Tasks(), Work(), Work()

    async def start_another() -> None:
        try:
            await first()
        finally:
            tasks.start(second())
            await asyncio.sleep(0)

    tasks.start(start_another())
    await asyncio.sleep(0)
    await tasks.aclose()
    assert (first.ended, second.ended) == (["cancelled"], ["cancelled"])


async def test_a_bounded_wait_leaves_what_hangs_for_the_end() -> None:
    """A shutdown waits for what is nearly done, and is not held up by the rest."""
    quick, hanging = Work(), Work()
    tasks = Tasks()
    tasks.start(quick())
    tasks.start(hanging())
    quick.go.set()
    await tasks.drain(within_s=0.05)
    assert (quick.ended, hanging.ended) == (["done"], [])
    await tasks.aclose()
    assert hanging.ended == ["cancelled"]


@pytest.mark.parametrize(
    ("error", "level", "is_placed"),
    [
        (ZeroDivisionError("a bug"), logging.ERROR, True),
        (LedgerUnavailableError("the disk is full"), logging.WARNING, False),
    ],
)
async def test_a_failure_in_the_background_is_logged_and_a_bug_with_its_place(
    error: Exception, level: int, *, is_placed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, F-42: no caller waits for the task, so only the log can report it."""

    async def fail() -> None:
        raise error

    tasks = Tasks(report=log_failure)
    tasks.start(fail())
    await tasks.drain()
    (record,) = caplog.records
    assert record.levelno == level
    assert str(error) in caplog.text
    assert (record.exc_info is not None) == is_placed


@pytest.mark.parametrize("fails", [False, True])
async def test_the_first_to_end_ends_all(*, fails: bool) -> None:
    """Its error is raised; without one the call returns."""
    work = Work()
    if fails:
        with pytest.raises(ZeroDivisionError):
            await first_of(work(), break_down())
    else:
        await first_of(work(), asyncio.sleep(0))
    assert work.ended == ["cancelled"]


async def test_a_cancelled_wait_for_the_first_cancels_all() -> None:
    """As when a process is asked to stop."""
    one, other = Work(), Work()
    waiting = asyncio.create_task(first_of(one(), other()))
    await until(lambda: other.runs == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert one.ended == other.ended == ["cancelled"]


async def test_a_task_is_of_the_request_that_started_it_until_that_has_ended() -> None:
    """A task of the whole program may have been started by a request: it is of none afterwards."""
    go_on = asyncio.Event()
    found: list[str] = []

    async def work() -> None:
        found.append(current_request())
        await go_on.wait()
        found.append(current_request())

    async def serve() -> asyncio.Task[None]:
        mark = RequestMark(b"\x01" * 16)
        task = asyncio.create_task(work())
        await until(lambda: len(found) == 1)
        mark.end()
        return task

    task = await asyncio.create_task(serve())
    go_on.set()
    await task
    assert found == ["01" * 16, ""]
    assert current_request() == ""
