"""A stream of server-sent events, paid for event by event (SSE-01 to SSE-07).

A unit is reserved durably and counted before its bytes are sent. So everything sent is charged, and
at most the last write was charged and not sent. When the reservation is used up, the stream asks
for the next voucher, once, and waits. It always ends with a receipt, unless the client is gone.

Events that arrive directly behind each other are sent in one write. No event is delayed while the
producer waits or is slow.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterable, Coroutine, Mapping
from typing import Any, TypeAlias

import msgspec
from starlette.responses import Response

from channel.errors import InsufficientBalanceError, PeerError, ProblemError
from channel.http.asgi import Receive, Scope, Send
from channel.http.metering import Meter, describe_need, require_meter
from channel.http.producer import Producer
from channel.limits import PRODUCER_CLOSE_S_MAX
from channel.state.charges import ChargeOutcome
from channel.tariff import Usage
from channel.wire.sse import (
    CONTENT_TYPE,
    DONE,
    UNITS_FIELD,
    format_event,
    format_event_usage,
    format_need_voucher,
    format_payment_receipt_event,
)

__all__ = ["Event", "Frame", "PaidEventStream", "is_payment_event"]

_log = logging.getLogger(__name__)

_RESERVED = "payment-"
_TOGETHER_S_MAX = 0.0002
"""Events this close together may share a write: the delay is below the cost of a write."""
_WRITE_BYTES_MAX = 16 * 1024
_ENDS = (b"\n\n", b"\n\r\n", b"\n\r", b"\r\r", b"\r\r\n")
_OURS = re.compile(
    rb"(?:\A\xef\xbb\xbf|\A|[\r\n])(?:event: ?payment-|payment-u(?:nits|sage))"
)  # on any line


class Event(msgspec.Struct, frozen=True):
    """One event with any text; it cannot become an event of the protocol (F-55)."""

    data: str
    event: str | None = None
    units: int = 1
    """Its price in units; 0 for an event that sells nothing, such as a `[DONE]`. A batch may cost
    many: the event states it, and payers accept up to the bytes of its text and their step."""
    held: Usage | int = 0
    """Units beyond its own that must be paid for before it is sent, and may be counted later."""
    usage: Usage | None = None
    """Its units by kind, in place of `units`: `{"input_token": 57, "output_token": 1}`. The event
    states them."""


class Frame(msgspec.Struct, frozen=True):
    """One whole event as another server sent it. A missing blank line at its end is added."""

    raw: bytes
    units: int = 1
    """Its price in units, which another server may state."""
    held: Usage | int = 0
    usage: Usage | None = None
    """As for an `Event`: a line at its beginning states them."""


Chunk: TypeAlias = str | Event | Frame


class PaidEventStream(Response):
    """A response for a metered route, for FastAPI, Starlette, or any ASGI application.

        return PaidEventStream(tokens())

    `events` is closed within two seconds when the client leaves or stops paying. In an async
    generator, cancel the generation in `finally`.
    """

    media_type = CONTENT_TYPE

    def __init__(
        self,
        events: AsyncIterable[Chunk],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.events = events
        self.init_headers(
            {
                "cache-control": "private, no-cache, no-transform",
                "x-accel-buffering": "no",
                **(headers or {}),
            }
        )
        # The length is unknown, and `init_headers` may have written that of an empty body.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream.

        Raises:
            ProblemError: It cannot begin; the gate answers.
            ConfigError: The route is not metered.
        """
        meter = require_meter(scope)
        stream = _Stream(self.events, meter, send)
        try:
            await meter.start_stream()
            meter.has_counted = True  # every event is counted from now on
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await stream.run(receive)
        finally:
            await stream.close()


