"""One endpoint that takes a session, a charge and x402, in a process of its own.

    python -m mpp_session.demo.shop shop.toml devnet.json

Prints `listening on URL` and serves until its standard input ends. `sell` starts the settler, which
sends the transfers.
"""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as Endpoint

from channel.http import Price, Route
from mpp_session.process.logs import log_to_stderr
from mpp_session.process.signals import stop_at_eof
from mpp_session.selling import sell

__all__ = ["JOKE", "PATH", "PRICE", "UNIT", "main"]

PATH: Final = "/joke"
UNIT: Final = "joke"
PRICE: Final = 10_000
"""0.01 of a token with six decimals: the least that `rails.amount_min` takes as it is."""
JOKE: Final = "A payer walks into a channel."


def main() -> None:
    """Serve until standard input ends."""
    log_to_stderr("warning")
    config, devnet = map(Path, sys.argv[1:])
    asyncio.run(_serve(config, devnet))


async def _serve(config: Path, devnet: Path) -> None:
    async def joke(_: Request) -> Response:
        return PlainTextResponse(JOKE)

    price = Price(unit_price=PRICE, unit_type=UNIT)
    app = sell(
        Starlette(routes=[Endpoint(PATH, joke)]),
        [Route(method="GET", path=PATH, price=price)],
        config=config,
        devnet=devnet,
    )
    stopping = asyncio.Event()
    stop_at_eof(stopping)
    server = _Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        ending = asyncio.create_task(stopping.wait())
        await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()
            print(f"listening on http://{host}:{port}", flush=True)  # noqa: T201 -- its one output


if __name__ == "__main__":
    main()
