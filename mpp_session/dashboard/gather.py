"""Gathers what every worker's feed keeps, over Unix sockets in the gateway's own folder.

Each worker but the first listens there, and the first one asks when a page is open. A worker that
does not answer in time, because it has just been killed, is left out of that page.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from channel.limits import FEED_BYTES_MAX
from mpp_session.dashboard.feed import CYCLES_KEPT, RUNNING_KEPT, Cycle, Feed, Refused, Seen

__all__ = ["Feeds", "merge", "serve_feed"]

_log: Final = logging.getLogger(__name__)

_PATIENCE_S: Final = 1.0


class Feeds:
    """Reads what the pages show of requests, of this process and all other workers."""

    def __init__(self, feed: Feed, folder: Path | None = None, workers: int = 1) -> None:
        """Ask the workers that `serve_feed` serves in a folder: 1 up to `workers`, exclusive.

        Without a folder this process is the only one.
        """
        self._feed = feed
        self._paths = [] if folder is None else [_path(folder, each) for each in range(1, workers)]
        self._reading: asyncio.Task[Seen] | None = None

    async def read(self) -> Seen:
        """Return it. Pages that ask meanwhile share the answer."""
        if not self._paths:
            return self._feed.read()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    async def _read(self) -> Seen:
        others = await asyncio.gather(*map(_ask, self._paths))
        return merge([self._feed.read(), *(each for each in others if each is not None)])


async def serve_feed(feed: Feed, folder: Path, number: int) -> None:
    """Answer each connection with the feed, until cancelled. `number` is the worker's, not 0.

    `folder` must be readable by this user alone.
    """

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(msgspec.msgpack.encode(feed.read()))
            await asyncio.wait_for(writer.drain(), _PATIENCE_S)
        writer.close()

    path = _path(folder, number)
    await asyncio.to_thread(path.unlink, missing_ok=True)  # of this worker before it was killed
    server = await asyncio.start_unix_server(answer, path)
    async with server:
        await server.serve_forever()


async def _ask(path: Path) -> Seen | None:
    """Return what a worker has seen; None if it does not answer."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=FEED_BYTES_MAX)
            try:
                sent = await _read_all(reader)
            finally:
                writer.close()
                await writer.wait_closed()
        return msgspec.msgpack.decode(sent, type=Seen)
    except (OSError, TimeoutError, msgspec.DecodeError) as error:
        _log.debug("a worker's feed at %s cannot be read: %s", path, error)
        return None


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while part := await reader.read(64 * 1024):
        parts.append(part)
        if sum(map(len, parts)) > FEED_BYTES_MAX:
            raise OSError(f"expected {FEED_BYTES_MAX} bytes at most")
    return b"".join(parts)


def merge(seen: Sequence[Seen]) -> Seen:
    """Add up what several processes have seen."""
    refused: dict[tuple[str, int], Refused] = {}
    for each in sorted((one for part in seen for one in part.refused), key=attrgetter("last_at")):
        key = (each.problem_type, each.status)
        before = refused.pop(key, None)
        number = each.number + (0 if before is None else before.number)
        refused[key] = replace(each, number=number)
    earned: Counter[int] = Counter()
    for part in seen:
        earned.update(part.earned)
    cycles = _join([cycle for part in seen for cycle in part.cycles])
    live = sorted((one for part in seen for one in part.live), key=attrgetter("began_at"))
    return Seen(
        started_at=min(part.started_at for part in seen),
        live=live[-RUNNING_KEPT:],
        cycles=cycles[-CYCLES_KEPT:],
        refused=list(refused.values()),
        earned=dict(earned),
        paid_requests=sum(part.paid_requests for part in seen),
    )


def _join(cycles: Sequence[Cycle]) -> list[Cycle]:
    """Return cycles in order, each that one worker began and another went on with as one."""
    begun = {each: cycle for cycle in cycles for each in cycle.issued}
    joined: dict[int, Cycle] = {}
    gone: set[int] = set()
    for cycle in sorted(cycles, key=attrgetter("at")):
        first = None if cycle.answers is None else begun.get(cycle.answers)
        if first is None or first is cycle or id(first) in gone:
            joined[id(cycle)] = cycle
            continue
        gone.add(id(first))
        joined.pop(id(first), None)
        joined[id(cycle)] = _continue(first, cycle)
    return sorted(joined.values(), key=attrgetter("at"))


def _continue(first: Cycle, then: Cycle) -> Cycle:
    """Return a cycle with the steps of both: the monotonic clock is the machine's."""
    later_s = then.began - first.began
    credential, *rest = then.steps
    steps = [replace(credential, text="answers the challenge"), *rest]
    moved = [replace(step, after_s=max(0.0, step.after_s + later_s)) for step in steps]
    return replace(then, at=first.at, began=first.began, steps=[*first.steps, *moved])


def _path(folder: Path, number: int) -> Path:
    return folder / f"feed-{number}.sock"
