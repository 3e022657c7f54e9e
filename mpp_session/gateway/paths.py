"""Sells the paths of any HTTP server: holds what a request can cost, asks, charges, passes on.

held       the greatest cost of an answer in one piece; a step of a stream
asked      the server, only after that is durable: method, path, query, headers and body
charged    each piece or event before it is passed on; an answer costs nothing if its status is not
           2xx
stated     usage that the server states in a header or its JSON; an answer that does not is not
           passed on, or costs the maximum, as its row says
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as AppRoute
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from channel.errors import BadRequestError, WireError
from channel.http import Event, Frame
from channel.http.events import is_payment_event
from channel.http.metering import METER, Meter, metered, require_meter
from channel.limits import LENGTH_DIGITS_MAX, RESERVATION_STEP_UNITS, STORED_RESPONSE_BYTES_MAX
from channel.state.charges import ChargeOutcome
from channel.wire.sse import CONTENT_TYPE, EventSplitter, parse_event
from mpp_session.gateway.abandoned import AbandonedWork
from mpp_session.gateway.answers import GENERATION_HEADER, format_error
from mpp_session.gateway.asking import ClosingStream, read_request, unless_gone, wait_until_gone
from mpp_session.gateway.errors import NotServedError, UpstreamError
from mpp_session.gateway.events import is_event_stream
from mpp_session.gateway.free import problem_response, target_of
from mpp_session.gateway.generation import read_answer_id
from mpp_session.gateway.measuring import Measure
from mpp_session.gateway.upstream import (
    Upstream,
    UpstreamAnswer,
    all_headers,
    forwarded_headers,
    read_body,
    read_pieces,
)
from mpp_session.prices.table import Listing, PriceTable
from mpp_session.settings import Upstream as UpstreamSettings

__all__ = ["PathAnswers"]

_log: Final = logging.getLogger(__name__)

_LOG_INTERVAL_S: Final = 60.0
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class PathAnswers:
    """All paths of the price table, as an ASGI application behind the gate."""

    def __init__(
        self,
        upstream: Upstream,
        settings: UpstreamSettings,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sell nothing yet. `now` measures seconds."""
        self.on_unreported: Callable[[str, str], None] | None = None
        """Called with method and path, and a kind that an answer should have stated."""
        self._upstream = upstream
        self._bytes_max = settings.body_bytes_max
        self._abandoned = AbandonedWork(settings.abandoned_units_max)
        self._now = now
        self._logged_at = -_LOG_INTERVAL_S
        self._router = Router(default=_not_served)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._router(scope, receive, send)

    def sell(self, table: PriceTable) -> None:
        """Answer the paths of this table from now on."""
        routes = []
        for sold in table.paths():
            method, _, path = sold.partition(" ")
            listings = [one for one in table.listings if one.row.sold_path == sold]
            routes.append(AppRoute(path, partial(self._answer, listings), methods=[method]))
        self._router = Router(routes, default=_not_served, redirect_slashes=False)

    async def _answer(self, listings: Sequence[Listing], request: Request) -> Response:
        """Answer one paid request.

        Raises:
            PeerError: The request cannot be priced; nothing is charged.
            UpstreamError: The server failed; nothing is charged.
        """
        if METER not in request.scope:  # no row counts now
            return problem_response(NotServedError("This gateway does not serve this path."))
        meter = require_meter(request.scope)
        # The tariff of the challenge that paid: prices may have changed since.
        tariff = meter.reservation.tariff
        row = next((one.row for one in listings if one.tariff == tariff), listings[0].row)
        measure = Measure(row, tariff, asked_at=self._now())
        if not measure.is_whole:
            raise NotServedError(f"{row.sold_path} is priced otherwise by now. Ask again.")
        body = await read_request(request, self._bytes_max)
        job = _Job(request, body, row.sold_path or "", measure, meter)
        if _wants_events(request, body):
            response = await self._stream(job)
        elif measure.is_bounded:
            response = await self._whole(job, charges_most=row.unreported == "maximum")
        else:
            raise BadRequestError(
                f"{row.sold_path} has no greatest price, so it is sold as an event stream alone. "
                f"Send `Accept: {CONTENT_TYPE}`."
            )
        if 200 <= response.status_code < 300:  # noqa: PLR2004
            response.headers[GENERATION_HEADER] = f"gen-{meter.reservation.id.hex()}"
        return response

    async def _whole(self, job: "_Job", *, charges_most: bool) -> Response:
        """Pass an answer on in one piece, or in pieces as they come."""
        meter, measure = job.meter, job.measure
        async with AsyncExitStack() as opening, metered(job.request.scope):
            await meter.hold(measure.greatest())  # durable after this
            response = await self._ask(job, opening)
            headers = all_headers(response)
            if not response.is_success:
                return Response(await read_body(response), response.status_code, headers)
            if is_event_stream(response):
                raise UpstreamError(
                    f"The server answered with an event stream. Send `Accept: {CONTENT_TYPE}` if "
                    "you want one."
                )
            measure.read_headers(response.headers)
            if not (measure.reads_body or _is_small(response)):
                self._require_stated(job, charges_most=charges_most)
                return _Pieces(response, opening.pop_all(), job, headers, self._now)
            try:
                body = await unless_gone(job.request, read_body(response))
            except ClientDisconnect:
                await self._leave(job)
                raise
            measure.read_body(body)
            is_stated = self._require_stated(job, charges_most=charges_most)
            used = measure.piece(len(body), self._now()) if is_stated else measure.greatest()
            await meter.spend(used)
            meter.reported = measure.reported or None
            meter.reservation.response_id = read_answer_id(body)
            self._abandoned.make_up(meter.reservation.key, RESERVATION_STEP_UNITS)
            return Response(body, response.status_code, headers)

    async def _stream(self, job: "_Job") -> Response:
        meter, measure = job.meter, job.measure
        await meter.hold(measure.first())
        async with AsyncExitStack() as opening:
            response = await self._ask(job, opening)
            headers = all_headers(response)
            if not response.is_success:
                return Response(await read_body(response), response.status_code, headers)
            if not is_event_stream(response):
                raise UpstreamError("The server did not answer with an event stream.")
            measure.read_headers(response.headers)
            events = _Events(response, opening.pop_all(), job, self)
        headers.pop("content-type", None)
        return ClosingStream(events, headers=headers)

    async def _ask(self, job: "_Job", opening: AsyncExitStack) -> UpstreamAnswer:
        """Send the request, and return the head of the answer.

        Raises:
            ClientDisconnect: The client left; what is measured until then is charged.
            UpstreamError: The server did not answer.
        """
        request = job.request
        asking = opening.enter_async_context(
            self._upstream.send(
                request.method,
                target_of(request),
                forwarded_headers(request.headers),
                job.body or None,
            )
        )
        try:
            return await unless_gone(request, asking)
        except ClientDisconnect:
            await self._leave(job)
            raise

    async def _leave(self, job: "_Job") -> None:
        """Charge an answer whose client left before it: the request, and the time that it took.

        What only the server counts is not known. A channel that leaves such answers too often pays
        for the whole next one in advance, and stays charged if it leaves that.
        """
        reservation, measure = job.meter.reservation, job.measure
        if measure.unreported:
            must_prepay = self._abandoned.must_prepay(reservation.key)
            self._abandoned.add(reservation.key, RESERVATION_STEP_UNITS)
            if must_prepay:
                reservation.take(measure.greatest())
        await _charge_left(job, self._now())

    def _require_stated(self, job: "_Job", *, charges_most: bool) -> bool:
        """Return whether the server stated all that it should.

        Raises:
            UpstreamError: It did not, and the answer must not be passed on.
        """
        missing = job.measure.unreported
        if not missing:
            return True
        self.note_unreported(job.sold, missing)
        if not charges_most:
            raise UpstreamError(f"The server did not state its usage: {', '.join(missing)}.")
        return False

    def note_unreported(self, sold: str, missing: Sequence[str]) -> None:
        """Count and log an answer without a usage that the server should have stated."""
        for kind in missing:
            if self.on_unreported is not None:
                self.on_unreported(sold, kind)
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            _log.warning(
                "an answer of %s states no %s as a whole number: check `usage` of its row",
                sold,
                ", ".join(missing),
            )

    def now(self) -> float:
        """Return the time by which seconds are measured."""
        return self._now()


