"""The gateway process: listens, answers, and shuts down without losing a receipt."""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from channel.errors import ConfigError
from channel.http.hooks import Fanout, Hooks
from channel.limits import ACCEPTED_TOGETHER_MAX, HEAD_BYTES_MAX
from channel.tasks import Tasks
from mpp_session.dashboard.feed import Feed
from mpp_session.dashboard.gather import Feeds, serve_feed
from mpp_session.discovery.operator_page import form_route
from mpp_session.errors import CommandError
from mpp_session.gateway.app import Gateway
from mpp_session.gateway.connections import SWEEP_TICKS, Door, connections_max, protocol
from mpp_session.gateway.crosscheck import Difference
from mpp_session.gateway.dashboard import build_gateway_dashboard
from mpp_session.gateway.operator_port import open_operator_port
from mpp_session.gateway.reloading import PriceReloads, ReadPrices
from mpp_session.gateway.sockets import bind, listen, listening_url
from mpp_session.gateway.upstream import Upstream
from mpp_session.gateway.workers import Announce, run_workers
from mpp_session.observe.health import HealthPages, HealthSite
from mpp_session.observe.metrics import PrometheusHooks
from mpp_session.observe.provider import Observed
from mpp_session.observe.scrape import scraped_registry
from mpp_session.observe.traced import open_tracing
from mpp_session.process.gc_tuning import collect_seldom
from mpp_session.process.os_limits import raise_open_files
from mpp_session.process.sales import Sales
from mpp_session.process.signals import reload_on_hangup, stop_at_eof, stop_on_signals
from mpp_session.settings import Config, Listen
from mpp_session.settings.config import counts_folder
from mpp_session.wiring import build_parts

__all__ = ["run_gateway", "serve_on"]

_log: Final = logging.getLogger(__name__)


