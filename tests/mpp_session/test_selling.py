"""A user's application behind a gate, with or without support for the lifespan protocol."""

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.routing import Route as Endpoint
from starlette.types import ASGIApp

from channel.errors import ConfigError, InvariantError
from channel.http import Price, Route
from channel.methods.evm.method import EVM
from channel.state.commands import StreamPolicy
from channel.types import ChannelId, SignedVoucher
from channel.wire.challenge import parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    VoucherPayload,
)
from mpp_session.selling import SellingApp, sell
from mpp_session.settings.config import load_provider_config
from mpp_session.testing.chain import TestChain
from settlement.watch.watcher import ChannelWatcher
from tests.frameworks import BUILDERS
from tests.mpp_session.gateway.conftest import build_config
from tests.mpp_session.serving import serve
from tests.waiting import PATIENCE_S

ROUTES = [Route(method="GET", path="/joke", price=Price(unit_price=1, unit_type="joke"))]


async def free(_: Request) -> PlainTextResponse:
    return PlainTextResponse("free")


@asynccontextmanager
async def life(app: Starlette) -> AsyncIterator[None]:
    app.state.lived = "begun"
    yield
    app.state.lived = "ended"


WITH_A_LIFE = Starlette(routes=[Endpoint("/free", free)], lifespan=life)


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")
    await PlainTextResponse("free")(scope, receive, send)


