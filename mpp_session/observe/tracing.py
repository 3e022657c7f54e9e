"""Traces for OpenTelemetry: a request, its voucher, its model, and the settlement that paid it.

Needs the extra `telemetry`. Nothing is traced unless the standard variables `OTEL_...` name an
exporter. A span holds no credential, no signature and no content; a channel is named by its first
bytes.
"""

import time
from collections import OrderedDict, deque
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channel.http.asgi import Headers
from channel.http.hooks import (
    ChallengeEvent,
    Hooks,
    OpenEvent,
    ReceiptEvent,
    RefusalEvent,
    RequestEvent,
    SettleEvent,
)
from channel.types import ChannelId
from mpp_session.observe.health import HEALTH_PATHS
from mpp_session.observe.metrics import operation_of, token_type_of

__all__ = ["TraceHooks", "TracingSite", "open_provider"]

_SERVICE: Final = "mpp-session"
_CHANNELS_LINKED: Final = 1000
_REQUESTS_LINKED: Final = 32
"""Of one channel: the newest requests that a settlement's span links to."""
_SERVER_ERROR: Final = 500
_PARENT: Final = (b"traceparent", b"tracestate")
_USAGE: Final = {
    "input": "gen_ai.usage.input_tokens",
    "output": "gen_ai.usage.output_tokens",
    "cached_input": "gen_ai.usage.cache_read.input_tokens",
    "cache_creation_input": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning": "gen_ai.usage.reasoning.output_tokens",
}


def open_provider() -> TracerProvider:
    """Return a provider that exports as the variables `OTEL_...` say; shut it down at the end."""
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: _SERVICE}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class TracingSite:
    """Opens a span for each request, as a child of the client's span if it names one.

    The application's headers name the new span, so that what it asks for is traced below it.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer(_SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within its span."""
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send)
            return
        carrier = {
            name.decode("ascii"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _PARENT
        }
        span = self._tracer.start_span(
            scope["method"],
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"]},
        )

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= _SERVER_ERROR:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        inner = {**scope, "headers": self._with_parent(scope["headers"], span)}
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            try:
                await self._app(inner, receive, send_traced)
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise
            finally:
                span.end()

    def _with_parent(self, headers: Headers, span: Span) -> Headers:
        """Return headers that name this span as the parent, for the model server behind it."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, trace.set_span_in_context(span))
        named = [(name.encode(), value.encode()) for name, value in carrier.items()]
        return [*(each for each in headers if each[0] not in _PARENT), *named]


class TraceHooks(Hooks):
    """Fills the span of a request, and adds those of its voucher, its model and its settlement."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer(_SERVICE)
        self._unsettled: OrderedDict[ChannelId, deque[SpanContext]] = OrderedDict()

    def on_challenge(self, event: ChallengeEvent) -> None:
        """Name the request's span."""
        self._name(event).set_attribute("mpp.problem_type", event.problem_type)

    def on_refusal(self, event: RefusalEvent) -> None:
        """Name the request's span, and say why it was refused."""
        span = self._name(event)
        span.set_attribute("mpp.problem_type", event.problem_type or "application")
        span.set_attribute("error.type", event.problem_type or str(event.status))

    def on_open(self, event: OpenEvent) -> None:
        """Add the deposit to the request's span."""
        self._name(event).add_event("deposit", {"mpp.action": event.action})

    def on_receipt(self, event: ReceiptEvent) -> None:
        """Complete the request's span, with one for its voucher and one for its model."""
        span = self._name(event)
        span.set_attributes(
            {
                "mpp.action": event.action,
                "mpp.outcome": event.outcome,
                "mpp.cost": str(event.cost),
                **{f"mpp.units.{kind}": units for kind, units in event.usage.items()},
            }
        )
        ends = _Clock(event.monotonic)
        paid = event.monotonic if event.handled is None else event.handled
        parent = trace.set_span_in_context(span)
        voucher = self._tracer.start_span(
            "voucher",
            context=parent,
            start_time=ends.at(event.received),
            attributes={"mpp.accepted": str(event.accepted), "mpp.spent": str(event.spent)},
        )
        voucher.end(ends.at(paid))
        if event.handled is None:
            return
        model = self._tracer.start_span(
            f"{operation_of(event.route) or 'handler'} {event.variant}".rstrip(),
            context=parent,
            kind=SpanKind.CLIENT,
            start_time=ends.at(event.handled),
            attributes=_model_attributes(event),
        )
        if event.first_sent is not None:
            model.add_event("first_content", timestamp=ends.at(event.first_sent))
        model.end(ends.at(event.monotonic))
        if event.cost and event.channel_id is not None:
            self._remember(event.channel_id, span.get_span_context())

    def on_settle(self, event: SettleEvent) -> None:
        """Add a span that links to the requests that the settlement paid for."""
        paid = self._unsettled.pop(event.channel_id, ())
        span = self._tracer.start_span(
            "settlement",
            links=[Link(context) for context in paid],
            attributes={
                "mpp.channel": _short(event.channel_id),
                "mpp.amount": str(event.amount),
                "mpp.is_final": event.is_final,
                **({} if event.tx_hash is None else {"mpp.tx_hash": event.tx_hash}),
            },
        )
        span.end()

    def _name(self, event: RequestEvent) -> Span:
        span = trace.get_current_span()
        if event.route:
            span.update_name(event.route)
            span.set_attribute("http.route", event.route.partition(" ")[2])
        span.set_attribute("mpp.request_id", event.request_id)
        if event.channel_id is not None:
            span.set_attribute("mpp.channel", _short(event.channel_id))
        return span

    def _remember(self, channel_id: ChannelId, context: SpanContext) -> None:
        if not context.trace_flags.sampled:
            return
        paid = self._unsettled.setdefault(channel_id, deque(maxlen=_REQUESTS_LINKED))
        paid.append(context)
        self._unsettled.move_to_end(channel_id)
        if len(self._unsettled) > _CHANNELS_LINKED:
            self._unsettled.popitem(last=False)


class _Clock:
    """Turns moments of `time.monotonic` into nanoseconds since 1970."""

    def __init__(self, monotonic: float) -> None:
        self._now_ns = time.time_ns() - round((time.monotonic() - monotonic) * 1e9)
        self._monotonic = monotonic

    def at(self, monotonic: float) -> int:
        return self._now_ns - round((self._monotonic - monotonic) * 1e9)


def _model_attributes(event: ReceiptEvent) -> dict[str, Any]:
    found: dict[str, Any] = {"gen_ai.request.model": event.variant} if event.variant else {}
    operation = operation_of(event.route)
    if operation is not None:
        found["gen_ai.operation.name"] = operation
    for kind, units in event.usage.items():
        name = _USAGE.get(token_type_of(kind) or "")
        if name is not None:
            found[name] = units
    return found


def _short(channel_id: ChannelId) -> str:
    """Return a channel's first bytes: a whole id names its payer."""
    return f"0x{channel_id[:4].hex()}"
