"""Builds the dashboard of a provider from the provider's parts."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from starlette.routing import BaseRoute

from mpp_session.dashboard.access import Access
from mpp_session.dashboard.gather import Feeds
from mpp_session.dashboard.pages.prices import PriceShown
from mpp_session.dashboard.site import Dashboard
from mpp_session.dashboard.token_file import read_or_make_token
from mpp_session.process.sales import Sales
from mpp_session.settings import Secret
from mpp_session.settings.config import default_state_dir
from mpp_session.wiring import Parts

__all__ = ["TOKEN_FILE", "build_dashboard", "state_folder"]

_log: Final = logging.getLogger(__name__)

TOKEN_FILE: Final = "dashboard.token"  # noqa: S105 - a name


def state_folder(parts: Parts) -> Path:
    """Return the provider's state directory."""
    set_to = parts.config.ledger.state_dir
    return Path(set_to) if set_to else default_state_dir()


async def build_dashboard(
    parts: Parts,
    *,
    feeds: Feeds,
    sales: Sales,
    prices: Callable[[], Sequence[PriceShown]],
    reload_prices: Callable[[], Awaitable[None]] | None = None,
    model_server: Callable[[], str | None] | None = None,
) -> tuple[list[BaseRoute], Secret | None]:
    """Return the routes of the dashboard, and its log-in token.

    Without a dashboard, because the operator's port is switched off or another worker opens it: no
    route, and None. Arguments as for `Dashboard`.

    Raises:
        ConfigError: The file of the log-in token cannot be used.
    """
    settings = parts.config.admin
    if not settings.enabled or not parts.is_first:
        return [], None
    token = settings.token
    if token is None:
        path = state_folder(parts) / TOKEN_FILE
        token = await asyncio.to_thread(read_or_make_token, path)
        _log.info("the dashboard's log-in token is in %s", path)
    dashboard = Dashboard(
        parts.config,
        ledger=parts.ledger,
        engine=parts.engine,
        journal=parts.journal,
        sales=sales,
        feeds=feeds,
        access=Access(token),
        unit=parts.unit,
        prices=prices,
        reload_prices=reload_prices,
        model_server=model_server,
    )
    return [*dashboard.routes], token
