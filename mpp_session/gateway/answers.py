"""The paid answers of a model server: reserves, asks the model, counts, charges, passes on.

counted    the prompt's tokens, where the tariff prices input
reserved   one unit by the gate; with priced input, the prompt and the first step of output;
           for an unstreamed answer its greatest cost
asked      the model server, only after the reservation is durable
charged    each chunk before it is passed on, the prompt with the first; an unstreamed answer once
           it is counted; the prompt of a client that leaves
upstream   an error of the model server: nothing is charged
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from channel.errors import BadRequestError, StoppingError
from channel.http import Event, Frame
from channel.http.metering import METER, Meter, metered, require_meter
from channel.limits import RESERVATION_STEP_UNITS
from channel.types import TokenUnit
from channel.wire.sse import DONE, format_event
from mpp_session.gateway.abandoned import AbandonedWork
from mpp_session.gateway.asking import ClosingStream, read_request, unless_gone
from mpp_session.gateway.billing import Bill, Kinds
from mpp_session.gateway.costs import with_cost
from mpp_session.gateway.counting import (
    PromptReport,
    Reader,
    UnitCounter,
    is_error,
    read_whole,
)
from mpp_session.gateway.crosscheck import CrossCheck, Difference
from mpp_session.gateway.endpoints import GatewayEndpoint
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest, scan_request
from mpp_session.gateway.errors import (
    ConnectTimeoutError,
    NotServedError,
    UpstreamError,
    UpstreamTimeoutError,
)
from mpp_session.gateway.events import is_event_stream, read_events
from mpp_session.gateway.free import problem_response
from mpp_session.gateway.generation import read_answer_id
from mpp_session.gateway.prompt import PromptCount, PromptCounter
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream, UpstreamAnswer, read_body, returned_headers
from mpp_session.settings import Upstream as UpstreamSettings

__all__ = ["GENERATION_HEADER", "PaidAnswers", "format_error"]

GENERATION_HEADER: Final = "x-generation-id"
"""Names a paid request, as in `gen-` and its reservation's id in hexadecimal."""

_log: Final = logging.getLogger(__name__)

_BAD_GATEWAY: Final = 502
_KEEP_ALIVE: Final = Frame(b": keep-alive\n\n", units=0)
_USAGE: Final = Frame(b": usage\n\n", units=0)
"""Replaces a usage record: the client is shown one at the end if it asked for it."""
_END: Final = Frame(format_event(DONE), units=0)
"""An end that sells nothing: the record before it did."""
_KEPT: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "usage")
"""Fields of a chunk that a usage record has, too."""
_HIDDEN_UNITS_MAX: Final = RESERVATION_STEP_UNITS
"""Most units a client pays without seeing their usage record; above it sees the record."""
_READ_BYTES_PER_UNIT: Final = 64
"""Weight of a prompt read for nothing: 16 of its tokens count as one generated token."""