async def run_gateway(
    config: Config,
    *,
    announce: Announce,
    until_eof: bool = False,
    read_prices: ReadPrices | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input ends if that is requested.

    `announce` is called with the gateway's URL and prices once it answers. At the end every stream
    gets its final receipt, other requests get `listen.shutdown_s` to finish, and then the ledger is
    closed. With `read_prices`, SIGHUP makes it sell at the prices that this returns; without it
    SIGHUP ends the gateway, too.

    Raises:
        ConfigError: A check failed; nothing was served.
        CommandError: The port is in use, or a guarding task ended.
        InvariantError: A bug in a guarding task.
    """
    if config.rails.charge:
        raise ConfigError(
            "`rails.charge` is set, and every route of a gateway is metered: a single payment "
            "needs a price known in advance. Remove it, or sell by an application of your own"
        )
    stopping = asyncio.Event()
    stop_on_signals(stopping)
    if until_eof:
        stop_at_eof(stopping)
    reloads = None
    if read_prices is not None:
        reloads = PriceReloads(config, read_prices)
        reload_on_hangup(stopping, reloads.request)
    if config.listen.workers > 1:
        await run_workers(config, announce=announce, stopping=stopping, reloads=reloads)
        return

    def reloading(gateway: Gateway) -> Mapping[str, Coroutine[Any, Any, None]]:
        return {} if reloads is None else {"reloading prices": reloads.run(gateway.change_prices)}

    with bind(config.listen) as listener:
        await serve_on(listener, config, announce=announce, stopping=stopping, beside=reloading)


async def serve_on(
    listener: socket.socket,
    config: Config,
    *,
    announce: Announce,
    stopping: asyncio.Event,
    number: int = 0,
    beside: Callable[[Gateway], Mapping[str, Coroutine[Any, Any, None]]] = lambda _: {},
) -> None:
    """Serve on a socket with this process until `stopping` is set.

    `beside` returns further tasks that run with the gateway, by what they do.

    With several workers on one ledger, `number` 0 does what must be done once. Other arguments and
    errors as `run_gateway`.
    """
    async with (
        build_parts(config, is_first=number == 0, processes=config.listen.workers) as parts,
        Upstream.connect(config.upstream) as upstream,
        open_tracing() as tracing,
    ):
        broken = asyncio.Event()
        feed, sales = Feed(), Sales(parts.journal)
        await sales.look()
        counted = CollectorRegistry()
        metrics = PrometheusHooks(counted)
        shared = counts_folder()
        folder = None if shared is None else Path(shared)
        hooks: Hooks = Fanout(metrics, feed) if config.admin.enabled else metrics
        if tracing is not None:
            hooks = Fanout(hooks, tracing.hooks)
        gateway = Gateway(
            config,
            parts.engine,
            upstream,
            stop=broken.set,
            unit=parts.unit,
            hooks=hooks,
            sales=sales,
        )
        metrics.name_of = gateway.prices.name_of
        gateway.answers.check.on_request = partial(_count_difference, metrics)
        gateway.paths.on_unreported = metrics.count_unreported
        observed = Observed(
            parts,
            hooks,
            registry=scraped_registry(counted),
            model_server=gateway.require_model_server,
        )
        parts.ledger.report_commits(metrics.count_commit)
        pages = HealthPages(observed.health, is_public=True)
        routes, token = await build_gateway_dashboard(
            parts, gateway, feeds=Feeds(feed, folder, config.listen.workers), sales=sales
        )
        site: ASGIApp = HealthSite(gateway, pages)
        server = _build_server(site if tracing is None else tracing.wrap(site), config.listen)
        collect_seldom()
        with open_operator_port(
            config.admin,
            [*observed.routes(), form_route(lambda: gateway.service), *routes],
            is_first=number == 0,
            token=token,
        ) as operator_port:
            listen(listener, config.listen)
            announce(listening_url(listener), gateway.prices.table.describe())
            guards = {
                **parts.background(),
                **observed.background(),
                **operator_port,
                **_tell_first(config, feed, folder, number),
                "keeping consistent books": _fail_when(broken),
                "watching for a pause of sales": sales.run(),
                "watching the model server": gateway.watch_model_server(),
                **beside(gateway),
            }
            serving = server.serve(sockets=[listener])
            try:
                await _run_until(stopping, serving, guards, stop=partial(_stop, server, gateway))
            finally:
                _log.info("stopped; %d voucher signatures checked", parts.engine.signatures_checked)


def _tell_first(
    config: Config, feed: Feed, folder: Path | None, number: int
) -> Mapping[str, Coroutine[Any, Any, None]]:
    """Return the task that tells the first worker what this one sells; none in the first."""
    if folder is None or not number or not config.admin.enabled:
        return {}
    return {"telling the dashboard": serve_feed(feed, folder, number)}


def _count_difference(metrics: PrometheusHooks, found: Difference) -> None:
    """Count what was charged beside what the model server reported."""
    if found.output_reported is not None:
        metrics.count_reported(found.model, "output_token", found.output, found.output_reported)
    if found.input and found.input_reported is not None:
        metrics.count_reported(found.model, "input_token", found.input, found.input_reported)


def _build_server(gateway: ASGIApp, settings: Listen) -> uvicorn.Server:
    door = Door(settings, connections_max(settings, raise_open_files()))
    return _Server(
        uvicorn.Config(
            gateway,
            lifespan="off",
            # h11: httptools accepts a head of any size, and reads on behind an unanswered request
            http=protocol(door),
            backlog=ACCEPTED_TOGETHER_MAX,
            ws="none",  # otherwise uvicorn finds web3's websocket library and accepts upgrades
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            timeout_graceful_shutdown=math.ceil(settings.shutdown_s),
        ),
        door,
        settings,
    )


class _Server(uvicorn.Server):
    """Leaves signals to the process: streams must end before the server waits for them."""

    def __init__(self, config: uvicorn.Config, door: Door, settings: Listen) -> None:
        super().__init__(config)
        self._door = door
        self._settings = settings

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listen(listener, self._settings)  # asyncio shortened the accept queue

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            self._door.sweep(self.server_state.connections)
        return await super().on_tick(counter)


async def _run_until(
    stopping: asyncio.Event,
    serving: Coroutine[Any, Any, None],
    guards: Mapping[str, Coroutine[Any, Any, None]],
    *,
    stop: Callable[[], None],
) -> None:
    """Run the server and the guarding tasks; the first to end stops all.

    Raises:
        CommandError: A guarding task ended.
        InvariantError: A guarding task ended with a bug.
    """
    async with Tasks() as tasks:
        server = tasks.start(serving)
        stopped = tasks.start(stopping.wait())
        running = [tasks.start(work, name=name) for name, work in guards.items()]
        try:
            await asyncio.wait({server, stopped, *running}, return_when=asyncio.FIRST_COMPLETED)
            ended = [task for task in running if task.done()]
        finally:
            stop()
            await server
    for task in ended:
        task.result()
        raise CommandError(f"the gateway stopped because {task.get_name()} ended")


def _stop(server: uvicorn.Server, gateway: Gateway) -> None:
    gateway.end_streams()
    server.should_exit = True


async def _fail_when(broken: asyncio.Event) -> None:
    await broken.wait()
