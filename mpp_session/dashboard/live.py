"""Server-sent events: the figures and live streams of the overview, as they change."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec

__all__ = ["BEAT_S", "events"]

BEAT_S: Final = 0.5
"""How often the state is compared with what was sent."""
_QUIET_BEATS: Final = 20


async def events(state: Callable[[], Awaitable[dict[str, Any]]]) -> AsyncIterator[bytes]:
    """Yield an event when the state has changed, and a comment when it has long not."""
    sent, quiet = b"", 0
    while True:
        now = msgspec.json.encode(await state())
        if now != sent:
            sent, quiet = now, 0
            yield b"event: state\ndata: " + now + b"\n\n"
        else:
            quiet += 1
            if quiet >= _QUIET_BEATS:
                quiet = 0
                yield b": still here\n\n"
        await asyncio.sleep(BEAT_S)