class PaidAnswers:
    """All endpoints of one model server, and their running streams."""

    def __init__(
        self,
        upstream: Upstream,
        settings: UpstreamSettings,
        readiness: Readiness,
        unit: TokenUnit | None,
    ) -> None:
        self.check = CrossCheck()
        """What was charged beside what the model server reported."""
        self._unit = unit
        self._prompts = PromptCounter(upstream, readiness)
        self._upstream = upstream
        self._settings = settings
        self._readiness = readiness
        self._abandoned = AbandonedWork(settings.abandoned_units_max)

    async def answer(self, endpoint: GatewayEndpoint, request: Request) -> Response:
        """Answer one paid request.

        Raises:
            PeerError: The request cannot be parsed or priced; nothing is charged.
            UpstreamError: The model server failed; nothing is charged.
        """
        if METER not in request.scope:  # no row of the price table fits this endpoint now
            return problem_response(NotServedError("This gateway does not serve this path."))
        reservation = require_meter(request.scope).reservation
        # The tariff of the challenge that paid: prices may have changed since.
        kinds = Kinds.of(reservation.tariff)
        if not endpoint.is_sold_by(kinds.tariff):
            raise NotServedError(f"{endpoint.path} is not sold here: input tokens have no price.")
        bounds = Bounds(
            max_tokens=self._settings.max_tokens,
            default_max_tokens=self._settings.default_max_tokens,
            kind=self._readiness.kind,
            more_fields=self._settings.fields,
            allows_media=self._settings.media,
        )
        body = await read_request(request, self._settings.body_bytes_max)
        for _ in scan_request(body):
            await asyncio.sleep(0)  # let other tasks run between two windows of a long body
        asked = endpoint.parse(body, bounds)
        if kinds.input:
            counted = await self._prompts.count(asked)
        else:
            counted = PromptCount(0, is_exact=True)
        bill = Bill(kinds, counted, bytes_received=asked.bytes_received, unit=self._unit)
        job = _Job(endpoint, asked, bill, self.check)
        response = await (self._stream if asked.is_stream else self._whole)(request, job)
        if 200 <= response.status_code < 300:  # noqa: PLR2004
            response.headers[GENERATION_HEADER] = f"gen-{reservation.id.hex()}"
        return response

    async def _whole(self, request: Request, job: "_Job") -> Response:
        asked, bill = job.asked, job.bill
        async with metered(request.scope) as meter:
            if asked.tokens_max and self._abandoned.must_stream(meter.reservation.key):
                raise BadRequestError(
                    "The model server did not finish several long answers of this channel. Send "
                    "`stream: true`; paying for streams offsets them."
                )
            # Durable after this: a reservation for the most expensive answer possible.
            await meter.hold(bill.most(asked.units_max))
            try:
                response, body = await unless_gone(request, self._fetch(request, job))
            except ClientDisconnect:
                await self._leave(meter, job, asked.units_max)
                raise
            except UpstreamTimeoutError as error:
                if not isinstance(error.__cause__, ConnectTimeoutError):  # the model has it
                    self._abandoned.add_unanswered(meter.reservation.key, asked.units_max)
                raise
            headers = returned_headers(response)
            if response.is_success:
                read = job.endpoint.reader()
                answer = read_whole(body, units_max=asked.units_max, read=read)
                if answer.is_error:  # under a success status (O-48)
                    return Response(body, _BAD_GATEWAY, headers)
                if answer.units is None:
                    raise UpstreamError("The model server did not report its answer's tokens.")
                if not answer.is_believed:
                    _log.warning(
                        "the model server counts fewer tokens than it sent: %d charged by the text",
                        answer.units,
                    )
                usage = bill.output(answer.units, answer.reasoning)
                await meter.spend(usage | bill.prompt(answer.prompt, is_over=True))
                job.note(answer.units, answer.reported, answer.prompt)
                self._abandoned.make_up(meter.reservation.key, answer.units)
                meter.reservation.response_id = read_answer_id(body)
                body = with_cost(body, meter.cost, meter.usage, bill.unit)
            return Response(body, response.status_code, headers)

    async def _leave(self, meter: Meter, job: "_Job", units: int) -> None:
        """Charge and count an answer whose client left before it. A prepaid one stays paid.

        The model has read the prompt in either case, so it is charged where input has a price.
        """
        reservation = meter.reservation
        usage = job.bill.prompt(PromptReport(), is_left=True)
        output = job.bill.kinds.output
        if output is not None and self._abandoned.must_prepay(reservation.key):
            usage[output] = units
        else:
            read = 0 if usage else len(job.asked.body) // _READ_BYTES_PER_UNIT
            self._abandoned.add(reservation.key, units + read)
        if usage:
            reservation.take(usage)
            await reservation.flush()

    async def _fetch(self, request: Request, job: "_Job") -> tuple[UpstreamAnswer, bytes]:
        async with self._upstream.request(
            "POST", job.endpoint.path, request.headers, job.asked.body
        ) as response:
            return response, await read_body(response)

    async def _stream(self, request: Request, job: "_Job") -> Response:
        asked, bill = job.asked, job.bill
        meter = require_meter(request.scope)
        must_prepay = self._abandoned.must_prepay(meter.reservation.key)
        if must_prepay:
            await meter.hold(bill.most(asked.units_max))
        elif bill.kinds.input:
            await meter.hold(bill.most(min(asked.units_max, RESERVATION_STEP_UNITS)))
        async with AsyncExitStack() as opening:
            asking = opening.enter_async_context(
                self._upstream.request("POST", job.endpoint.path, request.headers, asked.body)
            )
            try:
                response = await unless_gone(request, asking)
            except ClientDisconnect:
                await self._leave(meter, job, min(asked.units_max, RESERVATION_STEP_UNITS))
                raise
            if not response.is_success:
                body = await read_body(response)
                return Response(body, response.status_code, returned_headers(response))
            if not is_event_stream(response):
                return await _refuse_whole(response, job.endpoint.reader())
            chunks = _Chunks(
                response,
                opening.pop_all(),
                job,
                meter=meter,
                abandoned=self._abandoned,
                must_prepay=must_prepay,
            )
        headers = {
            name: value
            for name, value in returned_headers(response).items()
            if name != "content-type"
        }
        return ClosingStream(chunks, headers=headers)


