"""Owns tasks: keeps them alive, tells their owner of the first bug, and ends them all.

A task works for one request, or for none: a log line can name it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Self, TypeVar

from channel.errors import MppSessionError

__all__ = ["RequestMark", "Tasks", "current_request", "first_of", "log_failure"]

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

_FINISH_S: Final = 5.0


class RequestMark:
    """Marks the current task, and those that it starts, as working for a request."""

    __slots__ = ("_request_id",)

    def __init__(self, request_id: bytes) -> None:
        self._request_id = request_id
        _current.set(self)

    @property
    def request_id(self) -> str:
        """The id in hexadecimal; empty once the request has ended."""
        return self._request_id.hex()

    def end(self) -> None:
        """Record that the request has ended: tasks that it started work for others from now on."""
        self._request_id = b""


_current: ContextVar[RequestMark | None] = ContextVar("request", default=None)


def current_request() -> str:
    """Return the id of the request that the current task works for; empty if for none."""
    mark = _current.get()
    return "" if mark is None else mark.request_id


class Tasks:
    """The tasks of one object, which may outlive the caller that started them (F-42).

    `asyncio.TaskGroup` cancels every task when one fails or when its caller is cancelled. Here a
    failure cancels nothing: it reaches the owner, which decides how to stop. With `async with`,
    the end of the block cancels the tasks and waits for them.
    """

    def __init__(self, report: Callable[[BaseException], None] | None = None) -> None:
        """`report` gets the error of each task that fails; `fail` if None."""
        self._report = report or self.fail
        self._running: set[asyncio.Task[Any]] = set()
        self._shared: dict[Hashable, asyncio.Task[Any]] = {}
        self._failure: BaseException | None = None
        self._has_failed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def start(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run `work` to its end, whether or not the caller waits for it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._end)
        return task

    def share(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Return the running task of `key`; if none runs, start `work()`."""
        task = self.find(key)
        if task is None:
            task = self._shared[key] = self.start(work())
            task.add_done_callback(partial(self._forget, key))
        return task

    def find(self, key: Hashable) -> asyncio.Task[Any] | None:
        """Return the running task of `key`, or None."""
        task = self._shared.get(key)
        return None if task is None or task.done() else task

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(error)

    def _forget(self, key: Hashable, ended: asyncio.Task[Any]) -> None:
        if self._shared.get(key) is ended:  # another may have started since it ended
            del self._shared[key]

    def fail(self, error: BaseException) -> None:
        """Tell the owner of a bug. Only the first one counts."""
        if self._failure is None:
            self._failure = error
            self._has_failed.set()

    def require_sound(self) -> None:
        """Raise the first bug, if there was one."""
        if self._failure is not None:
            raise self._failure

    async def until_failure(self) -> None:
        """Wait, for ever if need be, and raise the first bug."""
        await self._has_failed.wait()
        self.require_sound()

    async def drain(self, within_s: float | None = None) -> None:
        """Wait until no task runs, at most `within_s` seconds; None sets no bound."""
        try:
            async with asyncio.timeout(within_s):
                while self._running:
                    await asyncio.wait(self._running)
        except TimeoutError:
            pass

    async def aclose(self) -> None:
        """Cancel every task, and wait until each has ended."""
        while tasks := [*self._running]:  # one may start another before it ends
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def log_failure(error: BaseException) -> None:
    """Report of tasks whose failure stops nothing: log a bug with its place, other errors short."""
    if isinstance(error, MppSessionError):
        _log.warning("in the background: %s: %s", type(error).__name__, error)
    else:
        _log.error("in the background", exc_info=error)


async def first_of(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all coroutines until the first one ends; raise its error.

    The others are cancelled, and have a bounded time to end.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_FINISH_S)
    for task in done:
        task.result()
