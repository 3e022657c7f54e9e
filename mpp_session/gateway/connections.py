"""Bounds the number of client connections, and how long each may delay.

uvicorn bounds neither. A client that never ends a request's head, sends its body byte by byte, or
does not read its answer has no cost, and the gateway spends a descriptor and memory. The gateway
therefore checks every connection twice a second. It also checks each head before h11 does, because
h11's patterns take time quadratic in the words of a line (O-22, O-24, O-26).
"""

import asyncio
import contextlib
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

__all__ = [
    "SWEEP_TICKS",
    "Connection",
    "Door",
    "JoinedWrites",
    "Stage",
    "connections_max",
    "protocol",
]

_log: Final = logging.getLogger(__name__)

SWEEP_TICKS: Final = 5
"""uvicorn ticks, of a tenth of a second, between two checks."""
_FILES_KEPT: Final = 64
"""Descriptors for the ledger, nodes, the log, and connections about to be refused."""
_EVICTED_SHARE: Final = 16
_BODY_GRACE_S: Final = 5.0
"""The gate answers a late body; this extra time is for bodies without a gate."""
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)


def connections_max(settings: Listen, open_files: int) -> int:
    """Return how many clients may connect: each may need a connection to the model server."""
    most = max(1, (open_files - _FILES_KEPT) // 2)
    if most < settings.connections_max:
        _log.warning(
            "at most %d clients can connect at a time, because this process may open %d files: "
            "raise that limit (ulimit -n) for `listen.connections_max` = %d",
            most,
            open_files,
            settings.connections_max,
        )
    return min(most, settings.connections_max)


class Stage(Enum):
    """What a connection waits for its client to do."""

    HEAD = auto()
    """Send a whole head, of the first or the next request."""
    BODY = auto()
    READING = auto()
    """Read what was sent to it."""
    LEAVING = auto()
    """Read the rest; then the connection is closed."""


class Door:
    """Admits clients, and disconnects those that delay for too long."""

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
        """Make room for a connection, closing idle ones if necessary; False if there is no room.

        The address with the most idle connections loses its oldest first, so that a client that
        opens many connections takes them from itself.
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
            "%d clients are connected, the most allowed; %s",
            self._max,
            f"{len(leaving)} idle ones were closed" if leaving else "one was refused",
        )
        return bool(leaving)

    def sweep(self, connections: set[Any]) -> None:
        """Close connections whose clients have delayed for too long."""
        now = self._now()
        for each in [*connections]:
            stage = each.overdue(now, self._limits)
            if stage is not None:
                _log.info("a client was disconnected: %s took too long", stage.name.lower())
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
        """Accept a connection, or refuse it immediately."""
        with contextlib.suppress(AttributeError):  # uvloop reads 256,000 bytes in one turn
            transport.max_size = READ_BYTES_MAX  # asyncio's: bytes read in one turn of the loop
        joined: Any = JoinedWrites(transport, self.loop)
        super().connection_made(joined)
        self.source = read_client({"client": self.client})
        if not self._door.admit(self, self.connections):
            transport.write(_BUSY)
            transport.close()

    def pause_writing(self) -> None:
        """Record that the client reads more slowly than the gateway writes."""
        self._pauses += 1
        super().pause_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP; disconnect a client in the middle of an answer."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()

    def is_idle(self) -> bool:
        """Whether the connection has no request."""
        return self.cycle is None or self.cycle.response_complete

    def overdue(self, now: float, limits: dict[Stage, float]) -> Stage | None:
        """Return what the client has delayed for too long; None if nothing."""
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


class JoinedWrites:
    """A transport that sends what is written in one turn of the event loop in one system call.

    uvicorn writes the head of an answer, its body and its end one by one.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send bytes at the end of this turn, or now if many wait: the transport bounds them."""
        if not data:
            return
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= READ_BYTES_MAX:
            self._send()

    def close(self) -> None:
        """Close the connection once everything written is sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self._transport.is_closing():
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))


class _Http(h11.Connection):
    """h11, with bounds on input that is cheap to send and expensive to parse."""

    def __init__(self, role: type[h11.SERVER], head_bytes_max: int) -> None:
        super().__init__(role, head_bytes_max)
        self._receive_buffer = _Lines(head_bytes_max)
        self._chunks = 0
        self._body_bytes = 0

    def next_event(self) -> Any:
        """Return the next event.

        Raises:
            h11.RemoteProtocolError: The bytes are not HTTP, or a body comes in tiny chunks.
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
    """Received bytes that are not parsed yet. Heads and trailers leave it through one method."""

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
        if sum(map(len, lines)) > self._head_bytes_max:  # h11 checks only incomplete heads
            raise h11.RemoteProtocolError("the head is too long", 431)
        if lines and len(lines[0]) > TARGET_BYTES_MAX:
            raise h11.RemoteProtocolError("the request line is too long", 414)
        return lines


def protocol(door: Door) -> Any:
    """Return a factory of connections in the form of uvicorn's protocol class."""
    return partial(Connection, door=door)
