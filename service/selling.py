"""An ASGI application of one's own, paid for: `app = sell(app, routes)` and any ASGI server.

    app = sell(api, routes=[
        Route(method="GET", path="/joke", price=Price(unit_price=250, unit_type="request")),
    ])

The settings are a gateway's without `upstream`, `price` and `listen`: docs/configuration.md.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channel.errors import MppSessionError
from channel.http import PaymentGate, Route
from service.config import load_provider_config
from service.errors import CommandError
from service.settings import ProviderConfig
from service.stopping import before_signals
from service.wiring import build_parts

__all__ = ["SellingApp", "sell"]

_log: Final = logging.getLogger(__name__)


def sell(
    app: ASGIApp, routes: Sequence[Route], *, config: Path | str | None = None
) -> "SellingApp":
    """Return the application with a gate in front of it that sells `routes`.

    Args:
        app: Any ASGI application: FastAPI, Starlette, ...
        routes: What must be paid for; everything else passes.
        config: A TOML file; the environment alone if None. It is read when the server starts.
    """
    return SellingApp(app, routes, load=lambda: _load(config))


def _load(config: Path | str | None) -> ProviderConfig:
    return load_provider_config(None if config is None else Path(config))


class SellingApp:
    """An application and its gate; ledger, chain and background tasks live as long as it does.

    It needs the lifespan protocol, which uvicorn and its like speak by default: what would lose
    money later fails the start-up there, before anything is served.
    """

    def __init__(
        self, app: ASGIApp, routes: Sequence[Route], *, load: Callable[[], ProviderConfig]
    ) -> None:
        self._app = app
        self._routes = routes
        self._load = load
        self._gate: PaymentGate | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's whole life."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif self._gate is None:
            raise CommandError("the server does not speak ASGI's lifespan protocol")
        else:
            await self._gate(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = await receive()
        async with AsyncExitStack() as open_:
            try:
                parts = await open_.enter_async_context(build_parts(self._load()))
                gate = PaymentGate(self._app, engine=parts.engine, routes=self._routes)
            except MppSessionError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            guards = [
                asyncio.create_task(work, name=name) for name, work in parts.background().items()
            ]
            for guard in guards:
                guard.add_done_callback(_stop_server)
            open_.push_async_callback(_cancel, guards)
            # A server waits for its streams before it says that it stops (O-32).
            open_.enter_context(before_signals(parts.engine.end_streams))
            self._gate = gate
            ended = await _pass_on(self._app, scope, started, receive, send)
        # The books are closed before the server hears that it may go.
        if ended is not None:
            await send(ended)


async def _pass_on(
    app: ASGIApp, scope: Scope, started: Message, receive: Receive, send: Send
) -> Message | None:
    """Let the application live its own life; return its farewell instead of sending it.

    One that ends before it has said anything does not speak the protocol: it is lived for it.
    """
    ahead = [started]
    farewell: list[Message] = []
    has_spoken = False

    async def replay() -> Message:
        return ahead.pop() if ahead else await receive()

    async def hold_back(message: Message) -> None:
        nonlocal has_spoken
        has_spoken = True
        if message["type"].startswith("lifespan.shutdown"):
            farewell.append(message)
        else:
            await send(message)

    try:
        await app(scope, replay, hold_back)
    except Exception as error:
        if has_spoken:
            raise
        _log.info("the application has no life of its own: %s", error)
    if has_spoken:
        return farewell[0] if farewell else None
    await send({"type": "lifespan.startup.complete"})
    while (await replay())["type"] != "lifespan.shutdown":
        pass
    return {"type": "lifespan.shutdown.complete"}


def _stop_server(guard: "asyncio.Task[None]") -> None:
    """Ask the server to end: without what guards the money nothing may be served."""
    if not guard.cancelled():
        reason = guard.exception()
        _log.critical("the server stops because %s ended", guard.get_name(), exc_info=reason)
        signal.raise_signal(signal.SIGTERM)


async def _cancel(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