class _Stream:
    """One run of a stream: a pump, and the events that may end it from outside."""

    def __init__(self, events: AsyncIterable[Chunk], meter: Meter, send: Send) -> None:
        self._producer = Producer(events, self._before_waiting)
        self._meter = meter
        self._reservation = meter.reservation
        self._send = send
        self._frames: list[bytes] = []  # covered, but neither counted nor sent yet
        self._frames_bytes = 0
        self._frames_units = 0  # of the main kind
        self._frames_usage: dict[str, int] = {}  # of other kinds
        self._is_idle = False  # waiting for the producer or for a voucher: safe to interrupt
        self._pump_task: asyncio.Task[None] | None = None

    async def run(self, receive: Receive) -> None:
        loop = asyncio.get_running_loop()
        gone = loop.create_task(_wait_until_gone(receive))
        self._pump_task = pump = loop.create_task(self._pump(gone))
        stopped = loop.create_task(self._reservation.stopped.wait())
        try:
            await asyncio.wait({pump, gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done() and not gone.done():
                if self._is_idle:
                    pump.cancel()
                await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            is_gone = gone.done()
        finally:
            gone.cancel()
            stopped.cancel()
            await self.close()
        if is_gone:
            self._meter.is_client_gone = True
            self._reservation.outcome = ChargeOutcome.LEFT
            await self._reservation.finish()  # only what was sent is spent (SSE-07)
            return
        failure = None if pump.cancelled() else pump.exception()
        await self._end(is_cut_off=failure is not None)
        if failure is not None:
            raise failure

    async def _end(self, *, is_cut_off: bool) -> None:
        """Send the receipt (SSE-04). After a failure the body stays without its end."""
        await self._reservation.finish()
        event = format_payment_receipt_event(self._meter.receipt())
        await self._send({"type": "http.response.body", "body": event, "more_body": True})
        if not is_cut_off:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, gone: "asyncio.Task[None]") -> None:
        try:
            await self._pump_all(gone)
        except Exception:
            await self._write()  # what arrived before the failure
            raise
        await self._write()

    async def _pump_all(self, gone: "asyncio.Task[None]") -> None:
        reservation, clock = self._reservation, time.monotonic
        came_at = 0.0
        reservation.outcome = ChargeOutcome.FAILED  # until the producer has ended
        while reservation.stopped_by is None:
            self._is_idle = True
            try:
                chunk = await self._producer.next()
            except StopAsyncIteration:
                reservation.outcome = ChargeOutcome.DONE
                return
            finally:
                self._is_idle = False
            if gone.done():
                return
            if isinstance(chunk, str):  # nearly every one: its path is kept short
                frame, units, held, others = format_event(chunk), 1, 0, None
            else:
                frame, units, held, others = _read_chunk(chunk, reservation.main_kind)
            if (
                others is not None
                or self._frames_usage
                or reservation.covered_units < self._frames_units + units + held
            ) and not await self._is_room(units + held, others):
                return
            now = clock()
            self._frames.append(frame)
            self._frames_bytes += len(frame)
            self._frames_units += units
            if others is not None:
                self._frames_usage = _sum(self._frames_usage, others[0])
            if now - came_at > _TOGETHER_S_MAX or self._frames_bytes >= _WRITE_BYTES_MAX:
                await self._write()
            came_at = now

    async def _write(self) -> None:
        """Send what is covered; count it before, since an interrupted send may be out (F-42)."""
        if not self._frames:
            return
        body = self._frames[0] if len(self._frames) == 1 else b"".join(self._frames)
        units, usage = self._frames_units, self._frames_usage
        self._frames.clear()
        self._frames_bytes = self._frames_units = 0
        if usage:
            self._frames_usage = {}
            self._reservation.take(_sum(usage, {self._reservation.main_kind: units}))
        elif units:
            self._reservation.take(units)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def _before_waiting(self) -> Coroutine[Any, Any, None] | None:
        return self._write_before_waiting() if self._frames else None

    async def _write_before_waiting(self) -> None:
        self._is_idle = False
        await self._write()
        self._is_idle = True
        if self._reservation.stopped_by is not None:  # stopped while not idle
            raise asyncio.CancelledError

    async def _is_room(self, units: int, others: "_Others | None") -> bool:
        """Whether an event is reserved beside those that wait to be sent."""
        reservation = self._reservation
        main = reservation.main_kind
        needed = _sum({main: units}, *(others or ()))
        waiting = _sum({main: self._frames_units}, self._frames_usage)
        if reservation.covered >= reservation.price_of(_sum(waiting, needed)):
            return True
        await self._write()
        price = reservation.price_of(needed)
        return reservation.covered >= price or await self._is_covered(price)

    async def _is_covered(self, amount: int) -> bool:
        """Whether the amount is reserved, after waiting for a voucher if necessary (SSE-03)."""
        try:
            await self._reservation.cover(amount)
        except InsufficientBalanceError:
            return await self._wait_for_voucher(amount)
        except ProblemError as error:
            return self._ends_by(error)
        return True

    def _ends_by(self, error: ProblemError) -> bool:
        """Return False when the stream simply ends here: the channel ended, or it was stopped.

        Raises:
            OperatorError: The operator's fault; the stream cannot continue (F-51).
        """
        if isinstance(error, PeerError) or error is self._reservation.stopped_by:
            return False
        raise error

    async def _wait_for_voucher(self, amount: int) -> bool:
        announced = -1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._meter.pause_s
        async with self._reservation.watch() as watch:
            while True:
                try:
                    await self._reservation.cover(amount)
                except InsufficientBalanceError as need:
                    if need.required_cumulative != announced:  # once per threshold (F-60)
                        announced = need.required_cumulative
                        await self._announce(need)
                except ProblemError as error:
                    return self._ends_by(error)
                else:
                    return True
                remaining_s = deadline - loop.time()
                if remaining_s <= 0 or self._reservation.stopped_by is not None:
                    return False  # stopped while not idle, or not paid in time
                self._is_idle = True
                await watch.changed(remaining_s)
                self._is_idle = False

    async def _announce(self, need: InsufficientBalanceError) -> None:
        event = format_need_voucher(describe_need(self._reservation.key.channel_id, need))
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def close(self) -> None:
        """Stop the pump and close the producer, bounded in time (F-56)."""
        pump = self._pump_task
        if pump is not None and not pump.done():
            pump.cancel()
            await asyncio.wait({pump}, timeout=PRODUCER_CLOSE_S_MAX)
            if not pump.done():
                _log.warning("a stream's producer ignores its cancellation")
                return
        await self._producer.close()


_Others: TypeAlias = tuple[Usage, Usage]
"""What an event uses and what it holds, of other kinds than the main one."""


def _read_chunk(chunk: Event | Frame, main: str) -> tuple[bytes, int, int, _Others | None]:
    """Return the bytes to send, the units that it uses and holds, and those of other kinds."""
    used = {main: chunk.units} if chunk.usage is None else chunk.usage
    held = {main: chunk.held} if isinstance(chunk.held, int) else chunk.held
    units = used.get(main, 0)
    if units < 0:  # summed up with other events, it would hide what they cost
        raise ValueError(f"expected an event of at least 0 units, found {units}")
    others = _without(used, main), _without(held, main)
    kinds = others if any(others) else None
    if isinstance(chunk, Event):
        if (chunk.event or "").startswith(_RESERVED):
            raise ValueError(
                f"{chunk.event}: the gate reserves event names that begin with {_RESERVED}; "
                "use another name"
            )
        stated = used if others[0] else None
        frame = format_event(chunk.data, chunk.event, units=units, usage=stated)
        if units == 1 and stated is None and chunk.data == DONE:  # readers count nothing for it
            frame = f"{UNITS_FIELD}: 1\n".encode() + frame
        return frame, units, held.get(main, 0), kinds
    raw = chunk.raw
    if is_payment_event(raw):
        # Another server's payment events have no meaning here.
        return b": dropped\n\n", 0, held.get(main, 0), None
    # Without its end it would merge with the next event: a forgery's other half, or the receipt.
    frame = raw if raw.endswith(_ENDS) else raw + b"\n\n"
    if chunk.usage is not None:
        frame = format_event_usage(used if others[0] else units).encode("ascii") + frame
    return frame, units, held.get(main, 0), kinds


def is_payment_event(raw: bytes) -> bool:
    """Whether another server's event poses as one of the protocol: a stream drops it, uncharged."""
    return (b"event" in raw or b"payment-" in raw) and _OURS.search(raw) is not None


def _without(usage: Usage, main: str) -> Usage:
    return {kind: units for kind, units in usage.items() if units and kind != main}


def _sum(*usages: Usage) -> dict[str, int]:
    total: dict[str, int] = {}
    for usage in usages:
        for kind, units in usage.items():
            if units:
                total[kind] = total.get(kind, 0) + units
    return total


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
