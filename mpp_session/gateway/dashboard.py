"""Builds the dashboard of a gateway from the gateway's parts."""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Final

from starlette.routing import Route

from channel.errors import ConfigError
from channel.types import TokenUnit
from mpp_session.dashboard.access import Access
from mpp_session.dashboard.feed import Feed
from mpp_session.dashboard.pages.prices import PriceShown
from mpp_session.dashboard.site import Dashboard
from mpp_session.dashboard.token_file import read_or_make_token
from mpp_session.gateway.app import Gateway
from mpp_session.prices.table import Listing
from mpp_session.process.control_file import reload_running
from mpp_session.process.sales import Sales
from mpp_session.settings import Config, Secret, describe_tariff
from mpp_session.settings.config import default_state_dir
from mpp_session.wiring import Parts

__all__ = ["TOKEN_FILE", "build_dashboard"]

_log: Final = logging.getLogger(__name__)

TOKEN_FILE: Final = "dashboard.token"  # noqa: S105 - a name


async def build_dashboard(
    config: Config, parts: Parts, gateway: Gateway, *, feed: Feed, sales: Sales
) -> tuple[list[Route], Secret | None]:
    """Return the routes of the dashboard, and its log-in token.

    Without a dashboard, because the operator's port is switched off: no route, and None.

    Raises:
        ConfigError: The file of the log-in token cannot be used.
    """
    if not config.admin.enabled or not parts.is_first:
        return [], None
    token, state_dir = config.admin.token, config.ledger.state_dir
    folder = Path(state_dir) if state_dir else default_state_dir()
    if token is None:
        path = folder / TOKEN_FILE
        token = await asyncio.to_thread(read_or_make_token, path)
        _log.info("the dashboard's log-in token is in %s", path)
    dashboard = Dashboard(
        config,
        ledger=parts.ledger,
        engine=parts.engine,
        journal=parts.journal,
        sales=sales,
        feed=feed,
        access=Access(token),
        unit=parts.unit,
        processes=config.listen.workers,
        prices=lambda: [_show(listing, parts.unit) for listing in gateway.prices.table.listings],
        reload_prices=partial(_reload, folder, config.ledger.url),
        model_server=lambda: gateway.model_server_fault,
    )
    return dashboard.routes, token


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
