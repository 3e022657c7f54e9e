"""Sells an ASGI application of your own: `app = sell(app, routes)`, served by any ASGI server.

    app = sell(api, routes=[
        Route(method="GET", path="/joke", price=Price(unit_price=250, unit_type="request")),
    ])

The settings are those of a gateway without `upstream`, `price` and `listen`:
docs/reference/configuration.md. On a devnet they follow from its file:
`sell(api, routes, devnet="devnet.json")`.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec.structs import replace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channel.errors import MppSessionError, OperatorError
from channel.http import PaymentGate, Price, Route
from channel.http.asgi import send_problem
from channel.http.hooks import HookCalls, Hooks
from channel.state.commands import StreamPolicy
from channel.tasks import Tasks
from mpp_session.devnet_file import selling_settings
from mpp_session.discovery.service import describe_service, public_url
from mpp_session.discovery.site import DiscoverySite
from mpp_session.errors import CommandError
from mpp_session.observe.books import BooksView
from mpp_session.process.os_limits import forbid_core_files
from mpp_session.process.signals import before_signals
from mpp_session.settings import Payment, ProviderConfig
from mpp_session.settings.config import load_provider_config
from mpp_session.wiring import Parts, build_parts

if TYPE_CHECKING:
    from mpp_session.operated import Operated

__all__ = ["SellingApp", "sell"]

_log: Final = logging.getLogger(__name__)


def sell(
    app: ASGIApp,
    routes: Sequence[Route],
    *,
    config: Path | str | None = None,
    devnet: Path | str | None = None,
    credential_header: Literal["Payment-Authorization"] | None = None,
    discovery: bool = False,
    hooks: Hooks | None = None,
    admin: bool = False,
) -> "SellingApp":
    """Return the application behind a gate that sells `routes`.

    Args:
        app: Any ASGI application: FastAPI, Starlette, ...
        routes: Routes that must be paid for; every other request passes.
        config: A TOML file; the environment alone if None. It is read when the server starts.
        devnet: The file that `mpp-session devnet` writes, for development: it gives every setting
            that neither `config` nor the environment gives. It is read when the server starts.
        credential_header: Header field for credentials, which leaves `Authorization` to the
            application; `payment.credential_header` if None.
        discovery: Whether `/openapi.json`, `/llms.txt` and `/` describe what is sold, instead of
            what the application serves there; see the settings `[discovery]`.
        hooks: Called for every challenge, refusal, deposit, charge, receipt, settlement and alarm:
            see `Hooks`.
        admin: Whether the server opens the operator's port, with dashboard, metrics and health: see
            the settings `[admin]`. Each process of a server opens its own.
    """
    return SellingApp(
        app,
        routes,
        load=lambda: _load(config, devnet, credential_header),
        discovery=discovery,
        hooks=hooks,
        admin=admin,
    )


def _load(
    config: Path | str | None,
    devnet: Path | str | None,
    credential_header: Literal["Payment-Authorization"] | None,
) -> ProviderConfig:
    loaded = load_provider_config(
        None if config is None else Path(config),
        defaults=None if devnet is None else selling_settings(Path(devnet)),
    )
    if credential_header is None:
        return loaded
    payment = replace(loaded.payment, credential_header=credential_header)
    return replace(loaded, payment=payment)


class SellingApp:
    """An application and its gate, with ledger, chain and background tasks of the same lifetime.

    A server that supports the lifespan protocol, as uvicorn does by default, does not start if a
    check fails. Without lifespan, as below the mount of another application, the first request
    starts them, and they end with the event loop.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[Route],
        *,
        load: Callable[[], ProviderConfig],
        discovery: bool = False,
        hooks: Hooks | None = None,
        admin: bool = False,
    ) -> None:
        self._app = app
        self._routes = routes
        self._load = load
        self._discovery = discovery
        self._hooks = hooks
        self._admin = admin
        self._entry: PaymentGate | DiscoverySite | None = None
        self.gate: PaymentGate | None = None
        """Receives the requests while the ledger is open."""
        self._own_life: asyncio.Task[None] | None = None
        self._is_ready = asyncio.Event()
        self._state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan scope."""
        if scope["type"] == "lifespan":
            self._is_ready.set()
            await self._live(scope, receive, send)
            return
        if not self._is_ready.is_set():
            await self._start()
        if self._entry is not None:
            if self._own_life is not None:
                scope["state"] = {**scope.get("state", {}), **self._state}
            await self._entry(scope, receive, send)
        elif scope["type"] == "http":
            await send_problem(send, OperatorError("The server sells nothing now."), ())
        else:
            raise CommandError("the server cannot answer: the ledger is not open")

    async def _start(self) -> None:
        """Start without a server's lifespan; return once that has succeeded or failed."""
        if self._own_life is None:
            self._own_life = asyncio.create_task(self._live_alone(), name="selling")
        await self._is_ready.wait()

    async def _live_alone(self) -> None:
        ahead: list[Message] = [{"type": "lifespan.startup"}]

        async def receive() -> Message:
            if ahead:
                return ahead.pop()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # the event loop ends, and so does the server
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                _log.critical("the server stops: %s", message.get("message", ""))
                signal.raise_signal(signal.SIGTERM)
            self._is_ready.set()

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self._state}
        try:
            await self._live(scope, receive, send)
        except Exception:  # noqa: BLE001 - no other code would report it
            _log.critical("the application ended", exc_info=True)
        finally:
            self._is_ready.set()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = await receive()
        await asyncio.to_thread(forbid_core_files)
        async with AsyncExitStack() as open_:
            try:
                config = await asyncio.to_thread(self._load)  # it reads files
                parts = await open_.enter_async_context(build_parts(config))
                routes = [_with_settings(route, config.payment) for route in self._routes]
                operated = await _operate(parts, self._hooks) if self._admin else None
                hooks = self._hooks if operated is None else operated.hooks
                gate = PaymentGate(
                    self._app,
                    engine=parts.engine,
                    routes=routes,
                    unit=parts.unit,
                    limits=config.limits.of_gate(),
                    rails=parts.rails,
                    hooks=hooks,
                    ready=None if operated is None else operated.require_sales,
                )
                if operated is None and self._hooks is not None:
                    books = BooksView(HookCalls(self._hooks), now=parts.clock.now)
                    books.listen_to(parts.watcher)
                is_described = self._discovery and config.discovery.enabled
                entry = _describe(gate, config) if is_described else gate
                guarding = dict(parts.background())
                if operated is not None:
                    guarding |= await open_.enter_async_context(
                        operated.open(
                            gate,
                            lambda: entry.service if isinstance(entry, DiscoverySite) else None,
                        )
                    )
            except Exception as error:  # noqa: BLE001 - a server reads an exception as no lifespan
                await send(_failed(error))
                return
            guards = await open_.enter_async_context(Tasks())
            for name, work in guarding.items():
                guards.start(work, name=name).add_done_callback(_stop_server)
            # A server waits for its streams before it announces its shutdown (O-32).
            open_.enter_context(before_signals(parts.engine.end_streams))
            self.gate, self._entry = gate, entry
            try:
                ended = await _pass_on(self._app, scope, started, receive, send)
            finally:
                self.gate = self._entry = None
        # The ledger is closed before the server hears that shutdown is complete.
        if ended is not None:
            await send(ended)


