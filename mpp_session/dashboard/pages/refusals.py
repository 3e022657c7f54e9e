"""Refusals by problem, since the gateway started (pure)."""

from collections.abc import Sequence
from typing import Final

from mpp_session.dashboard.feed import Refused
from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.show import ago, empty, short_id, table

__all__ = ["refusals"]

_COLUMNS: Final = ("Problem", "Status", "Number", "Last", "What the client read")


def refusals(kept: Sequence[Refused], now: float, started_at: float) -> Markup:
    """Return the page's content, the most frequent first."""
    intro = el(
        "p",
        f"Counted since the gateway started {ago(now - started_at)}. A request without a "
        "credential gets 402 with an offer, and does not count. ",
        "The reference of errors says what each problem means.",
    )
    if not kept:
        return join(
            intro, empty("Nothing was refused.", "Refused payments are listed here by problem.")
        )
    rows: list[list[Child]] = [
        [
            el("code", each.problem_type or "application"),
            each.status,
            f"{each.number:,}",
            ago(now - each.last_at),
            el(
                "span",
                each.detail or f"an answer with status {each.status}, which is not charged",
                _where(each),
            ),
        ]
        for each in sorted(kept, key=lambda each: (-each.number, -each.last_at))
    ]
    return join(intro, table(_COLUMNS, rows, caption="Refusals by problem", right=[1, 2]))


def _where(each: Refused) -> Child:
    if each.channel_id is None:
        return None
    target = f"/channels/0x{each.channel_id.hex()}"
    return join(" ", el("a", short_id(each.channel_id), href=target))
