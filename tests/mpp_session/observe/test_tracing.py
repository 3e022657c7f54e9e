"""From a request through its voucher and its model to the settlement: one trace and its links."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from channel.http import PaymentGate, Price, Route
from channel.http.hooks import SettleEvent
from channel.wire.credential import format_credential
from channel.wire.payload import (
    Payload,
)
from mpp_session.observe.traced import open_tracing
from mpp_session.observe.tracing import TraceHooks, TracingSite
from tests.channel.selling import PRICE, Answer, Provider, ask, open_provider

PATH = "/v1/chat/completions"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"


async def app(scope: Any, _: Any, send: Any) -> None:
    if scope["path"] == "/broken":
        raise KeyError("bug")
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hi"})


class Traced:
    """A gate whose spans are kept in memory, with an opened channel."""

    def __init__(self, provider: Provider, tracers: TracerProvider) -> None:
        self.provider = provider
        self.hooks = TraceHooks(tracers)
        price = Price(unit_price=PRICE, unit_type="output_token", variant="small")
        gate = PaymentGate(
            app,
            engine=provider.engine,
            routes=[Route(method="GET", path=PATH, price=price)],
            hooks=self.hooks,
        )
        self.site = TracingSite(gate, tracers)

    async def send(self, payload: Payload, method: str = "GET", **headers: str) -> Answer:
        offer = await ask(self.site, "GET", PATH)
        text = format_credential(self.provider.payer.credential(offer.challenge, payload))
        return await ask(self.site, method, PATH, text, headers=headers)

    async def open(self) -> None:
        self.provider.payer.open_on_chain()
        assert (await self.send(self.provider.payer.opening(0), "HEAD")).status == 200


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(tmp_path: Path, exporter: InMemorySpanExporter) -> AsyncIterator[Traced]:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    async with open_provider(tmp_path) as provider:
        shop = Traced(provider, tracers)
        await shop.open()
        exporter.clear()
        yield shop


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_paid_request_has_a_span_for_its_voucher_and_one_for_its_model(
    traced: Traced, exporter: InMemorySpanExporter
) -> None:
    paid = await traced.send(traced.provider.payer.voucher(PRICE))
    assert paid.status == 200
    found = by_name(exporter)
    voucher, model = found["voucher"], found["chat small"]
    request = next(s for s in exporter.get_finished_spans() if "mpp.outcome" in attributes(s))
    assert (request.name, request.kind) == (f"GET {PATH}", SpanKind.SERVER)
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["mpp.cost"] == str(PRICE)
    assert attributes(request)["mpp.units.output_token"] == 1
    for child in (voucher, model):
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
    assert request.start_time <= voucher.start_time <= voucher.end_time  # type: ignore[operator]
    assert voucher.end_time == model.start_time
    assert attributes(model)["gen_ai.operation.name"] == "chat"
    assert attributes(model)["gen_ai.request.model"] == "small"
    assert attributes(model)["gen_ai.usage.output_tokens"] == 1
    assert [event.name for event in model.events] == ["first_content"]


async def test_a_settlement_links_to_the_requests_that_it_paid_for(
    traced: Traced, exporter: InMemorySpanExporter
) -> None:
    for amount in (PRICE, 2 * PRICE):
        await traced.send(traced.provider.payer.voucher(amount))
    requests = [s for s in exporter.get_finished_spans() if "mpp.outcome" in attributes(s)]
    event = SettleEvent(
        at=0.0,
        monotonic=0.0,
        channel_id=traced.provider.payer.key.channel_id,
        payer=None,
        amount=2 * PRICE,
        settled=2 * PRICE,
        tx_hash="0xaa",
    )
    traced.hooks.on_settle(event)
    settlement = by_name(exporter)["settlement"]
    linked = {link.context.span_id for link in settlement.links}
    assert linked == {span.context.span_id for span in requests}
    assert len(linked) == 2
    assert attributes(settlement)["mpp.tx_hash"] == "0xaa"
    exporter.clear()
    traced.hooks.on_settle(event)
    assert by_name(exporter)["settlement"].links == ()


async def test_a_request_joins_the_trace_of_its_client(
    traced: Traced, exporter: InMemorySpanExporter
) -> None:
    parent = f"00-{TRACE}-{CLIENT_SPAN}-01"
    await traced.send(traced.provider.payer.voucher(PRICE), traceparent=parent)
    request = next(s for s in exporter.get_finished_spans() if "mpp.outcome" in attributes(s))
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CLIENT_SPAN


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}])
async def test_what_stands_behind_the_gate_is_traced_below_the_request(
    exporter: InMemorySpanExporter, headers: dict[str, str]
) -> None:
    """The gateway passes `traceparent` on, so the model server's spans hang below its own."""
    seen: list[tuple[bytes, bytes]] = []

    async def model(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await app(scope, receive, send)

    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    await ask(TracingSite(model, tracers), "GET", PATH, headers={**headers, "x-other": "kept"})
    (span,) = exporter.get_finished_spans()
    (parent,) = [value.decode() for name, value in seen if name == b"traceparent"]
    assert parent.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert (b"x-other", b"kept") in seen
    assert headers == {} or TRACE in parent


async def test_a_refusal_says_why_and_no_span_holds_what_was_sent(
    traced: Traced, exporter: InMemorySpanExporter
) -> None:
    payer = traced.provider.payer
    assert (await traced.send(payer.voucher(PRICE - 1))).status == 402
    challenge, refusal = exporter.get_finished_spans()
    assert attributes(challenge)["mpp.problem_type"] == "payment-required"
    assert attributes(refusal)["error.type"] == "session/insufficient-balance"
    written = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert payer.sign(PRICE - 1).signature.hex() not in written
    assert payer.key.channel_id.hex() not in written
    assert payer.address.hex() not in written


async def test_a_bug_is_an_error_and_its_text_is_not_sent(
    traced: Traced, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(KeyError):
        await ask(traced.site, "GET", "/broken")
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "KeyError"
    assert "bug" not in span.to_json()


async def test_health_is_not_traced(traced: Traced, exporter: InMemorySpanExporter) -> None:
    await ask(traced.site, "GET", "/readyz")
    assert exporter.get_finished_spans() == ()


class Receiver(BaseHTTPRequestHandler):
    """Takes spans over HTTP, as a collector does."""

    taken: list[ExportTraceServiceRequest]
    paths: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.paths.append(self.path)
        self.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base
        """Print nothing."""


@pytest.fixture
def collector() -> Iterator[tuple[str, type[Receiver]]]:
    kind = type("OwnReceiver", (Receiver,), {"taken": [], "paths": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", kind
    server.shutdown()
    thread.join()
    server.server_close()


async def test_the_standard_variables_send_the_spans_to_a_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: tuple[str, type[Receiver]]
) -> None:
    url, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    async with open_tracing() as tracing, open_provider(tmp_path) as provider:
        assert tracing is not None
        price = Price(unit_price=PRICE, unit_type="request")
        gate = PaymentGate(
            app,
            engine=provider.engine,
            routes=[Route(method="GET", path=PATH, price=price)],
            hooks=tracing.hooks,
        )
        assert (await ask(tracing.wrap(gate), "GET", PATH)).status == 402
    assert received.paths == ["/v1/traces"]
    (sent,) = received.taken[0].resource_spans
    names = {each.key: each.value.string_value for each in sent.resource.attributes}
    assert names["service.name"] == "mpp-session"
    assert [span.name for scope in sent.scope_spans for span in scope.spans] == [f"GET {PATH}"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
    ],
)
async def test_nothing_is_traced_unless_the_variables_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = asyncio.all_tasks()
    async with open_tracing() as tracing:
        assert tracing is None
    assert asyncio.all_tasks() == before
