"""The last payment cycles as timelines, for people who integrate (pure)."""

from collections.abc import Sequence
from typing import Final

from channel.types import TokenUnit
from mpp_session.dashboard.feed import CYCLES_KEPT, Cycle
from mpp_session.dashboard.html import Markup, el, join
from mpp_session.dashboard.show import amount, badge, clock_time, empty, short_id

__all__ = ["cycles", "timeline"]

_KINDS: Final = {
    "paid": "good",
    "managed": "good",
    "running": "warn",
    "refused": "bad",
    "failed": "bad",
    "left": "warn",
}
_MS: Final = 1000
_LONG_S: Final = 10


def cycles(kept: Sequence[Cycle], unit: TokenUnit) -> Markup:
    """Return the page's content, the newest cycle first."""
    intro = (
        f"The last {CYCLES_KEPT} requests for a path with a price since the gateway started, each "
        "from its challenge to its receipt. Times count from the arrival of the first request."
    )
    if not kept:
        body: Markup = empty(
            "No request came yet.", "Ask for a path with a price, with or without paying."
        )
    else:
        body = el("ol", [timeline(each, unit) for each in reversed(kept)], class_="cycles")
    return join(el("p", intro), body)


def timeline(cycle: Cycle, unit: TokenUnit) -> Markup:
    """Return one cycle."""
    channel = None
    if cycle.channel_id is not None:
        target = f"/channels/0x{cycle.channel_id.hex()}"
        channel = el("a", short_id(cycle.channel_id), href=target)
    head = el(
        "h3",
        badge(cycle.ending, _KINDS.get(cycle.ending, "")),
        el("span", cycle.route),
        el("span", cycle.variant, class_="note") if cycle.variant else None,
        channel,
        amount(cycle.cost, unit) if cycle.cost else None,
        clock_time(cycle.at),
    )
    steps = [
        el(
            "li",
            el("span", _after(each.after_s), class_="when"),
            el("span", each.name),
            el("span", each.text, class_="text"),
            class_="fault" if each.is_fault else None,
        )
        for each in cycle.steps
    ]
    return el("li", head, el("ol", steps, class_="steps"))


def _after(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= _LONG_S else f"{seconds * _MS:,.1f} ms"