class _Job(msgspec.Struct, frozen=True):
    """One request on its way."""

    request: Request
    body: bytes
    sold: str
    """Method and path as the row states them."""
    measure: Measure
    meter: Meter


async def _charge_left(job: _Job, at: float) -> None:
    """Charge a client that left for the request, and for the time until now, durably."""
    reservation = job.meter.reservation
    used = job.measure.left(at)
    if used and reservation.price_of(used) <= reservation.covered:
        reservation.take(used)
    await reservation.flush()


class _Pieces(Response):
    """An answer that is passed on as it comes, each piece after it is paid for, durably."""

    def __init__(
        self,
        response: UpstreamAnswer,
        connection: AsyncExitStack,
        job: _Job,
        headers: dict[str, str],
        now: Callable[[], float],
    ) -> None:
        super().__init__(None, response.status_code, headers)
        length = response.headers.get("content-length")
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        if length is not None and "content-encoding" not in response.headers:
            self.raw_headers.append((b"content-length", length.encode("latin-1")))
        self._response = response
        self._connection = connection
        self._job = job
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on.

        Raises:
            ClientDisconnect: The client left; what was sent is charged.
        """
        del scope
        async with self._connection:
            pump = asyncio.ensure_future(self._pump(send))
            gone = asyncio.ensure_future(wait_until_gone(receive))
            try:
                await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not pump.done():
                    await _charge_left(self._job, self._now())
                    raise ClientDisconnect
                pump.result()
            finally:
                for task in (pump, gone):
                    task.cancel()
                await asyncio.wait({pump, gone})

    async def _pump(self, send: Send) -> None:
        meter, measure = self._job.meter, self._job.measure
        # Held by the gate until the first piece is counted.
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        try:
            async for piece in read_pieces(self._response):
                await meter.spend(measure.piece(len(piece), self._now()))
                await meter.reservation.flush()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except UpstreamError as error:
            # Without its end the server closes the connection: the client sees that it is cut off.
            _log.warning("an answer of %s broke off: %s", self._job.sold, error)
            meter.reservation.outcome = ChargeOutcome.FAILED
            if not meter.has_counted:
                raise
            return
        await meter.spend(measure.piece(0, self._now()))
        meter.reported = measure.reported or None
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Events:
    """The events of one answer, as they came, each with its usage. Closing stops the server."""

    def __init__(
        self, response: UpstreamAnswer, connection: AsyncExitStack, job: _Job, paths: PathAnswers
    ) -> None:
        self._blocks = self._read(response)
        self._connection = connection
        self._job = job
        self._paths = paths
        self._has_ended = False
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[Event | Frame]:
        return self

    async def __anext__(self) -> Event | Frame:
        return await anext(self._blocks)

    async def _read(self, response: UpstreamAnswer) -> AsyncIterator[Event | Frame]:
        splitter = EventSplitter()
        try:
            async for piece in read_pieces(response):
                for block in splitter.feed(piece):
                    yield self._sell(block)
            if parse_event(rest := splitter.flush()) is not None:  # no blank line behind it
                yield self._sell(rest)
        except (UpstreamError, WireError) as error:
            _log.warning("a stream of %s broke off: %s", self._job.sold, error)
            known = error if isinstance(error, UpstreamError) else None
            shown = known or UpstreamError("The server sent an event that is too long.")
            yield Event(format_error(shown, None), "error", usage={})
        self._has_ended = True

    def _sell(self, block: bytes) -> Frame:
        block = block.removeprefix(_BYTE_ORDER_MARK)
        event = parse_event(block)
        # A comment, or the id of the next one: nothing that a reader sees. Or what is dropped.
        if event is None or is_payment_event(block):
            return Frame(block, units=0)
        measure = self._job.measure
        return Frame(block, usage=measure.event(event[1], self._paths.now()))

    async def aclose(self) -> None:
        """Stop the server, and charge the time of a client that left. Repeating does nothing."""
        await self._connection.aclose()
        if self._is_closed:
            return
        self._is_closed = True
        reservation, measure = self._job.meter.reservation, self._job.measure
        missing = measure.unreported
        if self._has_ended:
            self._job.meter.reported = measure.reported or None
            if missing:
                self._paths.note_unreported(self._job.sold, missing)
            return
        used = measure.left(self._paths.now())
        if used and reservation.price_of(used) <= reservation.covered:
            reservation.take(used)


class _Wanted(msgspec.Struct):
    stream: bool | None = None


def _wants_events(request: Request, body: bytes) -> bool:
    """Whether a request asks for a stream: its JSON says so, or it accepts nothing else."""
    if body.lstrip()[:1] == b"{":
        try:
            wanted = msgspec.json.decode(body, type=_Wanted).stream
        except (msgspec.DecodeError, UnicodeDecodeError):
            wanted = None
        if wanted is not None:
            return wanted
    return request.headers.get("accept", "").strip().lower() == CONTENT_TYPE


def _is_small(response: UpstreamAnswer) -> bool:
    length = response.headers.get("content-length", "")
    is_number = len(length) <= LENGTH_DIGITS_MAX and length.isdecimal()
    return is_number and int(length) <= STORED_RESPONSE_BYTES_MAX


async def _not_served(scope: Scope, receive: Receive, send: Send) -> None:
    error = NotServedError("This gateway does not serve this path.")
    await problem_response(error)(scope, receive, send)
