"""A settler in this process, for tests of what needs one beside it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mpp_session.process.settler import run_settler
from mpp_session.settings import SettlerConfig


@asynccontextmanager
async def settling(config: SettlerConfig) -> AsyncIterator[None]:
    """Settle, from the first moment of the block to its last."""
    stopping, ready = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(
        run_settler(config, announce=lambda *_: ready.set(), stopping=stopping)
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield
    finally:
        stopping.set()
        await running
