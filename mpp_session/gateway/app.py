"""The gateway as an ASGI application: paid routes, free routes, and 404 for everything else."""

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace
from starlette.routing import Route as AppRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from channel.engine import Engine
from channel.errors import ConfigError
from channel.http import PaymentGate, Route
from channel.http.hooks import Hooks
from channel.state.commands import StreamPolicy
from channel.types import TokenUnit
from mpp_session.discovery.service import Description, Service, describe_service, public_url
from mpp_session.discovery.site import DiscoverySite, published_paths
from mpp_session.gateway.answers import PaidAnswers
from mpp_session.gateway.descriptions import (
    MODELS_PATH,
    describe_endpoint,
    describe_models,
    describe_path,
)
from mpp_session.gateway.endpoints import ENDPOINTS, GatewayEndpoint
from mpp_session.gateway.errors import NotServedError
from mpp_session.gateway.free import free_routes, problem_response
from mpp_session.gateway.generation import GENERATION_PATH, Generations
from mpp_session.gateway.model_prices import ModelPrices, ModelReader
from mpp_session.gateway.models import ModelList
from mpp_session.gateway.own_paths import own_routes
from mpp_session.gateway.paced import paced_route
from mpp_session.gateway.paths import PathAnswers
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream
from mpp_session.prices.table import PriceTable
from mpp_session.process.sales import Sales
from mpp_session.settings import Config, PriceRow

__all__ = ["Gateway"]

_MODELS: Final = f"GET {MODELS_PATH}"
_PUBLISHED: Final = 50
"""Prices in the documents; `GET /v1/models` has them all."""
_SLASHED: Final = frozenset(f"{one.path}/" for one in ENDPOINTS)