async def silent(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await PlainTextResponse("free")(scope, receive, send)


@pytest.mark.parametrize("app", [WITH_A_LIFE, refusing, silent], ids=["life", "refusing", "silent"])
async def test_the_books_are_open_as_long_as_the_application_serves(
    devnet: TestChain, tmp_path: Path, app: ASGIApp
) -> None:
    """ACC-03: also behind a framework that knows nothing of a server's life, such as Django."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    selling = SellingApp(app, ROUTES, load=lambda: config)
    async with serve(selling) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/free")).text == "free"
        asked = await client.get("/joke")
        challenge = parse_challenges(asked.headers.get_list("www-authenticate"))[0]
        voucher = VoucherPayload(SignedVoucher(ChannelId(bytes(32)), 1, bytes(65)))
        credential = format_credential(Credential(challenge, voucher))
        refused = await client.get("/joke", headers={"authorization": credential})
        assert refused.json()["type"].endswith("session/channel-not-found")
    if isinstance(app, Starlette):
        assert app.state.lived == "ended"


async def test_on_a_devnet_its_file_is_all_that_is_needed(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-61: eight settings were missing; what is set wins."""
    path = tmp_path / "devnet.json"
    await asyncio.to_thread(devnet.values.write, path)
    monkeypatch.setenv("MPP_SESSION_PAYMENT_REALM", "mine")
    async with serve(sell(WITH_A_LIFE, ROUTES, devnet=path)) as url, httpx.AsyncClient() as client:
        asked = await client.get(f"{url}/joke")
    (challenge,) = parse_challenges(asked.headers.get_list("www-authenticate"))
    asks = EVM.parse_request(challenge.request)
    assert challenge.realm == "mine"
    assert asks.recipient == devnet.values.accounts["payee"].address
    assert asks.fee_payer is True
    assert (tmp_path / "devnet.ledger.db").exists()


async def test_an_application_describes_what_it_sells_if_it_is_asked_to(
    devnet: TestChain, tmp_path: Path
) -> None:
    """DISC-04: at the price of the challenge; otherwise its own pages stay as they are."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path, payment__realm="jokes.example")
    selling = SellingApp(WITH_A_LIFE, ROUTES, load=lambda: config, discovery=True)
    async with serve(selling) as url, httpx.AsyncClient(base_url=url) as client:
        document = (await client.get("/openapi.json")).json()
        asked = await client.get("/joke")
        assert (await client.get("/free")).text == "free"
    (challenge,) = parse_challenges(asked.headers.get_list("www-authenticate"))
    (offer,) = document["paths"]["/joke"]["get"]["x-payment-info"]["offers"]
    assert offer["amount"] == str(EVM.parse_request(challenge.request).unit_price)
    assert document["servers"] == [{"url": "https://jokes.example"}]


@pytest.mark.parametrize(("discovery", "enabled"), [(False, True), (True, False)])
async def test_an_application_keeps_its_own_pages(
    devnet: TestChain, tmp_path: Path, *, discovery: bool, enabled: bool
) -> None:
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path, discovery__enabled=enabled)
    selling = SellingApp(WITH_A_LIFE, ROUTES, load=lambda: config, discovery=discovery)
    async with serve(selling) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/openapi.json", "/llms.txt", "/"):
            answer = await client.get(path)
            assert (answer.status_code, answer.text) == (404, "Not Found")


async def test_a_devnet_that_is_not_there_fails_the_start(tmp_path: Path) -> None:
    """O-61: with what to do first."""
    app = sell(WITH_A_LIFE, ROUTES, devnet=str(tmp_path / "devnet.json"))
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        said.append(message)

    await app({"type": "lifespan"}, receive, send)
    assert said[0]["type"] == "lifespan.startup.failed"
    assert "start `mpp-session devnet` first" in said[0]["message"]


async def test_a_server_ends_with_what_guards_the_money(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-64: a process that no longer watches the chain serves no client."""
    asked = asyncio.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    monkeypatch.setattr(ChannelWatcher, "run", _fail)
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    try:
        async with (
            serve(SellingApp(WITH_A_LIFE, ROUTES, load=lambda: config)),
            asyncio.timeout(PATIENCE_S),
        ):
            await asked.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


async def _fail(_: ChannelWatcher) -> None:
    raise InvariantError("a bug")


async def test_routes_that_would_sell_nothing_fail_the_start(
    devnet: TestChain, tmp_path: Path
) -> None:
    """Decision 15: said as the settings' faults are, not left to every request."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        said.append(message)

    await SellingApp(WITH_A_LIFE, [], load=lambda: config)({"type": "lifespan"}, receive, send)
    (failed,) = said
    assert failed["type"] == "lifespan.startup.failed"
    assert "would let everything through" in failed["message"]


async def test_an_application_that_cannot_start_starts_nothing(
    devnet: TestChain, tmp_path: Path
) -> None:
    """Decision 15: its own failure is the server's, not taken for a want of manners."""

    @asynccontextmanager
    async def failing(_: Starlette) -> AsyncIterator[None]:
        raise OSError("no model")
        yield

    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    app = SellingApp(Starlette(lifespan=failing), ROUTES, load=lambda: config)
    said: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        said.append(message["type"])

    with pytest.raises(OSError, match="no model"):
        await app({"type": "lifespan"}, receive, send)
    assert said == ["lifespan.startup.failed"]


# -- frameworks and mounts


@pytest.mark.filterwarnings("default")  # the framework's own
async def test_an_application_of_quart_is_sold(devnet: TestChain, tmp_path: Path) -> None:
    """O-41: its `root_path` is the folder that it lies in."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    app = SellingApp(BUILDERS["quart"](), ROUTES, load=lambda: config)
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/joke")).status_code == 402
        assert (await client.get("/sub/joke")).text == "sold"


def in_fastapi(app: ASGIApp) -> ASGIApp:
    site = FastAPI()
    site.mount("/paid", app)
    return site


def in_starlette(app: ASGIApp) -> ASGIApp:
    return Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/paid", app)]))])


def in_litestar(app: ASGIApp) -> Any:
    @asgi("/paid", is_mount=True, copy_scope=True)
    async def paid(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return Litestar([paid], openapi_config=None)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("mount", "prefix"),
    [(in_fastapi, "/paid"), (in_starlette, "/a/paid"), (in_litestar, "/paid")],
    ids=["fastapi", "starlette", "litestar"],
)
async def test_a_selling_application_below_a_mount_starts_with_its_first_request(
    devnet: TestChain,
    tmp_path: Path,
    mount: Callable[[ASGIApp], Any],
    prefix: str,
) -> None:
    """O-51: no framework tells what is mounted below it of the server's life."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    lived: list[str] = []

    @asynccontextmanager
    async def living(_: Starlette) -> AsyncIterator[dict[str, str]]:
        lived.append("begun")
        yield {"name": "model"}
        lived.append("ended")

    async def name(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.name)

    paths = ("/free", "/free/", "/joke", "/joke/")  # Litestar asks with a slash
    inner = Starlette(routes=[Endpoint(path, name) for path in paths], lifespan=living)
    app = SellingApp(inner, ROUTES, load=lambda: config)
    async with serve(mount(app)) as url, httpx.AsyncClient(base_url=url + prefix) as client:
        answers = await asyncio.gather(*(client.get(path) for path in ("/free", "/joke", "/free")))
        assert [answer.status_code for answer in answers] == [200, 402, 200]
        assert answers[0].text == "model"
        assert (await client.get("/Joke")).status_code == 404
    assert lived == ["begun"]
    (own_life,) = [task for task in asyncio.all_tasks() if task.get_name() == "selling"]
    own_life.cancel()  # as the end of the loop does
    await own_life
    assert lived == ["begun", "ended"]


# -- what goes wrong at the start


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """The signals by which a server was asked to stop."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    yield asked
    signal.signal(signal.SIGTERM, before)


async def say(app: ASGIApp) -> list[Any]:
    """Return the application's messages to a server that starts it and then stops it."""
    heard = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    said: list[Any] = []

    async def receive() -> Any:
        return heard.pop()

    async def send(message: Any) -> None:
        said.append(message)

    await app({"type": "lifespan", "asgi": {}, "state": {}}, receive, send)
    return said


@pytest.mark.parametrize(
    "error", [OSError("no such model"), KeyError("HOME"), ConfigError("no payee")], ids=repr
)
async def test_the_error_that_keeps_a_server_from_starting_is_shown(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """O-59: for any error of `load`; a server would take it for a missing lifespan protocol."""

    def fail() -> Any:
        raise error

    (failed,) = await say(SellingApp(WITH_A_LIFE, ROUTES, load=fail))
    assert failed["type"] == "lifespan.startup.failed"
    assert str(error) in failed["message"]
    if not isinstance(error, ConfigError):
        assert "Traceback" in caplog.text


def test_a_server_that_could_not_start_its_application_ends(tmp_path: Path) -> None:
    """O-59: by uvicorn itself, as a process."""
    (tmp_path / "provider.py").write_text(
        "from channel.http import Price, Route\n"
        "from mpp_session.selling import SellingApp\n"
        "def load():\n"
        "    raise OSError('no such model')\n"
        "PRICE = Price(unit_price=1, unit_type='joke')\n"
        "ROUTES = [Route(method='GET', path='/joke', price=PRICE)]\n"
        "app = SellingApp(None, ROUTES, load=load)\n"
    )
    command = [sys.executable, "-m", "uvicorn", "provider:app", "--port=0"]
    done = subprocess.run(  # noqa: S603 - a fixed program
        command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode != 0
    assert "OSError('no such model')" in done.stderr
    assert "in load" in done.stderr


async def listens_and_fails(_scope: Any, receive: Any, _send: Any) -> None:
    await receive()
    raise OSError("no such model")


async def listens_and_says_so(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no such model"})


async def begins_and_fails(_scope: Any, receive: Any, send: Any) -> None:
    await begins_and_leaves(_scope, receive, send)
    raise OSError("no such model")


async def begins_and_leaves(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def hears_all_and_says_nothing(_scope: Any, receive: Any, _send: Any) -> None:
    await receive()
    await receive()


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (listens_and_fails, ["startup.failed"]),
        (listens_and_says_so, ["startup.failed"]),
        (begins_and_leaves, ["startup.complete", "shutdown.complete"]),
        (hears_all_and_says_nothing, ["startup.complete", "shutdown.complete"]),
    ],
)
async def test_what_an_application_says_of_its_life_is_taken_as_it_means_it(
    devnet: TestChain, tmp_path: Path, app: ASGIApp, said: list[str]
) -> None:
    """O-59: only one that never asks for a message does not speak the protocol."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    heard = await say(SellingApp(app, ROUTES, load=lambda: config))
    assert [one["type"].removeprefix("lifespan.") for one in heard] == said
    if said == ["startup.failed"]:
        assert "no such model" in heard[0]["message"]


async def test_an_application_that_fails_while_it_serves_ends_the_server(
    devnet: TestChain, tmp_path: Path, stopped: list[int]
) -> None:
    """O-59: the books are closed with it, so nothing could be sold."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(OSError, match="no such model"):
        await say(SellingApp(begins_and_fails, ROUTES, load=lambda: config))
    assert stopped == [signal.SIGTERM]


async def test_below_a_mount_a_failed_start_is_shown_and_ends_the_server(
    stopped: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """O-51, O-59: the request learns nothing but that nothing is sold."""

    def fail() -> Any:
        raise OSError("no such model")

    caplog.set_level(logging.INFO)
    app = SellingApp(WITH_A_LIFE, ROUTES, load=fail)
    async with serve(in_fastapi(app)) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/paid/joke", "/paid/free"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert answer.json()["type"].endswith("payment-unavailable")
            assert "model" not in answer.text
    assert stopped == [signal.SIGTERM]
    assert "no such model" in caplog.text


# -- settings


async def test_settings_reach_the_routes_that_say_nothing_themselves(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-57: least rise, suggested deposit, pause and policy of streams were taken and ignored."""
    config = build_config(
        devnet,
        "http://127.0.0.1:9",
        tmp_path,
        payment__min_voucher_delta=70,
        payment__suggested_deposit=90_000,
        payment__pause_timeout_s=1.5,
        payment__stream_policy="reject",
    )

    def by_size(_: Any) -> Price:
        return Price(unit_price=2, unit_type="image")

    own = Price(unit_price=1, unit_type="joke", min_voucher_delta=0, suggested_deposit=50_000)
    routes = [
        Route(method="GET", path="/joke", price=Price(unit_price=1, unit_type="joke")),
        Route(method="GET", path="/image", price=by_size),
        Route(
            method="GET",
            path="/own",
            price=own,
            metered=True,
            pause_s=3,
            stream_policy=StreamPolicy.ALLOW,
        ),
    ]
    app = SellingApp(WITH_A_LIFE, routes, load=lambda: config)
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        asked = {}
        for path in ("/joke", "/image", "/own"):
            fields = (await client.get(path)).headers.get_list("www-authenticate")
            request = EVM.parse_request(parse_challenges(fields)[0].request)
            asked[path] = (request.min_voucher_delta, request.suggested_deposit)
        assert asked == {"/joke": (70, 90_000), "/image": (70, 90_000), "/own": (0, 50_000)}
        gate = app.gate
        assert gate is not None
        found = [gate.table.match({"path": path})[0].route for path in ("/joke", "/own")]
        assert [one.pause_s for one in found] == [1.5, 3]
        assert [one.stream_policy for one in found] == [StreamPolicy.REJECT, StreamPolicy.ALLOW]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("[listen]\nport = 9000", "listen.port"),
        ('[upstream]\nurl = "http://127.0.0.1:9"', "upstream.url"),
        ("[price]\nper_unit = 25", "price.per_unit"),
        ("[settlement]\nsettle_units = 9", "settle_units"),
    ],
)
def test_a_setting_that_an_application_has_no_use_for_is_refused(
    tmp_path: Path,
    devnet: TestChain,
    table: str,
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-57: a setting is used or refused."""
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path)
    file = tmp_path / "selling.toml"
    file.write_text(table)
    defaults = {
        "chain.rpc_url": config.chain.rpc_url,
        "chain.id": config.chain.id,
        "chain.escrow": config.chain.escrow,
        "chain.token": config.chain.token,
        "payee.address": config.payee.address,
        "ledger.url": config.ledger.url,
        "settlement.start": False,
        "payment.realm": "tests",
        "payment.secrets": ["a secret of thirty-two bytes, or more"],
    }
    with pytest.raises(ConfigError, match=named):
        load_provider_config(file, environment={}, defaults=defaults)
    file.write_text("[settlement]\nsettle_units = 9\n[price]\nper_unit = 25")
    assert load_provider_config(file, environment={}, defaults=defaults).price is not None
    of_all_programs = {"MPP_SESSION_LISTEN_PORT": "9000", "MPP_SESSION_PRICE_PER_UNIT": "25"}
    load_provider_config(None, environment=of_all_programs, defaults=defaults)
    for unused in ("listen.port", "price.per_unit"):
        assert f"`{unused}` has no effect" in caplog.text
