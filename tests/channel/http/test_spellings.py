"""O-40: a path that a framework answers like a priced one is never served free, however spelled.

Each framework is the real one, and serves `/joke` and three more; the gate stands around it.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from channel.errors import ConfigError
from channel.http import PaymentGate, Price, Route
from channel.http.pricing import RouteTable
from channel.limits import PATH_DECODINGS_MAX, UNICODE_PATH_CHARS_MAX
from channel.wire.spelling import Unreadable, read_path
from tests.channel.selling import Answer, Provider, Visit, ask, open_provider
from tests.frameworks import BUILDERS, SOLD, living

PRICE = Price(unit_price=1, unit_type="joke")
PATHS = ("/joke", "/img/{size}", "/files/{rest:path}", "/sub/joke")
ROUTES = [Route(method="GET", path=path, price=PRICE) for path in PATHS]
PLAIN = ("/joke", "/img/big", "/files/a/b", "/sub/joke", "/files")


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with open_provider(tmp_path) as opened:
        yield opened


def spellings(path: str) -> Iterator[str]:
    """Request targets that some server or framework may take for `path`."""
    last = path[-1]
    yield from (path, path.upper(), path.capitalize(), path[:-1] + last.upper())
    for end in ("/", "//", "/.", "/x/..", ";x=1", ";", ".", "%00", "%20", "%09", "%0A", "%0D%0A"):
        yield path + end
    for end in ("%2F", "%5C", "%3Fx", "%23x", "/%20", "/%00", "%20/", ";/", "%3B", "%252F"):
        yield path + end
    for start in ("/", "//", "///", "//x", "/.", "/..", "/a/..", "/a/%2e%2e", "/%2e", "http://h"):
        yield start + path
    for start in ("http://h/", "HTTP://h", "/%20", "/a/b/../..", "/a;b/..", "/%5C", "/%2F%2F"):
        yield start + path
    for slash in ("//", "/./", "\\", "%5C", "%2F", "%C0%AF", "%252F", "%EF%BC%8F", "/x/../"):
        yield path.replace("/", slash)
        yield "/" + path[1:].replace("/", slash)
    yield path[1:]
    letter = path[1]
    for code in (f"%{ord(letter):02X}", f"%25{ord(letter):02X}", f"%2525{ord(letter):02X}"):
        yield "/" + code + path[2:]
    yield f"/%C1%{0x80 | ord(letter) & 0x3F:02X}{path[2:]}"  # overlong UTF-8
    for narrow, wide in (
        ("o", "%EF%BD%8F"),
        ("k", "%E2%84%AA"),
        ("s", "%C5%BF"),
        ("b", "%EF%BC%A2"),
    ):
        yield path.replace(narrow, wide)


TARGETS = list(dict.fromkeys(one for path in PLAIN for one in spellings(path)))


async def get(app: Callable[..., Any], target: str, root: str = "") -> Answer:
    """Ask as uvicorn does: the whole target is the raw path, with the server's root before it."""

    async def rooted(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raw = root + target
        path = {"path": unquote(raw), "raw_path": raw.encode("latin-1"), "root_path": root}
        await app(scope | path | {"state": {}}, receive, send)

    visit = Visit(rooted, "GET", "/", headers={"host": "h"})
    try:
        return await visit.answer()
    except Exception as error:  # noqa: BLE001 - the framework's own, of a path that it cannot read
        return Answer(500, [], repr(error).encode())


@pytest.mark.filterwarnings("default")  # the frameworks' own, on newer Pythons
@pytest.mark.parametrize("root", ["", "/api"])
@pytest.mark.parametrize("name", BUILDERS)
async def test_no_spelling_is_served_unpaid(provider: Provider, name: str, root: str) -> None:
    """O-40: BlackSheep's `/JOKE`, `//joke` of Litestar, Quart and Flask, and all the others."""
    app = BUILDERS[name]()
    gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
    async with living(app):
        if not (root and name == "falcon"):  # which leaves the root where it is
            assert (await get(app, "/joke", root)).body == SOLD.encode()
        assert (await get(gate, "/joke", root)).status == 402
        for target in TARGETS:
            answer = await get(gate, target, root)
            assert answer.body != SOLD.encode(), target
            if answer.status == 404 and answer.header("content-type") == "application/problem+json":
                assert "Ask for /" in answer.problem["detail"]
        assert (await get(gate, "/Jokes", root)).header("content-type") != PROBLEM


PROBLEM = "application/problem+json"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("blacksheep", "/JOKE"),
        ("litestar", "//joke"),
        ("litestar", "/joke//"),
        ("quart", "//joke"),
        ("quart", "http://h/joke"),
        ("flask", "//joke"),
        ("falcon", "//joke"),
    ],
)
async def test_frameworks_do_answer_under_other_spellings(
    provider: Provider, name: str, target: str
) -> None:
    """O-40: what the test above is about; without a gate each of these is served."""
    app = BUILDERS[name]()
    gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
    async with living(app):
        assert (await get(app, target)).body == SOLD.encode()
        refused = await get(gate, target)
        assert (refused.status, refused.kind) == (404, "not-found")
        assert refused.problem["detail"].endswith("Ask for /joke.")
        assert refused.header("www-authenticate") is None


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["blacksheep", "litestar", "falcon"])
async def test_a_slash_at_the_end_is_priced_as_without(provider: Provider, name: str) -> None:
    """O-40: several frameworks serve both, and one that does not charges nothing for its 404."""
    app = BUILDERS[name]()
    gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
    async with living(app):
        assert (await get(app, "/joke/")).body == SOLD.encode()
        assert (await get(gate, "/joke/")).status == 402
        assert (await get(gate, "/joke/;")).status == 404