class Gateway:
    """All routes of one gateway."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        upstream: Upstream,
        *,
        stop: Callable[[], None],
        unit: TokenUnit | None = None,
        hooks: Hooks | None = None,
        sales: Sales | None = None,
    ) -> None:
        """Build it. `stop` is called when the ledger is found to contradict itself.

        `unit` is the token's, for prices in whole tokens and for showing amounts to people.
        `hooks` hear what the gate sells. `sales` may pause all sales; they go on if None.

        Raises:
            ConfigError: A price does not fit the token.
        """
        self._payment = config.payment
        self._unit = unit
        self.prices = ModelPrices(PriceTable(config.price_rows, unit), config.payment)
        """What is sold at which price, now."""
        self._readiness = Readiness(upstream, config.upstream)
        self._sales = sales
        self.answers = PaidAnswers(upstream, config.upstream, self._readiness, unit)
        self.paths = PathAnswers(upstream, config.upstream)
        self._config = config
        _require_own_paths(config)
        self.paths.sell(self.prices.table)
        models = ModelList(
            upstream,
            self.prices,
            tuple(one.name for one in ENDPOINTS),
            owner=config.payment.realm,
            timeout_s=config.upstream.connect_timeout_s,
        )
        free = [entry for entry in config.upstream.free if entry != _MODELS]
        lists_models = _MODELS in config.upstream.free
        own = []
        if lists_models:
            own.append(AppRoute(MODELS_PATH, models.answer))
            own.append(AppRoute(f"{MODELS_PATH}/{{model:path}}", models.answer))
        if config.ledger.charges:
            generations = Generations(engine.ledger, engine.now, unit)
            own.append(AppRoute(GENERATION_PATH, generations.answer))
        self._gate = PaymentGate(
            Router(
                [
                    *[
                        AppRoute(one.path, partial(self.answers.answer, one), methods=["POST"])
                        for one in ENDPOINTS
                    ],
                    paced_route(config.payment.realm),
                    *own,
                    *free_routes(upstream, free),
                ],
                default=self.paths,
                redirect_slashes=False,
            ),
            engine=engine,
            routes=self._routes(),
            pause_s=config.payment.pause_timeout_s,
            body_timeout_s=config.listen.body_timeout_s,
            ready=self._require_ready,
            unit=unit,
            hooks=hooks,
            limits=config.limits.of_gate(),
            stop_worker=stop,
        )
        reader = ModelReader(
            self._gate,
            self.prices,
            {one.path: one.name for one in ENDPOINTS},
            bytes_max=config.upstream.body_bytes_max,
            timeout_s=config.listen.body_timeout_s,
        )
        self._app: ASGIApp = reader
        self._site: DiscoverySite | None = None
        self._published_until = math.inf
        if config.discovery.enabled:
            self._app = self._site = DiscoverySite(reader, self._describe(), self._gate.table)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] in _SLASHED:
            await _not_served(scope, receive, send)  # a gate below a mount would sell it
            return
        if self.prices.now() >= self._published_until:
            self._publish()
        await self._app(scope, receive, send)

    def replace_prices(self, rows: Sequence[PriceRow]) -> None:
        """Sell at these prices from now on. Running requests keep the prices that they began with.

        Raises:
            ConfigError: A row is not valid; then nothing changes.
        """
        before, self.prices.table = self.prices.table, PriceTable(rows, self._unit)
        try:
            self._gate.replace_routes(self._routes())
        except ConfigError:
            self.prices.table = before
            raise
        self.paths.sell(self.prices.table)
        self._publish()

    async def change_prices(self, config: Config) -> str:
        """Sell at the prices of these settings, and return them for people; see `replace_prices`.

        Raises:
            ConfigError: As for `replace_prices`.
        """
        self.replace_prices(config.price_rows)
        return self.prices.table.describe()

    @property
    def service(self) -> Service | None:
        """What is published now; None if nothing is."""
        return None if self._site is None else self._site.service

    def _publish(self) -> None:
        if self._site is not None:
            self._site.publish(self._describe())

    def _describe(self) -> Service:
        table, at, config = self.prices.table, self.prices.now(), self._config
        self._published_until = table.next_change(at)
        sold = self._sold()
        variants = {
            ("POST", one.path): [
                (model, self.prices.price_of(found, model))
                for model in table.models(one.name, at)[:_PUBLISHED]
                if (found := table.find(one.name, model, at)) is not None
            ]
            for one in sold
        }
        free = (entry.partition(" ") for entry in config.upstream.free)
        return describe_service(
            self._gate,
            config.discovery,
            chain_id=config.chain.id,
            descriptions={
                **{
                    ("POST", one.path): _with_model(
                        describe_endpoint(one, config.upstream), table, one.name, at
                    )
                    for one in sold
                },
                ("GET", MODELS_PATH): describe_models(),
                **{
                    (one.row.method or "", one.row.path): describe_path(one.row)
                    for one in reversed(table.listings)
                    if one.row.path is not None
                },
            },
            free=[(method, path) for method, _, path in free],
            variants=variants,
            url=public_url(config.discovery, config.payment.realm, config.listen),
            what="Tokens of a language model, over the API that OpenAI's clients speak."
            if table.sells_models()
            else "Requests to a server.",
            categories=("compute",) if table.sells_models() else (),
        )

    def _sold(self) -> list[GatewayEndpoint]:
        """Return the endpoints for which the table has a price."""
        return [
            one
            for one in ENDPOINTS
            if any(
                listing.is_for(one.name) and one.is_sold_by(listing.tariff)
                for listing in self.prices.table.listings
            )
        ]

    def _routes(self) -> list[Route]:
        policy = StreamPolicy[self._payment.stream_policy.upper()]
        table = self.prices.table
        models = [("POST", one.path, one.name) for one in self._sold()]
        paths = [(*sold.split(" ", 1), sold) for sold in table.paths()]
        return [
            *own_routes(table, self._config),
            *[
                Route(
                    method=method,
                    path=path,
                    price=self.prices.price(name),
                    metered=True,
                    stream_policy=policy,
                )
                for method, path, name in [*models, *paths]
            ],
        ]

    @property
    def model_server_fault(self) -> str | None:
        """Why the model server cannot be sold, as last seen; None if it can."""
        return self._readiness.fault

    def _require_ready(self) -> Awaitable[None] | None:
        if self._sales is not None:
            self._sales.require()
        return self._readiness.require()

    async def watch_model_server(self) -> None:
        """Probe the model server repeatedly while the gateway serves."""
        await self._readiness.run()

    async def require_model_server(self) -> None:
        """Return if the model server answers, by a look that is seconds old at most.

        Raises:
            ModelServerDownError: It does not.
        """
        asking = self._readiness.require()
        if asking is not None:
            await asking

    def end_streams(self) -> None:
        """End every running stream now, with its receipt."""
        self._gate.engine.end_streams()


def _require_own_paths(config: Config) -> None:
    """Check that no free path is one that the gateway answers itself.

    Raises:
        ConfigError: One is.
    """
    own = published_paths(config.discovery.compat) if config.discovery.enabled else ()
    for entry in config.upstream.free:
        if entry.partition(" ")[2] in own:
            raise ConfigError(
                f"`upstream.free` holds {entry!r}, where the gateway publishes its own description "
                "of what it sells: remove it, or set `discovery.enabled = false`"
            )


def _with_model(
    description: Description, table: PriceTable, endpoint: str, at: float
) -> Description:
    """Return a description whose example asks for a model that is sold."""
    sold = table.models(endpoint, at)
    body = description.body
    if body is None or "example" not in body or not sold or "*" in sold:
        return description
    example = {**body["example"], "model": next((one for one in sold if "*" not in one), sold[0])}
    return replace(description, body={**body, "example": example})


async def _not_served(scope: Scope, receive: Receive, send: Send) -> None:
    error = NotServedError("This gateway does not serve this path.")
    await problem_response(error)(scope, receive, send)
