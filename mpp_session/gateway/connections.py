"""The connections of clients: how many there may be, and how long each may leave something undone.

uvicorn speaks HTTP and knows neither. A client that never ends its request's head, sends its body
byte by byte, or does not read what it asked for costs it nothing, and the gateway a descriptor and
memory. So the door looks at every connection twice a second, and at the shape of each head before
h11 does: its patterns take time in the square of the words in one line (O-22, O-24, O-26).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any, Final

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from channel.http.request import read_client
from channel.limits import (
    CHUNK_BYTES_MEAN_MIN,
    CHUNKS_SMALL_MAX,
    HEAD_LINES_MAX,
    HEAD_WORDS_MAX,
    READ_BYTES_MAX,
    TARGET_BYTES_MAX,
)
from mpp_session.settings import Listen

__all__ = ["SWEEP_TICKS", "Connection", "Door", "Stage", "connections_max", "protocol"]

_log: Final = logging.getLogger(__name__)

SWEEP_TICKS: Final = 5
"""uvicorn's ticks of a tenth of a second between two looks."""
_FILES_KEPT: Final = 64
"""Descriptors for the books, the chain's nodes, the log, and connections about to be refused."""
_EVICTED_SHARE: Final = 16
_BODY_GRACE_S: Final = 5.0
"""The gate answers a body that is late; the door ends what has no gate, a little later."""
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)


def connections_max(settings: Listen, open_files: int) -> int:
    """Return how many clients may be connected: each may need a connection to the model server."""
    most = max(1, (open_files - _FILES_KEPT) // 2)
    if most < settings.connections_max:
        _log.warning(
            "%d clients at most can be connected at a time, because this process may open %d "
            "files; raise that limit (ulimit -n) for `listen.connections_max` = %d",
            most,
            open_files,
            settings.connections_max,
        )
    return min(most, settings.connections_max)


class Stage(Enum):
    """What a connection waits for its client to do."""

    HEAD = auto()
    """To send a whole head, of its first request or of the next one."""
    BODY = auto()
    READING = auto()
    """To read what was sent to it."""
    LEAVING = auto()
    """To read the rest; then it is closed."""


class Door:
    """Lets clients in, and shows out those that leave something undone for too long."""

    def __init__(
        self,
        settings: Listen,
        connections_max: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max = connections_max
        self._now = now
        self._limits = {
            Stage.HEAD: settings.head_timeout_s,
            Stage.BODY: settings.body_timeout_s + _BODY_GRACE_S,
            Stage.READING: settings.read_timeout_s,
            Stage.LEAVING: settings.read_timeout_s,
        }

    def admit(self, newcomer: "Connection", connections: set[Any]) -> bool:
        """Make room for a connection, if need be at the cost of idle ones; False if there is none.

        The address with most of the idle ones loses its oldest first, so that a client that
        takes many connections takes them from itself.
        """
        if len(connections) <= self._max:
            return True
        idle = [each for each in connections if each is not newcomer and each.is_idle()]
        held = Counter(each.source for each in idle)
        idle.sort(key=lambda each: (-held[each.source], each.made_at))
        leaving = idle[: max(1, self._max // _EVICTED_SHARE)]
        for each in leaving:
            connections.discard(each)
            each.transport.abort()
        _log.warning(
            "%d clients are connected, as many as may be; %s",
            self._max,
            f"{len(leaving)} idle ones were let go" if leaving else "one was refused",
        )
        return bool(leaving)

    def sweep(self, connections: set[Any]) -> None:
        """End the connections that have waited for their client for too long."""
        now = self._now()
        for each in [*connections]:
            stage = each.overdue(now, self._limits)
            if stage is not None:
                _log.info("a client was let go: %s took too long", stage.name.lower())
                each.transport.abort()


class Connection(H11Protocol):
    """One client's connection."""

    def __init__(self, *, door: Door, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.conn = _Http(h11.SERVER, self.config.h11_max_incomplete_event_size or READ_BYTES_MAX)
        self.made_at = time.monotonic()
        self.source = b""
        self._door = door
        self._pauses = 0
        self._seen: object = None
        self._since = 0.0

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or refuse it at once."""
        transport.max_size = READ_BYTES_MAX  # asyncio's: what one turn of the loop reads
        super().connection_made(transport)
        self.source = read_client({"client": self.client})
        if not self._door.admit(self, self.connections):
            transport.write(_BUSY)
            transport.close()

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than is written."""
        self._pauses += 1
        super().pause_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; a client that is being answered is cut off."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()

    def is_idle(self) -> bool:
        """Say whether nothing is being done for the client."""
        return self.cycle is None or self.cycle.response_complete

    def overdue(self, now: float, limits: dict[Stage, float]) -> Stage | None:
        """Return what the client has been waited for too long, and None if all is well."""
        stage = self._stage()
        seen = (stage, self.cycle, self._pauses)
        if stage is None or seen != self._seen:
            self._seen, self._since = seen, now
            return None
        return stage if now - self._since > limits[stage] else None

    def _stage(self) -> Stage | None:
        if self.transport.is_closing():
            return Stage.LEAVING
        if self.flow.write_paused:
            return Stage.READING
        if self.is_idle():
            return Stage.HEAD
        return Stage.BODY if self.cycle.more_body else None


class _Http(h11.Connection):
    """h11, with bounds on what is cheap to send and dear to read."""

    def __init__(self, role: type[h11.SERVER], head_bytes_max: int) -> None:
        super().__init__(role, head_bytes_max)
        self._receive_buffer = _Lines(head_bytes_max)
        self._chunks = 0
        self._body_bytes = 0

    def next_event(self) -> Any:
        """Return what came next.

        Raises:
            h11.RemoteProtocolError: It is no HTTP, or a body in crumbs.
        """
        event = super().next_event()
        if type(event) is h11.Data:
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            small = self._chunks - CHUNKS_SMALL_MAX
            if small > 0 and self._body_bytes < small * CHUNK_BYTES_MEAN_MIN:
                raise h11.RemoteProtocolError("chunks too small")
        elif type(event) is h11.Request:
            self._chunks = self._body_bytes = 0
        return event


class _Lines(ReceiveBuffer):
    """What has come and is not read yet. Heads and trailers leave it through one method."""

    def __init__(self, head_bytes_max: int) -> None:
        super().__init__()
        self._head_bytes_max = head_bytes_max

    def maybe_extract_lines(self) -> list[bytearray] | None:
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        words = sum(line.count(b" ") + line.count(b"\t") for line in lines)
        if len(lines) > HEAD_LINES_MAX or words > HEAD_WORDS_MAX:
            raise h11.RemoteProtocolError("too many header fields, or words in them", 431)
        if sum(map(len, lines)) > self._head_bytes_max:  # h11 looks while a head is not whole
            raise h11.RemoteProtocolError("the head is too long", 431)
        if lines and len(lines[0]) > TARGET_BYTES_MAX:
            raise h11.RemoteProtocolError("the request line is too long", 414)
        return lines


def protocol(door: Door) -> Any:
    """Return what makes uvicorn's protocol for a connection."""
    return partial(Connection, door=door)