@pytest.mark.parametrize("target", ["/", "/jokes", "/free/Page", "/a//b", "/img", "/q/%25", "/é/x"])
async def test_what_has_no_price_passes_as_it_is(provider: Provider, target: str) -> None:
    """O-40: the gate overlooks nothing of a path that it does not sell."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(scope["path"])(scope, receive, send)

    gate = PaymentGate(echo, engine=provider.engine, routes=ROUTES)
    assert (await get(gate, target)).body.decode() == unquote(target)


async def test_a_path_that_no_client_sends_is_refused_without_work(provider: Provider) -> None:
    """O-40, F-100: so many layers, and so many characters to fold, and not one more."""
    layers = PATH_DECODINGS_MAX - 2
    assert read_path("/%" + "25" * layers + "6a") == {"/j"}
    with pytest.raises(Unreadable):
        read_path("/%" + "25" * (layers + 1) + "6a")
    assert read_path("/" + "é" * (UNICODE_PATH_CHARS_MAX - 1))
    with pytest.raises(Unreadable):
        read_path("/" + "é" * UNICODE_PATH_CHARS_MAX)
    gate = PaymentGate(BUILDERS["starlette"](), engine=provider.engine, routes=ROUTES)
    assert (await get(gate, "/" + "%C3%A9" * UNICODE_PATH_CHARS_MAX)).status == 404


async def test_a_price_by_path_is_not_that_of_another_path(provider: Provider) -> None:
    """O-40: `/files/cheap/../dear` would be priced as one file and served as another."""

    def by_file(scope: Mapping[str, Any]) -> Price:
        return Price(unit_price=1 if "/cheap" in scope["path"] else 9, unit_type="file")

    table = RouteTable([Route(method="GET", path="/f/{rest:path}", price=by_file)], provider.engine)
    assert [one.price.unit_price for one in table.match({"path": "/f/cheap"})] == [1]
    gate = PaymentGate(
        BUILDERS["starlette"](),
        engine=provider.engine,
        routes=[Route(method="GET", path="/f/{rest:path}", price=by_file)],
    )
    for target in ("/f/cheap/../dear", "/f/cheap/%2e%2e/dear", "/f/cheap%5C..%5Cdear", "/f//dear"):
        assert (await get(gate, target)).status == 404


async def test_a_cheap_template_does_not_buy_what_a_dear_one_sells(provider: Provider) -> None:
    """O-40: BlackSheep takes `/a/B` for `/a/b`, for any price of `/a/{x}`."""
    routes = [
        Route(method="GET", path="/a/b", price=Price(unit_price=100, unit_type="u")),
        Route(method="GET", path="/a/{x}", price=Price(unit_price=1, unit_type="u")),
    ]
    gate = PaymentGate(BUILDERS["starlette"](), engine=provider.engine, routes=routes)
    assert (await get(gate, "/a/c")).status == (await get(gate, "/a/b")).status == 402
    for target in ("/a/B", "/a/b%20", "/a/x/../b"):
        assert (await get(gate, target)).status == 404


# -- methods


class Everything:
    """Answers every method in the same way, as a Django view function does."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        await PlainTextResponse(SOLD)(scope, receive, send)


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "TRACE", "PROPFIND", "get", "HEAD"])
async def test_a_method_that_is_not_listed_is_not_served(provider: Provider, method: str) -> None:
    """O-40: a handler of every method would answer it as it answers the one that has a price."""
    app = Everything()
    gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
    answer = await ask(gate, method, "/joke")
    if method in {"get", "HEAD"}:
        assert answer.status == 402
    else:
        assert (answer.status, answer.kind) == (405, "method-not-sold")
        assert answer.header("allow") == "GET"
    assert app.calls == 0


