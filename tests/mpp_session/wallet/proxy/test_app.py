"""What the proxy passes on, refuses and ends, before a server that a test controls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from channel.errors import BudgetExceededError, PaymentOutcomeUnknownError
from channel.limits import PROXY_CLIENTS_MAX
from mpp_session.settings import Secret
from mpp_session.wallet.proxy import app as proxy_app
from mpp_session.wallet.proxy.clients import Clients, TooManyClientsError
from mpp_session.wallet.proxy.upstreams import UnknownTargetError, Upstreams, parse_upstream
from tests.mpp_session.serving import serve
from tests.mpp_session.wallet.proxy.conftest import TOKEN, proxying
from tests.waiting import until

BEARER = {"Authorization": f"Bearer {TOKEN}"}
REFUSAL = BudgetExceededError(limit="budget", allowed=9, asked=10, origin="https://api.example:443")


class Server:
    """An upstream, and what it saw."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.waits = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def echo(self, request: Request) -> Response:
        self.seen.append(dict(request.headers))
        content = (await request.body()).decode()
        url = f"{request.url.path}?{request.url.query}"
        headers = {"access-control-allow-origin": "*", "alt-svc": "h3", "x-own": "1"}
        return JSONResponse({"url": url, "content": content}, headers=headers)

    async def away(self, request: Request) -> Response:
        return RedirectResponse(request.query_params["to"], 307)

    async def slow(self, request: Request) -> Response:
        self.seen.append(dict(request.headers))
        self.waits.set()
        while not await request.is_disconnected():  # noqa: ASYNC110 -- it has no event
            await asyncio.sleep(0.01)
        self.cancelled.set()
        return Response()

    async def stream(self, request: Request) -> Response:
        kind = request.query_params["kind"]

        async def produce() -> AsyncIterator[bytes]:
            yield b"data: one\n\n"
            await asyncio.sleep(0.01)
            raise ConnectionError("the test breaks the stream off")

        return StreamingResponse(produce(), media_type=kind)

    def app(self) -> Starlette:
        methods = ["GET", "POST"]
        return Starlette(
            routes=[
                Route("/base/away", self.away),
                Route("/slow", self.slow, methods=methods),
                Route("/stream", self.stream),
                Route("/{path:path}", self.echo, methods=methods),
            ]
        )


