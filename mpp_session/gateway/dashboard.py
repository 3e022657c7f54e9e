"""Builds the dashboard of a gateway: its price table, and how its prices are reloaded."""

import asyncio
from functools import partial
from pathlib import Path

from starlette.routing import BaseRoute

from channel.errors import ConfigError
from channel.types import TokenUnit
from mpp_session.dashboard.build import build_dashboard, state_folder
from mpp_session.dashboard.gather import Feeds
from mpp_session.dashboard.pages.prices import PriceShown
from mpp_session.gateway.app import Gateway
from mpp_session.prices.table import Listing
from mpp_session.process.control_file import reload_running
from mpp_session.process.sales import Sales
from mpp_session.settings import Secret, describe_tariff
from mpp_session.wiring import Parts

__all__ = ["build_gateway_dashboard"]


async def build_gateway_dashboard(
    parts: Parts, gateway: Gateway, *, feeds: Feeds, sales: Sales
) -> tuple[list[BaseRoute], Secret | None]:
    """Return the routes of the dashboard, and its log-in token: see `build_dashboard`.

    Raises:
        ConfigError: The file of the log-in token cannot be used.
    """
    return await build_dashboard(
        parts,
        feeds=feeds,
        sales=sales,
        prices=lambda: [_show(listing, parts.unit) for listing in gateway.prices.table.listings],
        reload_prices=partial(_reload, state_folder(parts), parts.config.ledger.url),
        model_server=lambda: gateway.model_server_fault,
    )


async def _reload(folder: Path, ledger_url: str) -> None:
    """Do what `mpp-session prices reload` does: every worker of this machine is reached.

    Raises:
        CommandError: No gateway answered.
        ConfigError: The prices are not valid; nothing has changed.
    """
    for gateway in await asyncio.to_thread(reload_running, folder, ledger_url):
        if gateway.problem is not None:
            raise ConfigError(gateway.problem)


def _show(listing: Listing, unit: TokenUnit | None) -> PriceShown:
    row = listing.row
    since = "" if row.valid_from is None else f"from {row.valid_from:%Y-%m-%d %H:%M %Z}"
    return PriceShown(
        model="" if row.path is not None else row.model,
        endpoint=row.sold_path or row.endpoint,
        price=describe_tariff(listing.tariff, unit),
        note=", ".join(filter(None, (since, row.description))),
    )