async def test_a_method_that_is_listed_as_free_passes(provider: Provider) -> None:
    """O-40: what is free beside what is sold is listed so; HEAD stays the gate's."""
    app = Everything()
    routes = [
        Route(method="POST", path="/img/{size}", price=PRICE),
        Route(method="GET", path="/img/{size}", price=None),
        Route(method="GET", path="/files", price=None),
        Route(method="GET", path="/files/{rest:path}", price=PRICE),
    ]
    gate = PaymentGate(app, engine=provider.engine, routes=routes)
    assert (await ask(gate, "GET", "/img/big")).body == SOLD.encode()
    assert (await ask(gate, "GET", "/files")).body == SOLD.encode()
    assert app.calls == 2
    assert (await ask(gate, "GET", "/files/a")).status == 402
    refused = await ask(gate, "DELETE", "/img/big")
    assert (refused.status, refused.header("allow")) == (405, "POST, GET")
    assert (await ask(gate, "HEAD", "/img/big")).status == 402
    assert app.calls == 2


@pytest.mark.parametrize(
    "route",
    [
        Route(method="GET", path="/x", price=None),
        Route(method="GET", path="/x", price=None, metered=True),
        Route(method="WEBSOCKET", path="/x", price=Price(rates={"joke": 1, "second": 2})),
        Route(method="WEBSOCKET", path="/x", price=Price(unit_price=1, unit_type="x", units=2)),
    ],
    ids=["nothing sold", "metered for nothing", "a websocket uncounted", "several connections"],
)
async def test_a_listing_that_contradicts_itself_is_refused(
    provider: Provider, route: Route
) -> None:
    with pytest.raises(ConfigError):
        RouteTable([route], provider.engine)


@pytest.mark.parametrize("field", ["x-http-method-override", "x-http-method", "x-method-override"])
async def test_a_field_does_not_change_the_method_that_is_sold(
    provider: Provider, field: str
) -> None:
    """O-40: `POST` at its price, taken by a middleware of the application's for the dear `GET`."""
    app = Everything()
    routes = [
        Route(method="GET", path="/joke", price=Price(unit_price=100, unit_type="joke")),
        Route(method="POST", path="/joke", price=PRICE),
    ]
    gate = PaymentGate(app, engine=provider.engine, routes=routes)
    provider.payer.open_on_chain()
    challenge = (await ask(gate, "POST", "/joke")).challenge
    opening = provider.payer.credential(challenge, provider.payer.opening(1))
    overridden = await ask(gate, "POST", "/joke", opening, headers={field: "GET"}, body=b"{}")
    assert (overridden.status, app.calls) == (400, 0)
    assert (
        await ask(gate, "POST", "/joke", opening, headers={field: "post"}, body=b"{}")
    ).status == 200


@pytest.mark.parametrize("field", ["x-http-method-override", "x-http-method", "x-method-override"])
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
async def test_a_field_does_not_make_a_free_method_one_that_is_sold(
    provider: Provider, field: str, method: str
) -> None:
    """O-40: a free `POST`, or a browser's question, taken for the `GET` that has a price."""
    app = Everything()
    routes = [
        Route(method="GET", path="/joke", price=PRICE),
        Route(method="POST", path="/joke", price=None),
    ]
    gate = PaymentGate(app, engine=provider.engine, routes=routes)
    asks = {"origin": "https://a.example.com", "access-control-request-method": "GET"}
    overridden = await ask(gate, method, "/joke", headers={**asks, field: "GET"})
    assert (overridden.status, app.calls) == (400, 0)
    assert (await ask(gate, method, "/joke", headers=asks)).status == 200