class _Job(msgspec.Struct, frozen=True):
    """One request, on its way through the mechanism."""

    endpoint: GatewayEndpoint
    asked: ModelRequest
    bill: Bill
    check: CrossCheck

    def note(self, output: int, reported: int | None, prompt: PromptReport) -> None:
        """Compare what was charged with what the server reported, once it is over."""
        kinds, used = self.bill.kinds, self.bill.used
        read = sum(used.values()) - kinds.made(used) if kinds.input else 0
        name, model = self.endpoint.name, self.asked.model
        self.check.note(Difference(name, model, output, reported, read, prompt.tokens))


class _Chunks:
    """The chunks of one answer, each with its usage. Closing stops the model server."""

    def __init__(
        self,
        response: UpstreamAnswer,
        connection: AsyncExitStack,
        job: _Job,
        *,
        meter: Meter,
        abandoned: AbandonedWork,
        must_prepay: bool,
    ) -> None:
        self._events = read_events(response)
        self._job = job
        self._endpoint = job.endpoint
        self._request = asked = job.asked
        self._bill = job.bill
        self._counter = UnitCounter(
            asked.kind,
            choices=asked.choices,
            tokens_max=asked.tokens_max,
            read=job.endpoint.reader(),
        )
        self._connection = connection
        self._meter = meter
        self._abandoned = abandoned
        self._must_prepay = must_prepay
        self._asked = 0
        """Output tokens of the events so far; the server's higher count is charged with the next
        event."""
        self._ready: deque[Event | Frame] = deque()
        """Events that follow the last one without another from the model server."""
        self._record: str | None = None
        """The last chunk with a usage record."""
        self._last = "{}"
        """The last chunk."""
        self._is_usage_sent = False
        """Whether the client was shown a usage record, and counts by it."""
        self._has_ended = False
        self._is_answered = False
        """Whether the answer is complete, even if it is empty: its prompt was read."""
        self._is_closed = False
        self._is_named = False
        """Whether the first chunk was read, which states the answer's id."""

    def __aiter__(self) -> AsyncIterator[Event | Frame]:
        return self

    async def __anext__(self) -> Event | Frame:
        if self._ready:
            return self._ready.popleft()
        if self._has_ended:
            raise StopAsyncIteration
        try:
            data = await anext(self._events, "")
            return _KEEP_ALIVE if data is None else self._read(data)
        except UpstreamError as error:
            return self._fail(error)

    def _read(self, data: str) -> Event | Frame:
        """Return what follows from an event of the model server; empty at the end of its stream.

        Raises:
            UpstreamError: It cannot be read, or the answer is not complete.
        """
        counter = self._counter
        if data and data != DONE:
            counter.count(data)
            if not self._is_named:
                self._is_named = True
                self._meter.reservation.response_id = read_answer_id(data.encode())
            if not counter.is_end:
                return self._pass_on(data)
            self._record = data
            return self._end(counter.event)
        # Some servers omit `[DONE]`. Without a last event that says so, nothing else does.
        if self._endpoint.nested is not None or not (data or counter.is_complete):
            raise UpstreamError("The model server broke off its stream.")
        return self._end()

    def _pass_on(self, data: str) -> Event | Frame:
        counter = self._counter
        due = counter.total - self._asked
        self._last = data
        if counter.has_usage:
            self._record = data
            if counter.is_usage_only:
                if due <= _HIDDEN_UNITS_MAX or counter.is_complete:
                    return _USAGE  # until the end
                return self._tell(data)
        return self._sell(data, due, counter.event)

    def _tell(self, usage: str, event: str | None = None) -> Frame:
        """Return a usage record: free, so that the client learns what to pay next."""
        self._is_usage_sent = True
        return Frame(format_event(usage, event), units=0)

    def _sell(self, data: str, due: int, event: str | None = None) -> Event | Frame:
        """Return an event and what it sells; with the first output also the prompt.

        An event with more than a step was not counted ahead: the rest is charged with the next one.
        The client counts such an event, like a usage record, by the model server's own numbers in
        it. A statement of less would take their place, so it stands in a comment before the event.
        """
        has_ended, kinds = self._has_ended, self._bill.kinds
        units = due if has_ended else min(due, RESERVATION_STEP_UNITS)
        self._asked += units
        must_hold = self._must_prepay and not has_ended
        left = max(0, self._request.units_max - self._asked) if must_hold else 0
        if kinds.is_plain:
            if event is not None:
                return Event(data, event, units, left)
            return Frame(format_event(data), units, left)
        held = {} if kinds.dearest_output is None else {kinds.dearest_output: left}
        usage = self._bill.output(units, self._counter.reasoning)
        is_counted = bool(usage) and (self._is_usage_sent or units < due)
        prompt = {}
        if (self._asked or self._is_answered) and (has_ended or not is_counted):
            prompt = self._bill.prompt(self._counter.prompt, is_over=has_ended)
        if not is_counted:
            return Event(data, event, usage=usage | prompt, held=held)
        self._ready.append(
            Event(data, event, usage=prompt) if has_ended else Frame(format_event(data, event), 0)
        )
        return Frame(_USAGE.raw, usage=usage, held=held)

    def _end(self, event: str | None = None) -> Event | Frame:
        """Charge what is not charged yet, and show the usage record to a client that wants it.

        A client also sees it if it could not count what is charged: before it pays for that.
        """
        counter = self._counter
        is_uncounted = counter.uncounted > 0
        counter.finish()
        due = counter.total - self._asked
        self._has_ended = True
        self._is_answered = counter.has_answered
        must_tell = is_uncounted or due > _HIDDEN_UNITS_MAX
        has_done = self._endpoint.nested is None
        if not (must_tell or self._request.wants_usage):
            last = self._sell(DONE, due)
        elif has_done and (must_tell or self._bill.kinds.is_plain):
            self._is_usage_sent = True
            self._ready.appendleft(self._sell(DONE, due))
            last = self._tell(self._sum_up())
        else:
            used = self._charge(due)
            if must_tell:
                self._ready.append(Frame(_USAGE.raw, usage=used))
                last = self._tell(self._sum_up(), event)
            else:
                last = Event(self._sum_up(), event, usage=used)
            if has_done:
                self._ready.append(_END)
        self._job.note(counter.total, counter.reported, counter.prompt)
        return last

    def _charge(self, due: int) -> dict[str, int]:
        """Return everything that is not charged yet, once the answer is over."""
        self._asked += due
        used = self._bill.output(due, self._counter.reasoning)
        if self._asked or self._is_answered:
            used |= self._bill.prompt(self._counter.prompt, is_over=True)
        return used

    def _sum_up(self) -> str:
        """Return the record of the whole answer, with its cost.

        The numbers are the model server's, except for those that it did not report, or reported of
        one choice of several.
        """
        counter, bill = self._counter, self._bill
        said = msgspec.json.decode(self._record or self._last, type=dict[str, msgspec.Raw])
        nested = self._endpoint.nested
        if nested is None:
            record: dict[str, Any] = {name: said[name] for name in _KEPT if name in said}
            record["choices"] = []
        else:
            record = msgspec.json.decode(said.get(nested, b"{}"), type=dict[str, msgspec.Raw])
        read = counter.prompt.tokens
        if read is None and bill.kinds.input:
            read = bill.tokens(counter.prompt)
        if counter.reported is None or counter.is_of_choice:
            input_name, output_name = self._endpoint.counts
            counts = {output_name: counter.total}
            if read is not None:
                counts |= {input_name: read, "total_tokens": read + counter.total}
            usage = msgspec.json.decode(record.get("usage", b"{}"))
            record["usage"] = (usage if isinstance(usage, dict) else {}) | counts
        kinds = bill.kinds
        used = bill.used
        if kinds.is_plain and kinds.output is not None:
            used = {kinds.output: self._asked}
        cost = kinds.tariff.cost(used)
        shown = with_cost(msgspec.json.encode(record), cost, used, bill.unit)
        if nested is not None:
            shown = msgspec.json.encode({**said, nested: msgspec.Raw(shown)})
        return shown.decode()

    def _fail(self, error: UpstreamError) -> Event | Frame:
        """End with an event that gives the reason. Delivered output stays paid."""
        _log.warning("after %d units: %s", self._counter.total, error)
        self._has_ended = True
        self._counter.finish()
        name = self._endpoint.error_event
        return self._sell(format_error(error, name), self._counter.total - self._asked, name)

    async def aclose(self) -> None:
        """Cancel running generation. Repeating it does nothing."""
        await self._connection.aclose()
        if self._is_closed:
            return
        self._is_closed = True
        reservation = self._meter.reservation
        sold = self._bill.kinds.made(reservation.usage)
        is_unpaid = self._asked > sold
        is_left = is_unpaid or not self._has_ended
        if is_left and not isinstance(reservation.stopped_by, StoppingError):
            self._leave(is_unpaid=is_unpaid)
        self._abandoned.make_up(reservation.key, sold)

    def _leave(self, *, is_unpaid: bool) -> None:
        """Charge what was read and delivered but not counted; record what was not delivered.

        If the client stopped paying, the model may have generated on in the meantime; if the client
        left, the model stopped immediately.
        """
        reservation, counter = self._meter.reservation, self._counter
        left = max(0, self._request.units_max - self._bill.kinds.made(reservation.usage))
        read = self._bill.prompt(counter.prompt, is_left=True)
        if read and reservation.price_of(read) <= reservation.covered:
            reservation.take(read)
        due = counter.total + counter.uncounted - self._asked
        if self._must_prepay:
            due = max(due, min(left, RESERVATION_STEP_UNITS))
        output = self._bill.kinds.output
        if output != reservation.main_kind:
            due = 0  # input alone has a price
        due = min(due, reservation.covered_units)
        if due and not is_unpaid:
            reservation.take(due)
        unseen = left if is_unpaid else min(left, RESERVATION_STEP_UNITS)
        self._abandoned.add(reservation.key, unseen)


async def _refuse_whole(response: UpstreamAnswer, read: Reader) -> Response:
    """Answer for a model server that sent one piece where a stream was requested (O-48).

    Raises:
        UpstreamError: The piece is not JSON either. The error names its type.
    """
    kind: str = response.headers.get("content-type", "no content type")
    if not kind.partition(";")[0].strip().lower().endswith("json"):
        raise UpstreamError(
            f"The model server answered with {kind[:100]!r} instead of an event stream."
        )
    body = await read_body(response)
    if not is_error(body, read):
        raise UpstreamError("The model server did not answer with an event stream.")
    return Response(body, _BAD_GATEWAY, returned_headers(response))


def format_error(error: UpstreamError, name: str | None) -> str:
    """Return the event with which OpenAI's protocols report an error."""
    reason = {"message": error.detail, "type": error.problem_type, "code": error.status}
    body: dict[str, Any] = {"error": reason}
    if name is not None:  # clients read the type, or the member `error`
        body |= {**reason, "type": name, "param": None}
    return msgspec.json.encode(body).decode()
