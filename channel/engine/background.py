"""Work that must be finished even when the request that began it is gone (F-42)."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from channel.errors import MppSessionError

__all__ = ["Background"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Background:
    """Owns tasks, so that they are neither lost to the garbage collector nor left behind."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` to its end, whoever waits for it or not."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, MppSessionError):
            _log.warning("in the background: %s: %s", type(error).__name__, error)
        elif error is not None:
            _log.error("in the background", exc_info=error)

    async def close(self) -> None:
        """Wait for all that is running."""
        while self._tasks:
            await asyncio.wait(self._tasks)