async def test_a_browser_may_ask_ahead_and_gets_no_content(provider: Provider) -> None:
    """O-40: a preflight has no credential; its answer has a head and nothing else."""
    preflight = {"origin": "https://a.example.com", "access-control-request-method": "GET"}

    async def joke(_: Request) -> Response:
        return PlainTextResponse(SOLD)

    inner = CORSMiddleware(
        Starlette(routes=[AppRoute("/joke", joke)]),
        allow_origins=["*"],
    )
    gate = PaymentGate(inner, engine=provider.engine, routes=ROUTES)
    answer = await ask(gate, "OPTIONS", "/joke", headers=preflight)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.header("access-control-allow-origin") == "*"
    assert answer.header("content-length") == "0"

    async def pathsend(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/joke.txt"})

    for app in (Everything(), pathsend):
        gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
        visit = Visit(gate, "OPTIONS", "/joke", headers=preflight)
        assert (await visit.answer()).body == b""
        kinds = [message["type"] for message in visit.sent]
        assert kinds == ["http.response.start", "http.response.body"]


# -- websockets


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(SOLD)
    await socket.close()


@pytest.mark.parametrize("path", ["/joke", "/JOKE", "//joke", "/img/big", "/sub/joke/"])
@pytest.mark.parametrize("has_extension", [True, False])
async def test_a_websocket_under_a_priced_path_is_refused(
    provider: Provider, path: str, *, has_extension: bool
) -> None:
    """O-40: its messages would be served unpaid."""
    app = Starlette(routes=[WebSocketRoute("/{rest:path}", talk)])
    gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        if not has_extension:
            scope.pop("extensions", None)
        await gate(scope | {"path": path}, receive, send)

    client = TestClient(server)
    refusal = WebSocketDenialResponse if has_extension else WebSocketDisconnect
    with pytest.raises(refusal) as refused, client.websocket_connect("/"):
        pass
    if isinstance(refused.value, WebSocketDenialResponse):
        assert refused.value.status_code in {404, 405}
        assert refused.value.headers["content-type"] == PROBLEM


async def test_a_websocket_elsewhere_or_listed_as_free_passes(provider: Provider) -> None:
    app = Starlette(routes=[WebSocketRoute("/{rest:path}", talk)])
    routes = [*ROUTES, Route(method="WEBSOCKET", path="/joke", price=None)]
    client = TestClient(PaymentGate(app, engine=provider.engine, routes=routes))
    for path in ("/talk", "/joke"):
        with client.websocket_connect(path) as socket:
            assert socket.receive_text() == SOLD


# -- below another path


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
async def test_an_application_with_a_root_path_sells_under_both_its_paths(
    provider: Provider,
) -> None:
    """O-40, F-31: `FastAPI(root_path="/api")` serves `/joke` at `/api/joke`, too."""
    app = BUILDERS["fastapi"]()
    app.root_path = "/api"  # type: ignore[attr-defined]
    gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
    for target in ("/joke", "/api/joke"):
        assert (await get(app, target)).body == SOLD.encode()
        assert (await get(gate, target)).status == 402
    assert (await get(gate, "/API/joke/")).status == 404


@pytest.mark.filterwarnings("default")
async def test_an_application_that_ignores_the_servers_root_is_priced_as_it_answers(
    provider: Provider,
) -> None:
    """O-40: Falcon takes `/files/x` for itself, also where the server's root is `/files`."""
    gate = PaymentGate(BUILDERS["falcon"](), engine=provider.engine, routes=ROUTES)
    assert (await get(gate, "/a/b", "/files")).status == 402
    assert (await get(gate, "/A/b", "/FILES")).status == 404


async def test_a_gate_below_a_mount_reads_spellings_below_it(provider: Provider) -> None:
    """O-40, O-51: in Starlette's mount; BlackSheep inside it takes `/JOKE` for `/joke`."""
    app = BUILDERS["blacksheep"]()
    gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
    site = Starlette(routes=[Mount("/paid", gate)])
    async with living(app):
        assert (await get(site, "/paid/joke")).status == 402
        for target in ("/paid/JOKE", "/paid//joke", "/paid/joke/.", "/paid/a/../joke"):
            assert (await get(site, target)).status == 404


async def test_a_gate_below_a_path_that_is_cut_off_is_bound_to_it(provider: Provider) -> None:
    """F-31, O-51: Litestar's mount shows `/joke/` for `/dear/joke`, and no root."""
    table = RouteTable(ROUTES, provider.engine)
    for raw in (b"/cheap/joke", b"/dear/joke", b"/dear/joke/"):
        (priced,) = table.match({"path": "/joke/", "raw_path": raw})
        assert priced.offer.route == raw.decode().rstrip("/")
    (priced,) = table.match({"path": "/joke", "raw_path": b"/joke"})
    assert priced.offer.route == "/joke"
