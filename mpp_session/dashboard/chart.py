"""A chart of revenue by hour: bars in SVG, and the same numbers as a table (pure)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from channel.types import TokenUnit
from mpp_session.dashboard.html import Markup, el, join
from mpp_session.dashboard.show import amount, table

__all__ = ["HOURS", "revenue_chart"]

HOURS: Final = 24
_HOUR_S: Final = 3600
_STEP, _BAR, _HEIGHT = 30, 22, 120
_LABEL_EVERY: Final = 6
_BAR_LEAST: Final = 2


def revenue_chart(earned: Mapping[int, int], hour: int, unit: TokenUnit) -> Markup:
    """Return the last 24 hours up to `hour`, counted in hours since 1970."""
    hours = range(hour - HOURS + 1, hour + 1)
    amounts = [earned.get(each, 0) for each in hours]
    top = max(amounts) or 1
    bars = []
    for index, (each, value) in enumerate(zip(hours, amounts, strict=True)):
        height = max(_BAR_LEAST, _HEIGHT * value // top) if value else 1
        bars.append(
            el(
                "rect",
                el("title", f"{_name(each)}: {unit.format(value)}"),
                x=index * _STEP + (_STEP - _BAR) // 2,
                y=_HEIGHT - height,
                width=_BAR,
                height=height,
                class_="bar" if value else "bar none",
            )
        )
    picture = el(
        "svg",
        bars,
        viewBox=f"0 0 {HOURS * _STEP} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"Revenue of the last {HOURS} hours; the greatest hour {unit.format(top)}",
        class_="chart",
    )
    rows = [
        [_name(each), amount(value, unit)]
        for each, value in zip(hours, amounts, strict=True)
        if value
    ]
    details = el(
        "details",
        el("summary", "The same as a table"),
        table(["Hour (UTC)", "Revenue"], rows, caption="Revenue by hour", right=[1]),
    )
    marks = [*map(_name, hours[::_LABEL_EVERY]), "now"]
    axis = el("p", [el("span", mark) for mark in marks], class_="axis")
    return join(picture, axis, details if rows else None)


def _name(hour: int) -> str:
    return f"{datetime.fromtimestamp(hour * _HOUR_S, UTC):%H:00}"
