"""Values as people read them: amounts, ids, times, and tables of them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from channel.types import TokenUnit
from mpp_session.dashboard.html import Child, Markup, el

__all__ = [
    "ago",
    "amount",
    "badge",
    "clock_time",
    "count",
    "empty",
    "figure",
    "numbers",
    "section",
    "short_id",
    "table",
    "usage_text",
    "whole_id",
]

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_HEAD_CHARS: Final = 10
_TAIL_CHARS: Final = 6


def amount(value: int, unit: TokenUnit) -> Markup:
    """Return an amount of the token, every decimal of it, with its symbol."""
    number, _, symbol = unit.format(value).partition(" ")
    return el("span", number, " ", el("span", symbol, class_="unit"), class_="amount")


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 channel`, `2 channels`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def usage_text(usage: Mapping[str, int]) -> str:
    """Return units by kind: `65 output tokens, 12 input tokens`."""
    return ", ".join(count(number, kind.replace("_", " ")) for kind, number in usage.items())


def whole_id(value: bytes) -> Markup:
    """Return an address, a channel id or a hash to copy."""
    return el("code", f"0x{value.hex()}", class_="id")


def short_id(value: bytes) -> Markup:
    """Return the ends of an id; the whole of it is in its title."""
    text = f"0x{value.hex()}"
    short = text
    if len(text) > _HEAD_CHARS + _TAIL_CHARS + 1:
        short = f"{text[:_HEAD_CHARS]}…{text[-_TAIL_CHARS:]}"
    return el("code", short, title=text)


def clock_time(unix_s: float) -> Markup:
    """Return a time of day and its date, in UTC."""
    moment = datetime.fromtimestamp(unix_s, UTC)
    return el(
        "time",
        f"{moment:%Y-%m-%d %H:%M:%S} UTC",
        datetime=f"{moment:%Y-%m-%dT%H:%M:%SZ}",
    )


def ago(seconds: float) -> str:
    """Return how long ago something was, in its largest unit."""
    gone = max(0, int(seconds))
    for size, letter in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if gone >= size:
            return f"{gone // size} {letter} ago"
    return f"{gone} s ago"


def badge(text: str, kind: str = "") -> Markup:
    """Return a state as a label; `kind` is `good`, `warn`, `bad` or empty."""
    return el("span", text, class_=f"badge {kind}".strip())


def figure(name: str, value: Child, note: Child = None, *, key: str | None = None) -> Markup:
    """Return one figure of a page's head; `key` is its name in the live events."""
    return el(
        "div",
        el("dt", name),
        el("dd", value, data_figure=key),
        None if note is None else el("p", note, class_="note"),
        class_="figure",
    )


def empty(what: str, then: Child) -> Markup:
    """Return what stands where there is nothing yet: what is missing, and when it comes."""
    return el("div", el("p", what, class_="what"), el("p", then), class_="empty")


def section(title: str, *children: Child, key: str | None = None, aside: Child = None) -> Markup:
    """Return a part of a page with its heading."""
    name = key or "-".join(title.lower().split())
    return el(
        "section",
        el("header", el("h2", title, id=name), aside),
        *children,
        aria_labelledby=name,
    )


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    caption: str,
    right: Sequence[int] = (),
    key: str | None = None,
) -> Markup:
    """Return a table whose columns of numbers, `right`, end in line.

    On a narrow screen each row is a block: every cell carries its column's name.
    """
    numeric = set(right)

    def kind(index: int) -> str | None:
        return "num" if index in numeric else None

    head = el("tr", [el("th", c, scope="col", class_=kind(i)) for i, c in enumerate(columns)])
    body = [
        el(
            "tr",
            [el("td", cell, class_=kind(i), data_label=columns[i]) for i, cell in enumerate(row)],
        )
        for row in rows
    ]
    return el(
        "table",
        el("caption", caption),
        el("thead", head),
        el("tbody", body, id=key),
    )


def numbers(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Return names and values, one pair a line."""
    return el(
        "dl",
        [el("div", el("dt", name), el("dd", value)) for name, value in pairs],
        class_="pairs",
    )