async def _operate(parts: Parts, hooks: Hooks | None) -> "Operated":
    """Return what the operator's port shows; its modules are imported only if it is wanted."""
    from mpp_session.operated import Operated  # noqa: PLC0415

    return await Operated.build(parts, hooks)


def _describe(gate: PaymentGate, config: ProviderConfig) -> DiscoverySite:
    """Return the gate behind a description of what it sells."""
    service = describe_service(
        gate,
        config.discovery,
        chain_id=config.chain.id,
        url=public_url(config.discovery, config.payment.realm),
    )
    return DiscoverySite(gate, service, gate.table)


def _with_settings(route: Route, payment: Payment) -> Route:
    """Return the route, with settings in place of values that it leaves open."""
    price = route.price
    if callable(price):
        of_request = price

        def priced(scope: Mapping[str, Any]) -> Sequence[Price]:
            asked = of_request(scope)
            several = [asked] if isinstance(asked, Price) else asked
            return [_with_amounts(one, payment) for one in several]

        price = priced
    elif price is not None:
        price = _with_amounts(price, payment)
    return replace(
        route,
        price=price,
        stream_policy=route.stream_policy or StreamPolicy[payment.stream_policy.upper()],
        pause_s=payment.pause_timeout_s if route.pause_s is None else route.pause_s,
    )


def _with_amounts(price: Price, payment: Payment) -> Price:
    delta, deposit = price.min_voucher_delta, price.suggested_deposit
    return replace(
        price,
        min_voucher_delta=payment.min_voucher_delta if delta is None else delta,
        suggested_deposit=payment.suggested_deposit if deposit is None else deposit,
    )


def _failed(error: Exception) -> Message:
    """Return the message that start-up failed; a bug's traceback goes to the log."""
    if not isinstance(error, MppSessionError):
        _log.critical("the application cannot start", exc_info=error)
    text = str(error) if isinstance(error, MppSessionError) else repr(error)
    return {"type": "lifespan.startup.failed", "message": text}


async def _pass_on(
    app: ASGIApp, scope: Scope, started: Message, receive: Receive, send: Send
) -> Message | None:
    """Run the application's own lifespan; return its last message instead of sending it.

    An application that ends before it reads a message does not support lifespan; this class then
    answers start-up and shutdown for it, as it does for one that ends early. An application that
    fails at start-up, or while serving, ends the server.
    """
    ahead = [started]
    heard: list[str] = []
    said: list[Message] = []

    async def replay() -> Message:
        message = ahead.pop() if ahead else await receive()
        heard.append(message["type"])
        return message

    async def hold_back(message: Message) -> None:
        said.append(message)
        if not message["type"].startswith("lifespan.shutdown"):
            await send(message)

    try:
        await app(scope, replay, hold_back)
    except Exception as error:
        if said:
            _stop_if_serving(said[-1])
            raise
        if heard:
            await send(_failed(error))
            return None
        _log.info("the application does not support the ASGI lifespan protocol: %s", error)
    if said and said[-1]["type"] != "lifespan.startup.complete":
        return said[-1] if said[-1]["type"].startswith("lifespan.shutdown") else None
    if not said:
        await send({"type": "lifespan.startup.complete"})
    while "lifespan.shutdown" not in heard:
        await replay()
    return {"type": "lifespan.shutdown.complete"}


def _stop_if_serving(said: Message) -> None:
    if said["type"] == "lifespan.startup.complete":
        _log.critical("the server stops: the application failed while it was serving")
        signal.raise_signal(signal.SIGTERM)


def _stop_server(guard: "asyncio.Task[None]") -> None:
    """Ask the server to end: without its guarding tasks it must not serve."""
    if not guard.cancelled():
        reason = guard.exception()
        _log.critical("the server stops because %s ended", guard.get_name(), exc_info=reason)
        signal.raise_signal(signal.SIGTERM)
