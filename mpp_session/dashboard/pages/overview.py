"""The first page: revenue, live streams, value at risk, health (pure)."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from channel.types import TokenUnit
from mpp_session.dashboard.chart import HOURS, revenue_chart
from mpp_session.dashboard.feed import Live
from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.show import (
    ago,
    amount,
    badge,
    count,
    empty,
    figure,
    section,
    short_id,
    table,
    usage_text,
)

__all__ = ["STREAMS_SHOWN", "Health", "Overview", "overview", "stream_cells", "sum_of_day"]

STREAMS_SHOWN: Final = 50
_COLUMNS: Final = ("Model", "Channel", "Started", "Units", "Charged")
_HOUR_S: Final = 3600


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """One part that must work."""

    name: str
    state: str
    kind: str
    """`good`, `warn`, `bad` or empty."""
    detail: str = ""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows. Amounts in base units."""

    now: float
    unit: TokenUnit
    earned: Mapping[int, int]
    """By hour since 1970."""
    earned_since: float | None
    """Since when `earned` is known, in Unix seconds; None: for all of it."""
    at_risk: int
    open_channels: int
    paid_requests: int
    live: tuple[Live, ...]
    findings: tuple[tuple[str, str], ...]
    """Kind and text."""
    health: tuple[Health, ...]
    is_paused: bool = False


def overview(data: Overview) -> Markup:
    """Return the page's content."""
    hour = int(data.now // _HOUR_S)
    today = sum_of_day(data.earned, data.now)
    since = (
        None if data.earned_since is None else f"counted from {ago(data.now - data.earned_since)}"
    )
    return join(
        el(
            "dl",
            figure("Revenue, 24 hours", amount(today, data.unit), since, key="revenue"),
            figure(
                "Value at risk",
                amount(data.at_risk, data.unit),
                "delivered, not yet settled",
                key="at_risk",
            ),
            figure("Live streams", str(len(data.live)), "paid requests that run now", key="live"),
            figure("Open channels", f"{data.open_channels:,}", _paid(data), key="channels"),
            class_="figures",
        ),
        el("ul", [_finding(*each) for each in data.findings], class_="findings")
        if data.findings
        else None,
        section(
            "Live streams",
            el(
                "div",
                _streams(data.live, data),
                id="streams",
                data_empty=None if data.live else True,
            ),
        ),
        section("Revenue by hour", revenue_chart(data.earned, hour, data.unit)),
        section("Health", el("ul", [_health(each) for each in data.health], class_="health")),
        section(
            "Actions",
            el(
                "p",
                el("a", "Settle now", href="/actions/settle", class_="button"),
                " ",
                el("a", "Reload prices", href="/actions/reload", class_="button"),
                " ",
                el("a", "Resume sales", href="/actions/resume", class_="button")
                if data.is_paused
                else el("a", "Pause sales", href="/actions/pause", class_="button"),
                class_="actions",
            ),
            el("p", "Each shows first what it will do.", class_="note"),
        ),
    )


def sum_of_day(earned: Mapping[int, int], now: float) -> int:
    """Return what was earned in the last 24 hours, the running one included."""
    hour = int(now // _HOUR_S)
    return sum(earned.get(each, 0) for each in range(hour - HOURS + 1, hour + 1))


def stream_cells(live: Live, unit: TokenUnit, now: float) -> list[str]:
    """Return the texts of a live stream's row, in the order of the columns."""
    channel = "" if live.channel_id is None else f"0x{live.channel_id.hex()}"
    return [
        live.variant or live.route,
        channel,
        ago(now - live.began_at),
        usage_text(live.usage) or "none yet",
        unit.format(live.cost),
    ]


def _streams(live: Iterable[Live], data: Overview) -> Child:
    shown = list(live)[-STREAMS_SHOWN:][::-1]
    rows: list[list[Child]] = []
    for each in shown:
        model, _, began, usage, _ = stream_cells(each, data.unit, data.now)
        channel: Child = "unknown"
        if each.channel_id is not None:
            channel = el(
                "a", short_id(each.channel_id), href=f"/channels/0x{each.channel_id.hex()}"
            )
        rows.append([model, channel, began, usage, amount(each.cost, data.unit)])
    return join(
        table(
            _COLUMNS,
            rows,
            caption="Paid requests that run now, the newest first",
            right=[3, 4],
            key="stream-rows",
        ),
        empty("No stream is running.", "One appears here while its client pays for it."),
    )


def _paid(data: Overview) -> str:
    return count(data.paid_requests, "paid request") + " since the start"


def _finding(kind: str, text: str) -> Markup:
    return el("li", badge("act now" if kind == "bad" else "look", kind), " ", text)


def _health(each: Health) -> Markup:
    return el(
        "li",
        el("span", each.name, class_="name"),
        badge(each.state, each.kind),
        el("span", each.detail, class_="detail") if each.detail else None,
    )
