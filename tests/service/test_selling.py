"""An application of one's own behind a gate, whatever it says to the server about its life."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as Endpoint
from starlette.types import ASGIApp

from channel.errors import InvariantError
from channel.http import Price, Route
from channel.types import ChannelId, SignedVoucher
from channel.wire.challenge import parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import VoucherPayload
from service.selling import SellingApp
from service.testing.chain import TestChain
from settlement.watcher import ChannelWatcher
from tests.service.gateway.conftest import build_config
from tests.service.serving import serve
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


async def test_a_server_ends_with_what_guards_the_money(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-64: nobody is served by a process that no longer watches the chain."""
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
