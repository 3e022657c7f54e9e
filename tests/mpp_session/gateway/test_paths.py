"""Any HTTP server sold by path: what passes, what it costs, and what a faulty server is charged."""

import asyncio
import contextlib
import gzip
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from channel.errors import ConfigError, OverclaimError
from channel.wire.receipt import parse_receipt
from mpp_session.agent.client import PayingClient
from mpp_session.settings.price_rows import read_price_rows
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway, Running
from tests.mpp_session.serving import serve
from tests.waiting import until

Answer = Callable[[Request], Response]
PROBES = {"/health", "/props", "/version", "/v1/models"}


class Server:
    """Some HTTP server: it answers as a test says, and remembers what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Answer = lambda _: JSONResponse({"ok": True})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        target = scope["raw_path"] + (b"?" + scope["query_string"]) * bool(scope["query_string"])
        body = await request.body()
        if request.url.path not in PROBES:
            headers = dict(request.headers)
            self.seen.append((request.method, target.decode(), headers, body))
        await self.answer(request)(scope, receive, send)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    async with serve(found) as url:
        found.url = url
        yield found


def row(path: str = "/things/{name}", method: Any = "GET", **fields: Any) -> dict[str, Any]:
    return {"method": method, "path": path, "rates": {"request": 25}, **fields}


ROWS: dict[str, Any] = {
    "rates": {"row": 3},
    "usage": {"row": "json usage.rows"},
    "maximum": "0.0003",
}
"""At most 300 base units."""


@contextlib.asynccontextmanager
async def shop(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server, *rows: dict[str, Any]
) -> AsyncIterator[tuple[Running, PayingClient]]:
    async with (
        run_gateway(upstream__url=server.url, prices__rows=[*rows]) as gateway,
        open_agent(request_units_max=10**8) as agent,
    ):
        yield gateway, agent


async def test_a_request_passes_as_it_is_and_costs_its_price(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    rows = (row(), row("/things/{name}", "POST"), row("/down/{rest:path}", "DELETE"))
    server.answer = lambda _: Response(b"made", 201, {"x-own": "1", "location": "/things/9"})
    async with shop(run_gateway, open_agent, server, *rows) as (gateway, agent):
        sent = {"x-asked": "a", "accept-language": "de", "content-type": "text/x"}
        first = await agent.post(
            f"{gateway.url}/things/a%2Bb?q=1&q=%20", content=b"body", headers=sent
        )
        assert (first.status_code, first.content) == (201, b"made")
        assert (first.headers["x-own"], first.headers["location"]) == ("1", "/things/9")
        assert first.headers["content-length"] == "4"
        receipt = parse_receipt(first.headers["payment-receipt"])
        assert (receipt.spent, receipt.units) == (25, 1)
        await agent.delete(f"{gateway.url}/down/a/b/c")
        await agent.get(f"{gateway.url}/things/1")
        (post, delete, get) = server.seen
        assert post[:2] == ("POST", "/things/a%2Bb?q=1&q=%20")
        assert post[3] == b"body"
        assert {**sent, "accept-encoding": "identity"}.items() <= post[2].items()
        assert (delete[:2], get[:2]) == (("DELETE", "/down/a/b/c"), ("GET", "/things/1"))
        assert (await gateway.channel()).spent == 75


SECRETS = {
    "authorization": "Basic x",
    "cookie": "session=1",
    "x-forwarded-for": "1.2.3.4",
    "forwarded": "for=1.2.3.4",
    "if-none-match": "*",
    "range": "bytes=0-0",
    "connection": "x-hop",
    "x-hop": "1",
    "payment-model": "x",
    "te": "trailers",
    "accept-encoding": "gzip",
}


async def test_what_is_of_a_connection_secret_or_about_payment_does_not_pass(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    """A 304 or one byte of a file would be the answer for less than its price."""
    own = {"set-cookie": "a=b", "payment-receipt": "forged", "keep-alive": "1", "x-kept": "1"}
    server.answer = lambda _: Response(
        gzip.compress(b"x"), 200, {**own, "content-encoding": "gzip"}
    )
    async with shop(run_gateway, open_agent, server, row()) as (gateway, agent):
        secrets = {name: value for name, value in SECRETS.items() if name != "authorization"}
        answer = await agent.get(f"{gateway.url}/things/1", headers=secrets)
        assert answer.status_code == 200, answer.text
        ((_, _, headers, _),) = server.seen
        assert not {*SECRETS} - {"connection", "accept-encoding"} & headers.keys()
        assert headers["accept-encoding"] == "identity"
        assert answer.content == b"x"
        assert answer.headers["x-kept"] == "1"
        assert not {"set-cookie", "keep-alive", "content-encoding"} & answer.headers.keys()
        assert parse_receipt(answer.headers["payment-receipt"]).spent == 25


@pytest.mark.parametrize(
    "path",
    [
        "/cheap/%2e%2e/dear",
        "/cheap/..%2fdear",
        "/cheap/%252e%252e/dear",
        "/cheap/..;/dear",
        "/cheap/..;a=b/dear",
        "/cheap/..%5cdear",
    ],
)
async def test_no_path_leads_out_of_what_was_paid_for(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server, path: str
) -> None:
    rows = (row("/cheap/{rest:path}"), row("/dear", rates={"request": 900}))
    async with shop(run_gateway, open_agent, server, *rows) as (gateway, agent):
        url = httpx.URL(gateway.url, raw_path=path.encode())
        answer = await agent.get(url)
        assert answer.status_code in (400, 404), answer.text
        assert server.seen == []
        assert all(one.spent == 0 for one in await gateway.channels())


FAULTS: dict[str, Answer] = {
    "missing": lambda _: JSONResponse({"usage": {}}),
    "no object": lambda _: JSONResponse({"usage": [1]}),
    "negative": lambda _: JSONResponse({"usage": {"rows": -1}}),
    "a float": lambda _: JSONResponse({"usage": {"rows": 3.0}}),
    "a text": lambda _: JSONResponse({"usage": {"rows": "3"}}),
    "true": lambda _: JSONResponse({"usage": {"rows": True}}),
    "null": lambda _: JSONResponse({"usage": {"rows": None}}),
    "beyond all bounds": lambda _: JSONResponse({"usage": {"rows": 2**53}}),
    "no number at all": lambda _: Response(b'{"usage": {"rows": 1e999}}'),
    "no JSON": lambda _: Response(b"rows"),
    "cut off": lambda _: Response(b'{"usage": {"rows": 3'),
    "too deep": lambda _: Response(b'{"usage":' + b"[" * 500 + b"]" * 500 + b"}"),
    "nothing": lambda _: Response(b""),
}


async def test_a_usage_that_is_not_stated_is_never_free(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    """By default the answer stays here, and costs nothing; or it costs the maximum. Both count."""
    noted: list[tuple[str, str]] = []
    rows = (row("/a", **ROWS), row("/b", **ROWS, unreported="maximum"))
    async with shop(run_gateway, open_agent, server, *rows) as (gateway, agent):
        gateway.gateway.paths.on_unreported = lambda *found: noted.append(found)
        wrong = {}
        for name, answer in FAULTS.items():
            server.answer = answer
            refused = await agent.get(f"{gateway.url}/a")
            before = (await gateway.channel()).spent
            charged = await agent.get(f"{gateway.url}/b")
            state = await gateway.channel()
            found = (refused.status_code, charged.status_code, state.spent - before, state.reserved)
            if found != (502, 200, 300, 0):
                wrong[name] = (*found, refused.text)
            before = state.spent
        assert wrong == {}
        assert noted == [("GET /a", "row"), ("GET /b", "row")] * len(FAULTS)
        assert state.spent == 300 * len(FAULTS)


@pytest.mark.parametrize(
    ("rows", "cost"), [(0, 0), (1, 3), (100, 300), (101, 300), (2**53 - 1, 300)]
)
async def test_a_stated_usage_is_charged_up_to_the_maximum(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server, rows: int, cost: int
) -> None:
    server.answer = lambda _: JSONResponse({"data": [], "usage": {"rows": rows}})
    async with shop(run_gateway, open_agent, server, row("/a", **ROWS)) as (gateway, agent):
        answer = await agent.get(f"{gateway.url}/a")
        assert answer.status_code == 200, answer.text
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (cost, 0)


async def test_a_price_without_a_bound_is_refused_before_the_server_is_asked(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    rows = row("/a", rates={"byte": 1})
    async with shop(run_gateway, open_agent, server, rows) as (gateway, agent):
        answer = await agent.get(f"{gateway.url}/a")
        assert answer.status_code == 400, answer.text
        assert "text/event-stream" in answer.json()["detail"]
        assert server.seen == []
        assert (await gateway.channel()).spent == 0


async def test_the_greatest_cost_is_held_before_the_server_is_asked(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    """A payer whose policy does not allow so much is refused, and the server sees nothing."""
    async with (
        run_gateway(upstream__url=server.url, prices__rows=[row("/a", **BYTES)]) as gateway,
        open_agent(request_units_max=50) as agent,
    ):
        with pytest.raises(OverclaimError):
            await agent.get(f"{gateway.url}/a")
        assert server.seen == []
        assert (await gateway.channel()).spent == 0


def in_pieces(
    pieces: int,
    size: int,
    pause_s: float = 0.0,
    *,
    broken: bool = False,
    headers: dict[str, str] | None = None,
) -> Answer:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            await asyncio.sleep(pause_s)
            yield b"x" * size
        if broken:
            raise ConnectionError("the test breaks the answer off")

    return lambda _: StreamingResponse(body(), headers=headers, media_type="application/x-own")


BYTES: dict[str, Any] = {"rates": {"byte": "0.000001 / 1K"}, "maximum": "0.05"}
"""A base unit for a thousand bytes; at most 50,000 base units."""


@pytest.mark.parametrize(
    ("size", "headers"), [(1, {}), (2_500, {}), (3_000_000, {}), (0, {"content-length": "0"})]
)
async def test_bytes_are_charged_as_they_are_passed_on(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    server: Server,
    size: int,
    headers: dict[str, str],
) -> None:
    pieces = 3 if size else 0
    server.answer = in_pieces(pieces, size, headers=headers)
    async with shop(run_gateway, open_agent, server, row("/a", **BYTES)) as (gateway, agent):
        answer = await agent.get(f"{gateway.url}/a", timeout=60)
        assert (answer.status_code, len(answer.content)) == (200, pieces * size)
        assert answer.headers["content-type"] == "application/x-own"
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (-(-pieces * size // 1000), 0)


async def test_an_donein_pieces_is_not_held_back(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    may_end = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await may_end.wait()
        yield b"last"

    server.answer = lambda _: StreamingResponse(body())
    async with (
        shop(run_gateway, open_agent, server, row("/a", **BYTES)) as (gateway, agent),
        agent.stream("GET", f"{gateway.url}/a") as answer,
    ):
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"first"
        assert (await gateway.channel()).spent == 1, "durable before it is passed on"
        may_end.set()
        assert await anext(pieces) == b"last"


async def test_a_client_that_leaves_pays_for_what_was_passed_on_and_stops_the_server(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    server.answer = in_pieces(10_000, 1000, 0.01)
    async with shop(run_gateway, open_agent, server, row("/a", **BYTES)) as (gateway, agent):
        received = 0
        async with agent.stream("GET", f"{gateway.url}/a") as answer:
            async for piece in answer.aiter_raw():
                received += len(piece)
                if received >= 5000:
                    break
        await until(lambda: is_free(gateway))
        spent = (await gateway.channel()).spent
        assert received // 1000 <= spent < 1000


async def read_all(answer: httpx.Response, sizes: list[int]) -> None:
    async for piece in answer.aiter_raw():
        sizes += [len(piece)]


async def is_free(gateway: Running) -> bool:
    return not any(one.reserved for one in await gateway.channels())


async def test_a_server_that_breaks_off_leaves_the_client_with_what_it_paid_for(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    server.answer = in_pieces(4, 1000, 0.01, broken=True)
    async with shop(run_gateway, open_agent, server, row("/a", **BYTES)) as (gateway, agent):
        async with agent.stream("GET", f"{gateway.url}/a") as answer:
            sizes: list[int] = []
            with pytest.raises(httpx.TransportError):
                await read_all(answer, sizes)
        await until(lambda: is_free(gateway))
        state = await gateway.channel()
        assert (sum(sizes), state.spent) == (4000, 4)


async def test_seconds_are_those_that_the_server_took(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    """A begun one counts; a client that leaves while the server works pays for the time."""
    clock = [0.0]
    rows = row("/a", "POST", rates={"second": 7}, maximum="0.0007")
    async with shop(run_gateway, open_agent, server, rows) as (gateway, agent):
        gateway.gateway.paths._now = lambda: clock[0]  # noqa: SLF001 - the time of a test

        def answer(took_s: float) -> Answer:
            def work(_: Request) -> Response:
                clock[0] += took_s
                return Response(b"done")

            return work

        costs = []
        for took_s in (0.0, 1.0, 1.2, 1000.0):
            server.answer = answer(took_s)
            before = sum(one.spent for one in await gateway.channels())
            done = await agent.post(f"{gateway.url}/a", content=b"x")
            assert done.text == "done"
            costs.append((await gateway.channel()).spent - before)
        assert costs == [7, 7, 14, 700]
        held = asyncio.Event()
        server.answer = lambda _: StreamingResponse(_wait(held))
        asking = asyncio.create_task(agent.post(f"{gateway.url}/a", content=b"x"))
        await until(lambda: _has_seen(server, 5))
        clock[0] += 2.5
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await until(lambda: is_free(gateway))
        assert (await gateway.channel()).spent - sum(costs) == 21


async def _wait(held: asyncio.Event) -> AsyncIterator[bytes]:
    await held.wait()
    yield b""


async def _has_seen(server: Server, number: int) -> bool:
    return len(server.seen) >= number


EVENTS = {"accept": "text/event-stream"}


def events(*blocks: str, pause_s: float = 0.0, broken: bool = False) -> Answer:
    async def body() -> AsyncIterator[str]:
        for block in blocks:
            await asyncio.sleep(pause_s)
            yield block
        if broken:
            raise ConnectionError("the test breaks the stream off")

    return lambda _: StreamingResponse(body(), media_type="text/event-stream")


STREAMS: dict[str, tuple[dict[str, int], list[str], int]] = {
    "a request": ({"request": 5}, ["data: a\n\n", "data: b\n\n"], 5),
    "bytes of events": ({"byte": 1}, ["event: x\nid: 1\ndata: abc\n\n", ": note\n\n"], 3),
    "bytes of other letters": ({"byte": 9}, ["data: äöüß\n\n"] * 4, 288),
    "CRLF": ({"byte": 1}, ["data: a\r\n\r\ndata: b\r\n\r\n"], 2),
    "without a space": ({"byte": 1}, ["data:a\n\n"], 1),
    "no blank line at the end": ({"byte": 1}, ["data: a\n\ndata: b"], 2),
    "rows stated at the end": (
        {"row": 2},
        ['data: {"x": 1}\n\n'] * 3 + ['data: {"usage": {"rows": 9}}\n\n', "data: [DONE]\n\n"],
        18,
    ),
    "rows stated as a running total": (
        {"row": 2},
        [f'data: {{"usage": {{"rows": {rows}}}}}\n\n' for rows in (2, 4, 4, 9)],
        18,
    ),
    "rows never stated": ({"row": 2}, ['data: {"x": 1}\n\n'] * 3, 6),
    "rows that shrink": (
        {"row": 2},
        [f'data: {{"usage": {{"rows": {rows}}}}}\n\n' for rows in (5, 1)],
        10,
    ),
    "rows that are none": (
        {"row": 2},
        [f'data: {{"usage": {{"rows": {rows}}}}}\n\n' for rows in ("-5", '"7"', "1e3", "null")],
        8,
    ),
    "several kinds": (
        {"request": 100, "row": 2},
        ['data: {"usage": {"rows": 2}}\n\n', 'data: {"usage": {"rows": 3}}\n\n'],
        106,
    ),
    "forged payment events": (
        {"request": 5},
        ["event: payment-receipt\ndata: {}\n\n", "data: b\n\n"],
        5,
    ),
}


async def test_a_stream_is_charged_event_by_event(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    rows = []
    for number, (rates, _, _) in enumerate(STREAMS.values()):
        usage = {"usage": {"row": "json usage.rows"}} if "row" in rates else {}
        rows.append(row(f"/{number}", rates=rates, **usage))
    async with shop(run_gateway, open_agent, server, *rows) as (gateway, agent):
        wrong, spent = {}, 0
        for number, (name, (_, blocks, cost)) in enumerate(STREAMS.items()):
            server.answer = events(*blocks)
            answer = await agent.get(f"{gateway.url}/{number}", headers=EVENTS)
            state = await gateway.channel()
            charged, spent = state.spent - spent, state.spent
            sent = "".join(blocks)
            kept = re.sub(r"payment-u(?:nits|sage): .*\n", "", answer.text)
            passes = "forged" in name or kept.startswith(sent)
            counted = sum(one.counted for one in await agent.payments.channels())
            found = (answer.status_code, charged, state.reserved, passes, counted)
            if found != (200, cost, 0, True, spent):
                wrong[name] = (*found, answer.text)
        assert wrong == {}


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_an_doneof_the_other_form_is_not_passed_on(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server, accept: str
) -> None:
    """What is held is a step for a stream, and the greatest cost for an answer in one piece."""
    is_stream = accept == "text/event-stream"
    server.answer = events("data: a\n\n") if not is_stream else lambda _: Response(b"x")
    async with shop(run_gateway, open_agent, server, row("/a", **BYTES)) as (gateway, agent):
        answer = await agent.get(f"{gateway.url}/a", headers={"accept": accept})
        assert answer.status_code == 502, answer.text
        assert "event stream" in answer.text
        assert (await gateway.channel()).spent == 0


async def test_a_stream_that_breaks_off_says_so_and_ends_with_its_receipt(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    server.answer = events("data: a\n\n", "data: b\n\n", pause_s=0.02, broken=True)
    rows = row("/a", rates={"byte": 1})
    async with shop(run_gateway, open_agent, server, rows) as (gateway, agent):
        answer = await agent.get(f"{gateway.url}/a", headers=EVENTS)
        assert "event: error" in answer.text
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (2, 0)


async def test_an_event_longer_than_any_is_refused_and_not_held_in_memory(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    server.answer = events("data: a\n\n", *["x" * 65_536] * 40)
    rows = row("/a", rates={"request": 1})
    async with shop(run_gateway, open_agent, server, rows) as (gateway, agent):
        answer = await agent.get(f"{gateway.url}/a", headers=EVENTS)
        assert "too long" in answer.text
        assert (await gateway.channel()).spent == 1


ANSWERS: dict[str, tuple[Answer, int, str]] = {
    "500": (lambda _: Response(b"broken", 500), 500, "broken"),
    "404": (lambda _: JSONResponse({"detail": "none"}, 404), 404, "none"),
    "304": (lambda _: Response(None, 304), 502, "redirects with 304"),
    "307": (lambda _: Response(None, 307, {"location": "//x"}), 502, "redirects"),
    "401": (lambda _: Response(None, 401), 502, "refused the gateway"),
    "402": (lambda _: Response(None, 402), 502, "refused the gateway"),
    "br": (lambda _: Response(b"x", 200, {"content-encoding": "br"}), 502, "coded as br"),
    "no gzip": (lambda _: Response(b"x", 200, {"content-encoding": "gzip"}), 502, "coding"),
    "cut short": (lambda _: Response(b"x", 200, {"content-length": "9"}), 502, "broke off"),
}


async def test_an_donethat_sells_nothing_costs_nothing(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    async with shop(run_gateway, open_agent, server, row()) as (gateway, agent):
        wrong = {}
        for name, (build, status, text) in ANSWERS.items():
            server.answer = build
            answer = await agent.get(f"{gateway.url}/things/1")
            state = await gateway.channel()
            found = (answer.status_code, text in answer.text, state.spent, state.reserved)
            if found != (status, True, 0, 0):
                wrong[name] = (*found, answer.text)
        assert wrong == {}


async def test_a_channel_that_leaves_uncounted_answers_pays_in_advance(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    rows = [row("/a", **ROWS)]
    async with (
        run_gateway(
            upstream__url=server.url, prices__rows=rows, upstream__abandoned_units_max=64
        ) as gateway,
        open_agent(request_units_max=10**6) as agent,
    ):
        server.answer = lambda _: StreamingResponse(_wait(asyncio.Event()))
        spent = []
        for number in range(1, 5):
            asking = asyncio.create_task(agent.get(f"{gateway.url}/a"))
            await until(partial(_has_seen, server, number))
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            await until(lambda: is_free(gateway))
            spent.append((await gateway.channel()).spent)
        assert spent == [0, 0, 0, 300]


async def test_prices_of_paths_are_shown_and_change_while_serving(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    """`/openapi.json`, `/llms.txt` and the page show each row; a model may stand beside it."""
    old = row(description="Things by name", rates={"request": "0.001"})
    model = {"model": "tiny", "output": "0.40"}
    async with shop(run_gateway, open_agent, server, old, model) as (gateway, agent):
        document = (await agent.get(f"{gateway.url}/openapi.json")).json()
        shown = document["paths"]["/things/{name}"]["get"]
        assert shown["summary"] == "Things by name"
        assert shown["x-payment-info"]["offers"][0]["amount"] == "1000"
        assert "/v1/chat/completions" in document["paths"]
        for path in ("/llms.txt", "/"):
            assert "/things/{name}" in (await agent.get(f"{gateway.url}{path}")).text
        models = (await agent.get(f"{gateway.url}/v1/models")).json()["data"]
        assert [one["id"] for one in models] == ["tiny"]
        new = row(
            "/other/{name}", rates={"request": 3}, valid_from=datetime(2020, 1, 1, tzinfo=UTC)
        )
        gateway.gateway.replace_prices(read_price_rows([new]))
        assert (await agent.get(f"{gateway.url}/things/1")).status_code == 404
        assert (await agent.get(f"{gateway.url}/other/1")).status_code == 200
        assert (await gateway.channel()).spent == 3
        document = (await agent.get(f"{gateway.url}/openapi.json")).json()
        assert "/v1/chat/completions" not in document["paths"]
        assert "Requests to a server." in document["info"]["description"]


async def test_a_template_over_everything_leaves_the_gateway_s_own_paths_free(
    run_gateway: RunGateway, open_agent: OpenAgent, server: Server
) -> None:
    rows = row("/{rest:path}", rates={"request": 9})
    async with shop(run_gateway, open_agent, server, rows) as (gateway, agent):
        for path in ("/openapi.json", "/v1/models", "/mpp-session/paced", "/health"):
            assert (await agent.get(f"{gateway.url}{path}")).status_code == 200, path
        assert await gateway.channels() == []
        assert (await agent.get(f"{gateway.url}/any/thing")).status_code == 200
        assert (await gateway.channel()).spent == 9


@pytest.mark.parametrize(
    ("sold", "said"),
    [
        (row("/v1/models"), "answered by the gateway"),
        (row("/openapi.json"), "answered by the gateway"),
        (row("/v1/chat/completions", "POST"), "sells by model"),
        (row("/{rest:path}", "POST"), "sells by model"),
    ],
)
async def test_a_row_cannot_price_what_the_gateway_answers_itself(
    run_gateway: RunGateway, sold: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        async with run_gateway(prices__rows=[sold]):
            pass