class Raising(httpx.AsyncHTTPTransport):
    """Fails as a paying transport does, by what the path says, with a key as it makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        key = request.extensions.setdefault("channel.idempotency_key", f"key {len(self.keys)}")
        self.keys.append(key)
        if request.url.path == "/refused":
            raise REFUSAL
        if request.url.path == "/lost":
            raise PaymentOutcomeUnknownError(idempotency_key=key, reason="the test")
        return await super().handle_async_request(request)


@asynccontextmanager
async def unpaid(_: str = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    """A client that pays for nothing: what is asked here is free."""
    async with httpx.AsyncClient(transport=Raising()) as client:
        yield client


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def upstream(server: Server) -> AsyncIterator[str]:
    async with serve(server.app()) as url:
        yield url


@pytest.fixture
async def proxy(upstream: str) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        proxying(unpaid, f"{upstream}/base", f"two={upstream}") as url,
        httpx.AsyncClient(base_url=url, headers=BEARER) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "host", "arrives"),
    [
        ("/v1/a%2Fb?x=1&y=%20", None, "/base/v1/a/b?x=1&y=%20"),
        ("/two/v1?", None, "/v1?"),
        ("/two", None, "/?"),
        ("/v1", "two.localhost:8402", "/v1?"),
        ("/two/v1", "[::1]:1", "/v1?"),
    ],
)
async def test_a_request_reaches_the_upstream_that_it_names(
    proxy: httpx.AsyncClient, path: str, host: str | None, arrives: str
) -> None:
    headers = {"Host": host} if host else {}
    answer = await proxy.post(path, content=b"body", headers=headers)
    assert answer.json() == {"url": arrives, "content": "body"}


async def test_a_forward_proxy_serves_listed_hosts_alone(
    proxy: httpx.AsyncClient, upstream: str
) -> None:
    """A tunnel is refused: what it carries cannot be read, and so not be paid."""
    by = httpx.Proxy(str(proxy.base_url), auth=("agent", TOKEN))
    async with httpx.AsyncClient(mounts={"all://": httpx.AsyncHTTPTransport(proxy=by)}) as client:
        assert (await client.get(f"{upstream}/base/x")).json()["url"] == "/base/x?"
        refused = await client.get("http://other.example/x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_upstream")
        with pytest.raises(httpx.ProxyError, match="404"):
            await client.get("https://other.example/x")


STRANGE: list[tuple[dict[str, str], str, int]] = [
    ({"Host": "rebound.example"}, "/x", 403),
    ({"Host": "127.0.0.1.rebound.example"}, "/x", 403),
    ({"Origin": "https://evil.example"}, "/x", 403),
    ({"Origin": "null"}, "/x", 403),
    ({"Sec-Fetch-Site": "cross-site"}, "/x", 403),
    ({"Authorization": "Bearer sk-of-another-kind"}, "/x", 401),
    ({"X-Api-Key": "mpp_other"}, "/x", 401),
    ({}, "/two/%2e%2E/x", 404),
    ({}, "/two/..%5cx", 404),
    ({"Host": "three.localhost"}, "/x", 404),
]


@pytest.mark.parametrize(("headers", "path", "status"), STRANGE)
async def test_a_stranger_is_refused_before_anything_is_sent(
    proxy: httpx.AsyncClient, server: Server, headers: dict[str, str], path: str, status: int
) -> None:
    url = proxy.base_url.copy_with(raw_path=path.encode())
    answer = await proxy.send(httpx.Request("GET", url, headers={**BEARER, **headers}))
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith("expected")
    assert answer.headers["x-should-retry"] == "false"
    assert server.seen == []


async def test_a_page_that_is_allowed_may_ask_and_read(proxy: httpx.AsyncClient) -> None:
    page = {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"}
    asks = {**page, "Access-Control-Request-Method": "POST"}
    allowed = await proxy.options("/x", headers=asks)
    assert (allowed.status_code, allowed.headers["access-control-allow-methods"]) == (204, "POST")
    answer = await proxy.get("/x", headers=page)
    assert answer.headers.get_list("access-control-allow-origin") == ["https://page.example"]


@pytest.mark.parametrize("field", ["authorization", "x-api-key", "api-key", "x-goog-api-key"])
async def test_the_wallets_token_stays_here_and_everything_else_passes(
    upstream: str, server: Server, field: str
) -> None:
    """And what the upstream says of its own address does not speak for this one."""
    value = f"Bearer {TOKEN}" if field == "authorization" else TOKEN
    sent = {field: value, "Connection": "X-Hop", "X-Hop": "1", "Idempotency-Key": "k", "X-A": "b"}
    key = parse_upstream(f"keyed={upstream}", Secret("sk-upstream"))
    async with proxying(unpaid, upstream, key) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/x", headers=sent)
        assert (await client.get("/keyed/x", headers=sent)).status_code == 200
        kept = {"Authorization": "Bearer sk-own", "X-Api-Key": TOKEN}
        assert (await client.get("/x", headers=kept)).status_code == 200
    plain, keyed, own = server.seen
    assert (plain["idempotency-key"], plain["x-a"]) == ("k", "b")
    assert TOKEN not in str(server.seen)
    assert not {"x-hop", "authorization", "origin"} & plain.keys()
    assert (keyed["authorization"], own["authorization"]) == ("Bearer sk-upstream", "Bearer sk-own")
    assert answer.headers["x-own"] == "1"
    assert not {"alt-svc", "access-control-allow-origin"} & answer.headers.keys()


async def test_a_redirect_leads_through_the_proxy_again(
    proxy: httpx.AsyncClient, upstream: str
) -> None:
    for to, leads in (
        ("/base/next?a=1", "/next?a=1"),
        (f"{upstream}/base/next", "/next"),
        ("next", "/next"),
        ("/elsewhere", "/elsewhere"),
        ("https://other.example/base/x", "https://other.example/base/x"),
    ):
        answer = await proxy.get("/away", params={"to": to})
        assert (answer.status_code, answer.headers["location"]) == (307, leads)


async def test_a_client_that_disconnects_ends_the_upstreams_request(
    proxy: httpx.AsyncClient, server: Server
) -> None:
    asking = asyncio.create_task(proxy.get("/two/slow"))
    await server.waits.wait()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await until(server.cancelled.is_set)


async def test_a_stream_that_breaks_off_ends_with_an_error_that_sdks_read(
    proxy: httpx.AsyncClient,
) -> None:
    """Any other body breaks off, so that no client takes it for a whole one."""
    answer = await proxy.get("/two/stream", params={"kind": "text/event-stream"})
    *_, last = [line for line in answer.text.split("\n\n") if line]
    error = msgspec.json.decode(last.removeprefix("data: "))["error"]
    assert error["message"].startswith("the stream broke off")
    with pytest.raises(httpx.RemoteProtocolError):
        await proxy.get("/two/stream", params={"kind": "text/plain"})


async def test_a_refusal_to_pay_and_a_lost_answer_are_told_apart(
    proxy: httpx.AsyncClient,
) -> None:
    """The first is final, the second is asked for again."""
    found: dict[str, Any] = {}
    for path in ("refused", "lost"):
        answer = await proxy.get(f"/two/{path}")
        retry, error = answer.headers["x-should-retry"], answer.json()["error"]
        found[path] = (answer.status_code, retry, error["code"])
    assert found == {
        "refused": (402, "false", "budget_exceeded"),
        "lost": (504, "true", "payment_outcome_unknown"),
    }


async def test_an_upstream_that_is_not_there_is_asked_for_again() -> None:
    async with proxying(unpaid, "http://127.0.0.1:9") as url, httpx.AsyncClient() as client:
        answer = await client.get(f"{url}/x", headers=BEARER)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (502, "true")


async def test_an_answer_that_its_client_left_is_asked_for_under_the_same_key() -> None:
    """An SDK that gave up waiting for a body sends the same request, and must pay once."""
    transport, whole, left = Raising(), asyncio.Event(), asyncio.Event()

    async def trickle(_: Request) -> Response:
        async def produce() -> AsyncIterator[bytes]:
            yield b"half"
            try:
                await whole.wait()
            finally:
                left.set()
            yield b"whole"

        return StreamingResponse(produce(), media_type="text/plain")

    @asynccontextmanager
    async def open_(_: str) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(transport=transport) as client:
            yield client

    app = Starlette(routes=[Route("/x", trickle, methods=["POST"])])
    async with (
        serve(app) as upstream,
        proxying(open_, upstream) as url,
        httpx.AsyncClient(base_url=url, headers=BEARER) as client,
    ):
        async with client.stream("POST", "/x", content=b"1") as answer:
            await anext(answer.aiter_bytes())
        await left.wait()
        whole.set()
        for content in (b"2", b"1", b"1"):
            assert (await client.post("/x", content=content)).text == "halfwhole"
    first, other, again, last = transport.keys
    assert first == again
    assert len({first, other, last}) == 3


async def test_a_body_too_long_to_be_sent_twice_is_refused(
    proxy: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_app, "KEPT_BODY_BYTES_MAX", 4)
    assert (await proxy.post("/x", content=b"1234")).status_code == 200
    assert (await proxy.post("/x", content=b"12345")).status_code == 413


async def test_as_many_agents_are_served_as_may() -> None:
    """An idle client makes room; one that is in use does not."""
    opened, closed = [], []

    @asynccontextmanager
    async def open_(token: str) -> AsyncIterator[httpx.AsyncClient]:
        opened.append(token)
        async with httpx.AsyncClient() as client:
            yield client
        closed.append(token)

    names = [str(number) for number in range(PROXY_CLIENTS_MAX)]
    async with Clients(open_) as clients, contextlib.AsyncExitStack() as used:
        for name in names[1:]:
            await used.enter_async_context(clients.use(name))
        async with clients.use(names[0]):
            with pytest.raises(TooManyClientsError):
                async with clients.use("one more"):
                    pass
        async with clients.use("one more"), clients.use(names[1]):
            assert closed == [names[0]]
    assert sorted(closed) == sorted(opened) == sorted([*names, "one more"])


@pytest.mark.parametrize(
    "text",
    [
        *("http://api.example", "ftp://api.example", "https://", "https://u:p@api.example"),
        *("v1=https://api.example", "Up=https://api.example", "https://api.example/?a=b"),
    ],
)
def test_an_upstream_that_cannot_be_paid_safely_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="--upstream"):
        parse_upstream(text)


def test_two_upstreams_have_two_names() -> None:
    one, two = parse_upstream("https://a.example"), parse_upstream("https://b.example")
    for found in ([one, two], []):
        with pytest.raises(Exception, match="upstream"):
            Upstreams(found)


def test_a_path_does_not_lead_out_of_its_upstream() -> None:
    """Whichever way it is asked, and httpx would take the dots away."""
    found = Upstreams([parse_upstream("https://a.example/base")])
    for path in (b"/../x", b"/x/..", b"/./x", b"http://a.example/base/../x", b"a.example:443"):
        with pytest.raises(UnknownTargetError):
            found.find(path, b"", "127.0.0.1")
    assert str(found.find(b"http://A.example/base/x", b"", "").url) == "https://a.example/base/x"
