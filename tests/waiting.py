"""Waiting for what a test has begun: until it is so, not for as long as it should take."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

__all__ = ["HASTY_S", "PATIENCE_S", "put_ahead", "until", "within"]

BEAT_S = 0.05
HASTY_S = 0.3
"""After which a program gives up, where a test waits for that."""
PATIENCE_S = 60.0
"""After which something is broken, however busy the machine; half of what a test may take."""


async def until(
    is_so: Callable[[], bool | Awaitable[bool]],
    *,
    within_s: float = PATIENCE_S,
    every_s: float = 0.01,
) -> None:
    """Return once something is so that has no event: a node, a disk, another process, a task.

    Raises:
        TimeoutError: It never was.
    """
    async with asyncio.timeout(within_s):
        while True:
            answer = is_so()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await asyncio.sleep(every_s)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Hold the block to a time that was promised, by a clock which a busy machine slows as well.

    The clock is this event loop: it wakes every twentieth of a second, or later where other
    programs have the processor. A block that waits for a timer or a poll is found out all the same.

    Raises:
        TimeoutError: It took longer.
    """
    async with asyncio.timeout(None) as deadline:

        async def count() -> None:
            for _ in range(round(seconds / BEAT_S)):
                await asyncio.sleep(BEAT_S)
            deadline.reschedule(0)

        counting = asyncio.create_task(count())
        try:
            yield
        finally:
            counting.cancel()


def put_ahead(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the event loop's clock ahead by so many seconds, so that no test waits for them."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: type(loop).time(loop) + seconds)
