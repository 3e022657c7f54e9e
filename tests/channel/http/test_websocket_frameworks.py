"""Each framework's own websockets, sold as they are: the gate speaks plain ASGI to all of them."""
# ruff: noqa: PLC0415 -- each framework is imported by the test that needs it

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

from channel.http import PaymentGate, Price, Route
from channel.http.metering import Meter, current_meter, metered
from tests.channel.http.servers import connect
from tests.channel.selling import PRICE, Provider, ask, never_stop, open_provider
from tests.frameworks import living
from tests.mpp_session.serving import serve

COUNTED = Price(rates={"word": PRICE, "message_in": 1})
ROUTE = Route(method="WEBSOCKET", path="/talk", price=COUNTED, metered=True)


def build_fastapi() -> Any:
    from fastapi import Depends, FastAPI, WebSocket

    app = FastAPI()

    async def talk(socket: WebSocket, meter: Annotated[Meter, Depends(current_meter)]) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await meter.spend(word=len(text.split()))
            await socket.send_text(text.upper())

    talk.__annotations__["socket"] = WebSocket
    app.websocket("/talk")(talk)
    return app


def build_litestar() -> Any:
    from litestar import Litestar, websocket

    async def talk(socket: Any) -> None:
        async with metered(socket.scope) as meter:
            await socket.accept()
            async for text in socket.iter_data("text"):
                await meter.spend(word=len(text.split()))
                await socket.send_text(text.upper())

    return Litestar([websocket("/talk")(talk)], openapi_config=None)


def build_quart() -> Any:
    from quart import Quart, websocket

    app = Quart(__name__)

    async def talk() -> None:
        async with metered(websocket.scope) as meter:
            await websocket.accept()
            while True:
                text = await websocket.receive()
                await meter.spend(word=len(text.split()))
                await websocket.send(text.upper())

    app.add_websocket("/talk", "talk", talk)
    return app


def build_blacksheep() -> Any:
    from blacksheep import Application, WebSocket
    from blacksheep.server.routing import Router

    app = Application(router=Router())

    async def talk(socket: WebSocket) -> None:
        async with metered(socket.scope) as meter:
            await socket.accept()
            while True:
                text = await socket.receive_text()
                await meter.spend(word=len(text.split()))
                await socket.send_text(text.upper())

    talk.__annotations__["socket"] = WebSocket
    app.router.add_ws("/talk", talk)
    return app


BUILDERS: dict[str, Callable[[], Any]] = {
    "fastapi": build_fastapi,
    "litestar": build_litestar,
    "quart": build_quart,
    "blacksheep": build_blacksheep,
}


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with open_provider(tmp_path) as opened:
        opened.payer.open_on_chain()
        yield opened


@pytest.mark.filterwarnings("default")  # the frameworks' own, on newer Pythons
@pytest.mark.parametrize("name", BUILDERS)
async def test_a_frameworks_own_websocket_is_sold(provider: Provider, name: str) -> None:
    """WS-03: counted by the handler and by the gate, spent before it goes out."""
    app = BUILDERS[name]()
    gate = PaymentGate(app, engine=provider.engine, routes=[ROUTE], stop_worker=never_stop)
    challenge = (await ask(gate, "HEAD", "/talk")).challenge
    opening = provider.payer.credential(challenge, provider.payer.opening())
    assert (await ask(gate, "HEAD", "/talk", opening)).status == 200
    async with living(app), serve(gate) as url, connect(provider, url, "/talk", 900) as socket:
        await socket.expect("payment-receipt")
        await socket.say("to be or not")
        frame = await socket.frame()
        assert (frame["data"], frame["usage"]) == ("TO BE OR NOT", {"word": 4})
        await socket.send(mpp="payment-close-request")
        last = await socket.expect("payment-close-ready")
        assert last["usage"] == {"word": 4, "message_in": 1}
    books = await provider.books()
    assert (books.spent, books.reservations) == (4 * PRICE + 1, ())
