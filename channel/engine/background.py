"""Tasks that must finish even when the request that started them is gone (F-42)."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from channel.errors import MppSessionError

__all__ = ["Background"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Background:
    """Owns tasks, so that the garbage collector drops none and `close` can wait for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` to its end, whether or not the caller waits for it."""
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
        """Wait for every running task."""
        while self._tasks:
            await asyncio.wait(self._tasks)
