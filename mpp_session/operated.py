"""The operator's port of an application that sells by itself: what `sell(..., admin=True)` opens.

It shows what a gateway's port shows, but for what a gateway alone has: prices that are reloaded,
and a model server.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from channel.http import PaymentGate
from channel.http.hooks import Fanout, Hooks
from channel.http.refusals import format_price
from mpp_session.dashboard.build import build_dashboard
from mpp_session.dashboard.feed import Feed
from mpp_session.dashboard.gather import Feeds
from mpp_session.dashboard.pages.prices import PriceShown
from mpp_session.discovery.operator_page import form_route
from mpp_session.discovery.service import Service
from mpp_session.gateway.operator_port import open_operator_port
from mpp_session.observe.metrics import PrometheusHooks
from mpp_session.observe.provider import Observed
from mpp_session.observe.scrape import scraped_registry
from mpp_session.process.sales import Sales
from mpp_session.wiring import Parts

__all__ = ["Operated"]


class Operated(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator sees and changes of an application."""

    parts: Parts
    hooks: Hooks
    """The application's own, and those that count and show."""
    feed: Feed
    sales: Sales
    observed: Observed

    @classmethod
    async def build(cls, parts: Parts, hooks: Hooks | None) -> "Operated":
        """Build it, before the gate that calls `hooks` and `require_sales`.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        feed, counted, sales = Feed(), CollectorRegistry(), Sales(parts.journal)
        await sales.look()
        everything = Fanout(*([] if hooks is None else [hooks]), PrometheusHooks(counted), feed)
        observed = Observed(parts, everything, registry=scraped_registry(counted))
        return cls(parts=parts, hooks=everything, feed=feed, sales=sales, observed=observed)

    def require_sales(self) -> None:
        """Check that the operator has not paused sales: the gate's `ready`.

        Raises:
            SalesPausedError: The operator has.
        """
        self.sales.require()

    @contextlib.asynccontextmanager
    async def open(
        self, gate: PaymentGate, service: Callable[[], Service | None]
    ) -> AsyncIterator[Mapping[str, Coroutine[Any, Any, None]]]:
        """Open the port, and yield the tasks that must run while the application serves.

        `service` returns what is published; None if nothing is.

        Raises:
            ConfigError: The file of the dashboard's token cannot be used.
            CommandError: The address cannot be bound.
        """
        routes, token = await build_dashboard(
            self.parts,
            feeds=Feeds(self.feed),
            sales=self.sales,
            prices=lambda: [_show(*each) for each in _prices(gate)],
        )
        routes += [*self.observed.routes(), form_route(service)]
        with open_operator_port(self.parts.config.admin, routes, token=token) as port:
            yield {
                **port,
                **self.observed.background(),
                "watching for a pause of sales": self.sales.run(),
            }


def _prices(gate: PaymentGate) -> Iterator[tuple[str, str]]:
    """Yield what is sold, and its price for people."""
    for route, priced in gate.table.listed():
        if route.price is not None:
            price = "depends on the request" if priced is None else format_price(priced, gate.unit)
            yield f"{route.method} {route.path}", price


def _show(endpoint: str, price: str) -> PriceShown:
    return PriceShown(model="*", endpoint=endpoint, price=price)
