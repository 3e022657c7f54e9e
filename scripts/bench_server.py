"""The application for the load of scripts/bench: the same handlers, paid and unpaid.

    python bench_server.py SERVER PORT LEDGER_URL CHANNELS

`/paid` and `/stream` stand behind the gate; `/free` and `/free-stream` answer the same from an
application without one.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route as Path

from bench_world import PRICE, World, key_of
from channel.http import PaidEventStream, PaymentGate, Price, Route
from channel.ledger.url import open_ledger
from mpp_session.process.gc_tuning import collect_seldom

BODY: Final = "x" * 256
CHUNK: Final = '{"choices":[{"delta":{"content":" token"}}]}'
ROUTES: Final = [
    Route(method="GET", path="/paid", price=Price(unit_price=PRICE, unit_type="request")),
    Route(
        method="GET",
        path="/stream",
        price=Price(unit_price=PRICE, unit_type="llm_token"),
        metered=True,
    ),
]


async def answer(request: Request) -> PlainTextResponse:
    """Answer a paid or unpaid request."""
    del request
    return PlainTextResponse(BODY)


async def tokens(request: Request) -> AsyncIterator[str]:
    """Produce tokens as fast as they are read; with `apart`, each after a turn of the loop."""
    is_apart = "apart" in request.query_params
    for _ in range(int(request.query_params["tokens"])):
        if is_apart:
            await asyncio.sleep(0)
        yield CHUNK


async def stream(request: Request) -> PaidEventStream:
    """Sell tokens one by one."""
    return PaidEventStream(tokens(request))


async def free_stream(request: Request) -> StreamingResponse:
    """Serve the same tokens unpaid."""

    async def events() -> AsyncIterator[str]:
        async for token in tokens(request):
            yield f"data: {token}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


class BenchApp:
    """Routes priced paths through a gate, and the others around it."""

    def __init__(self, ledger_url: str, channels: int) -> None:
        self._ledger_url = ledger_url
        self._channels = channels
        self._app = Starlette(
            routes=[
                Path("/paid", answer),
                Path("/free", answer),
                Path("/stream", stream),
                Path("/free-stream", free_stream),
            ]
        )
        self._gate: PaymentGate | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._gate is not None and scope["path"] in ("/paid", "/stream"):
            await self._gate(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        ledger = await open_ledger(self._ledger_url, exclusive=True)
        world = World(ledger)
        await asyncio.gather(*(world.open([key_of(n)]) for n in range(self._channels)))
        self._gate = PaymentGate(self._app, engine=world.engine, routes=ROUTES)
        collect_seldom()  # as the gateway does, for paid and unpaid requests alike
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await world.engine.aclose()
        await ledger.close()
        await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    """Serve until stopped."""
    server, port, ledger_url, channels = sys.argv[1:]
    app = BenchApp(ledger_url, int(channels))
    if server == "uvicorn":
        import uvicorn  # noqa: PLC0415 - each server in its own process

        # h11 as under the gateway: a parser that a test package brings must change no figure
        uvicorn.run(
            app,
            host="127.0.0.1",
            port=int(port),
            http="h11",
            log_level="warning",
            access_log=False,
        )
    else:
        from granian.constants import Interfaces  # noqa: PLC0415
        from granian.server.embed import Server  # noqa: PLC0415

        asyncio.run(
            Server(app, address="127.0.0.1", port=int(port), interface=Interfaces.ASGI).serve()
        )


if __name__ == "__main__":
    main()
