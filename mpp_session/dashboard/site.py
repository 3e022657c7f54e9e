"""The dashboard's pages and events.

The routes belong behind `mpp_session.admin.app.build_admin`, which checks where a request comes
from.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from channel.engine import Engine
from channel.errors import LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.limits import EVENT_STREAMS_MAX
from channel.types import TokenUnit
from mpp_session.agent.amounts import BASE_UNITS
from mpp_session.dashboard.access import Access
from mpp_session.dashboard.actions import NOTICES, Actions
from mpp_session.dashboard.answers import HEADERS, refuse, send_page
from mpp_session.dashboard.doors import Doors
from mpp_session.dashboard.feed import Seen
from mpp_session.dashboard.gather import Feeds
from mpp_session.dashboard.health import judge_health, judge_model
from mpp_session.dashboard.history import History
from mpp_session.dashboard.html import Child
from mpp_session.dashboard.layout import Frame, page
from mpp_session.dashboard.live import events
from mpp_session.dashboard.pages.channel import channel
from mpp_session.dashboard.pages.channels import channels
from mpp_session.dashboard.pages.cycles import cycles
from mpp_session.dashboard.pages.overview import (
    STREAMS_SHOWN,
    Overview,
    overview,
    stream_cells,
    sum_of_day,
)
from mpp_session.dashboard.pages.prices import PriceShown, prices
from mpp_session.dashboard.pages.refusals import refusals
from mpp_session.dashboard.pages.settlements import settlements
from mpp_session.dashboard.reading import Reader
from mpp_session.dashboard.revenue import HOUR_S, Revenue
from mpp_session.operator.doctor import check_watchtower
from mpp_session.process.sales import Sales
from mpp_session.settings import ProviderConfig
from settlement.tx.journal.interface import OrderName, SettlerJournal

__all__ = ["Dashboard"]

_MOMENT: Final = re.compile("[0-9]{1,12}")


class Dashboard:
    """The dashboard of one gateway. `routes` goes to the admin port."""

    def __init__(  # noqa: PLR0913 - each is another part of the gateway
        self,
        config: ProviderConfig,
        *,
        ledger: Ledger,
        engine: Engine,
        journal: SettlerJournal,
        sales: Sales,
        feeds: Feeds,
        access: Access,
        unit: TokenUnit | None,
        prices: Callable[[], Sequence[PriceShown]] = tuple,
        reload_prices: Callable[[], Awaitable[None]] | None = None,
        model_server: Callable[[], str | None] | None = None,
    ) -> None:
        """Show one provider's business.

        Args:
            config: The gateway's settings.
            ledger: Its books.
            engine: Decides the close of a channel.
            journal: The settler's, where orders are placed.
            sales: Whether the gateway sells.
            feeds: Reads what the gates of all processes report.
            access: Checks tokens and sessions.
            unit: How to write amounts; base units if None.
            prices: Returns the rows of today's prices.
            reload_prices: Reads the prices again, or raises why not; None if nothing can.
            model_server: Returns why the model server does not answer, or None;
                None if there is none.
        """
        self._config = config
        self._reader = Reader(config, ledger, journal)
        self._revenue = Revenue(config, ledger)
        self._history = History(ledger)
        self._journal = journal
        self._sales = sales
        self._feeds = feeds
        self._unit = unit or BASE_UNITS
        self._prices_now = prices
        self._can_reload = reload_prices is not None
        self._model_server = model_server
        self._event_streams = 0
        # Cookies do not tell ports apart: each payee's dashboard has a name of its own.
        self._doors = Doors(
            access,
            cookie=f"mpp-session-{config.payee.address[2:10].lower()}",
            frame=self._frame,
        )
        self._actions = Actions(
            reader=self._reader,
            engine=engine,
            journal=journal,
            sales=sales,
            feeds=feeds,
            unit=self._unit,
            reload_prices=reload_prices,
        )

    @property
    def routes(self) -> list[Route]:
        """The pages, for the admin port."""
        pages = {
            "/": self._overview,
            "/channels": self._channels,
            "/channels/{channel_id}": self._channel,
            "/settlements": self._settlements,
            "/refusals": self._refusals,
            "/prices": self._prices,
            "/cycles": self._cycles,
            "/events": self._events,
        }
        guard = self._doors.guard
        return [
            *self._doors.routes,
            *[Route(path, guard(answer)) for path, answer in pages.items()],
            *[
                Route(path, guard(answer), methods=["GET", "POST"])
                for path, answer in self._actions.handlers.items()
            ],
        ]

    def _frame(self, form_token: str) -> Frame:
        return Frame(
            realm=self._config.payment.realm,
            form_token=form_token,
            is_paused=self._sales.paused_at is not None,
        )

    def _send(
        self, request: Request, frame: Frame, title: str, content: Child, status: int = 200
    ) -> Response:
        notice = NOTICES.get(request.query_params.get("done", ""), "")
        return send_page(page(frame, request.url.path, title, content, notice=notice), status)

    # Pages.

    async def _overview(self, request: Request, frame: Frame) -> Response:
        status = await self._reader.status()
        found = await self._reader.channels(open_only=True)
        seen = await self._feeds.read()
        tower = await asyncio.to_thread(check_watchtower, self._config)
        model = None if self._model_server is None else judge_model(self._model_server())
        findings, health = judge_health(status, model, tower)
        data = Overview(
            now=time.time(),
            unit=self._unit,
            earned=await self._earned(seen),
            earned_since=None if self._revenue.is_kept else seen.started_at,
            at_risk=found.at_risk,
            open_channels=len(found.states),
            paid_requests=seen.paid_requests,
            live=tuple(seen.live),
            findings=findings,
            health=health,
            is_paused=frame.is_paused,
        )
        return self._send(request, frame, "Overview", overview(data))

    async def _channels(self, request: Request, frame: Frame) -> Response:
        state = request.query_params.get("state", "")
        found = await self._reader.channels(open_only=False)
        content = channels(found, self._unit, time.time(), state=state)
        return self._send(request, frame, "Channels", content)

    async def _channel(self, request: Request, frame: Frame) -> Response:
        state = await self._reader.require_channel(request.path_params["channel_id"])
        channel_id = state.key.channel_id
        sent = [
            each
            for each in await self._reader.settlements()
            if any(entry.channel_id == channel_id for entry in each.entries)
        ]
        seen = await self._feeds.read()
        kept = [each for each in seen.cycles if each.channel_id == channel_id]
        before = request.query_params.get("before", "")
        history = None
        if self._revenue.is_kept:
            moment = int(before) if _MOMENT.fullmatch(before) else None
            history = await self._history.read(state.key, moment)
        content = channel(
            state, sent, kept, self._unit, time.time(), history=history, is_newest=not before
        )
        return self._send(request, frame, "Channel", content)

    async def _settlements(self, request: Request, frame: Frame) -> Response:
        sent = await self._reader.settlements()
        order = await self._journal.order(OrderName.SETTLE)
        content = settlements(sent, self._unit, order, time.time())
        return self._send(request, frame, "Settlements", content)

    async def _refusals(self, request: Request, frame: Frame) -> Response:
        seen = await self._feeds.read()
        content = refusals(seen.refused, time.time(), seen.started_at)
        return self._send(request, frame, "Refusals", content)

    async def _prices(self, request: Request, frame: Frame) -> Response:
        content = prices(self._prices_now(), can_reload=self._can_reload)
        return self._send(request, frame, "Prices", content)

    async def _cycles(self, request: Request, frame: Frame) -> Response:
        seen = await self._feeds.read()
        content = cycles(seen.cycles, self._unit)
        return self._send(request, frame, "Payment cycles", content)

    # Events.

    async def _events(self, _request: Request, _frame: Frame) -> Response:
        if self._event_streams >= EVENT_STREAMS_MAX:
            return refuse(503, "Too many pages of the dashboard are open: close some.")
        return StreamingResponse(
            self._stream(), 200, {**HEADERS, "x-accel-buffering": "no"}, "text/event-stream"
        )

    async def _stream(self) -> AsyncIterator[bytes]:
        self._event_streams += 1
        try:
            async for event in events(self._read_live):
                yield event
        except LedgerUnavailableError:
            return  # the page asks again
        finally:
            self._event_streams -= 1

    async def _earned(self, seen: Seen) -> Mapping[int, int]:
        """Return base units by hour since 1970; what running streams have cost is in this hour."""
        if not self._revenue.is_kept:
            return seen.earned
        await self._revenue.look()
        running = sum(each.cost for each in seen.live)
        return self._revenue.by_hour + Counter({int(time.time() // HOUR_S): running})

    async def _read_live(self) -> dict[str, Any]:
        """Return what the event stream sends: texts by figure, and the live streams."""
        found = await self._reader.channels(open_only=True)
        now, seen = time.time(), await self._feeds.read()
        revenue = sum_of_day(await self._earned(seen), now)
        newest = seen.live[-STREAMS_SHOWN:][::-1]
        return {
            "figures": {
                "revenue": self._unit.format(revenue),
                "at_risk": self._unit.format(found.at_risk),
                "live": f"{len(seen.live):,}",
                "channels": f"{len(found.states):,}",
            },
            "streams": [
                {"id": each.request_id, "cells": stream_cells(each, self._unit, now)}
                for each in newest
            ],
        }
