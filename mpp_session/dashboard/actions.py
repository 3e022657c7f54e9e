"""What a provider can do: each action has a page that says what it will do, and a form.

Nothing here signs or sends a transaction: an order goes into the journal, and a decided close into
the ledger; the settler, which has the key, does the rest (decision 14).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from channel.engine import Engine
from channel.errors import BadRequestError, ConfigError
from channel.types import TokenUnit
from mpp_session.dashboard.answers import redirect, send_page
from mpp_session.dashboard.doors import Handler
from mpp_session.dashboard.gather import Feeds
from mpp_session.dashboard.html import Markup, el
from mpp_session.dashboard.layout import Frame, page
from mpp_session.dashboard.pages.actions import (
    close_page,
    pause_page,
    reload_page,
    resume_page,
    settle_page,
)
from mpp_session.dashboard.reading import Reader
from mpp_session.errors import CommandError
from mpp_session.process.sales import Sales
from settlement.tx.journal.interface import OrderName, SettlerJournal

__all__ = ["NOTICES", "Actions"]

_log: Final = logging.getLogger(__name__)

NOTICES: Final[Mapping[str, str]] = {
    "settle": "The order to settle is placed. Its transaction appears here once it is signed.",
    "close": "The close is decided. The settler sends it within seconds.",
    "closing": "The close has begun. It is sent once the requests on the channel have ended.",
    "pause": "Sales are paused.",
    "resume": "Sales go on.",
    "reload": "The prices are read again.",
}
"""What the page after an action says, by the query's `done`: never a text from the address."""

_PATIENCE_S: Final = 2.0
"""How long a form waits for running requests before it answers that they still run."""


class Actions:
    """The pages and forms of every action."""

    def __init__(
        self,
        *,
        reader: Reader,
        engine: Engine,
        journal: SettlerJournal,
        sales: Sales,
        feeds: Feeds,
        unit: TokenUnit,
        reload_prices: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._journal = journal
        self._sales = sales
        self._feeds = feeds
        self._unit = unit
        self._reload_prices = reload_prices

    @property
    def handlers(self) -> dict[str, Handler]:
        """By path; GET shows what will happen, POST does it."""
        return {
            "/actions/settle": self._settle,
            "/actions/pause": self._pause,
            "/actions/resume": self._resume,
            "/actions/reload": self._reload,
            "/channels/{channel_id}/close": self._close,
        }

    async def _settle(self, request: Request, frame: Frame) -> Response:
        if request.method == "POST":
            await self._journal.place_order(OrderName.SETTLE, at=int(time.time()))
            _log.info("the operator ordered a settle of everything")
            return redirect("/settlements?done=settle")
        found = await self._reader.channels(open_only=True)
        has_settler = await self._journal.lease_holder() is not None
        content = settle_page(frame, found, self._unit, has_settler=has_settler)
        return _ask(frame, "Settle now?", content)

    async def _close(self, request: Request, frame: Frame) -> Response:
        state = await self._reader.require_channel(request.path_params["channel_id"])
        target = f"/channels/0x{state.key.channel_id.hex()}"
        if state.is_finalized or state.closing_with is not None:
            return redirect(target)
        if request.method == "POST":
            _log.info("the operator closes channel 0x%s", state.key.channel_id.hex())
            closing = asyncio.ensure_future(self._engine.decide_close(state.key))
            done, _ = await asyncio.wait({closing}, timeout=_PATIENCE_S)
            if not done:
                closing.add_done_callback(_forget)
                return redirect(f"{target}?done=closing")
            closing.result()
            return redirect(f"{target}?done=close")
        return _ask(frame, "Close this channel?", close_page(frame, state, self._unit))

    async def _pause(self, request: Request, frame: Frame) -> Response:
        if request.method == "POST":
            await self._sales.pause()
            _log.warning("the operator has paused sales")
            return redirect("/?done=pause")
        seen = await self._feeds.read()
        return _ask(frame, "Pause sales?", pause_page(frame, len(seen.live)))

    async def _resume(self, request: Request, frame: Frame) -> Response:
        if request.method == "POST":
            await self._sales.resume()
            _log.warning("the operator has resumed sales")
            return redirect("/?done=resume")
        bare = replace(frame, is_paused=False)  # its banner would offer the same once more
        return _ask(bare, "Resume sales?", resume_page(frame))

    async def _reload(self, request: Request, frame: Frame) -> Response:
        if self._reload_prices is None:
            raise BadRequestError("These prices are fixed until the gateway starts again.")
        if request.method == "POST":
            try:
                await self._reload_prices()
            except (ConfigError, CommandError) as error:
                text = f"The prices are as they were: {error}."
                content = el("p", text, class_="banner bad", role="alert")
                return _ask(frame, "Prices are not changed", content)
            return redirect("/prices?done=reload")
        return _ask(frame, "Reload prices?", reload_page(frame))


def _ask(frame: Frame, title: str, content: Markup) -> Response:
    return send_page(page(frame, "", title, content))


def _forget(closing: asyncio.Future[None]) -> None:
    """Take the outcome of a close whose page was answered: the channel's page shows it."""
    if not closing.cancelled():
        closing.exception()
