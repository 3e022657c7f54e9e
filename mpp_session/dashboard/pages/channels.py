"""The list of channels, by state and value at risk (pure)."""

from collections.abc import Sequence
from typing import Final

from channel.state.channel_state import ChannelState
from channel.types import TokenUnit
from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.reading import Channels, name_state
from mpp_session.dashboard.show import ago, amount, badge, count, empty, figure, short_id, table
from settlement.settle.schedule import value_at_risk

__all__ = ["ROWS_SHOWN", "channels"]

ROWS_SHOWN: Final = 200
_STATES: Final = ("open", "close requested", "closing", "stopped", "ended")
_COLUMNS: Final = (
    "Channel",
    "Payer",
    "State",
    "Last voucher",
    "Deposit",
    "Spent",
    "Settled",
    "At risk",
)


def channels(found: Channels, unit: TokenUnit, now: float, *, state: str = "") -> Markup:
    """Return the page's content: all channels that are read, or those in one state."""
    by_state = dict.fromkeys(_STATES, 0)
    for each in found.states:
        by_state[name_state(each)[0]] += 1
    shown = [each for each in found.states if not state or name_state(each)[0] == state]
    return join(
        el(
            "dl",
            figure("Value at risk", amount(found.at_risk, unit), "over all open channels"),
            figure("Channels", f"{len(found.states):,}", "read from the ledger"),
            class_="figures",
        ),
        el("nav", el("ul", _filters(by_state, state)), class_="filters", aria_label="States"),
        _table(shown[:ROWS_SHOWN], unit, now),
        _rest(found, len(shown)),
    )


def _filters(by_state: dict[str, int], chosen: str) -> list[Markup]:
    all_of_them = [("", sum(by_state.values())), *by_state.items()]
    return [
        el(
            "li",
            el(
                "a",
                name or "all",
                " ",
                el("span", f"{number:,}", class_="n"),
                href=f"/channels?state={name.replace(' ', '+')}" if name else "/channels",
                aria_current="true" if name == chosen else None,
            ),
        )
        for name, number in all_of_them
        if number or not name or name == chosen
    ]


def _table(shown: Sequence[ChannelState], unit: TokenUnit, now: float) -> Markup:
    if not shown:
        return empty(
            "No channel.",
            "A client opens one with its first paid request; its deposit then stands here.",
        )
    rows: list[list[Child]] = [
        [
            el("a", short_id(s.key.channel_id), href=f"/channels/0x{s.key.channel_id.hex()}"),
            short_id(s.terms.payer),
            badge(*name_state(s)),
            ago(now - s.active_at) if s.active_at else "none",
            amount(s.deposit, unit),
            amount(s.spent, unit),
            amount(s.settled, unit),
            amount(0 if s.is_finalized else value_at_risk(s), unit),
        ]
        for s in shown
    ]
    return table(_COLUMNS, rows, caption="Channels, most at risk first", right=[4, 5, 6, 7])


def _rest(found: Channels, number: int) -> Markup | None:
    said = []
    if number > ROWS_SHOWN:
        said.append(f"The {ROWS_SHOWN} with the most at risk of {count(number, 'channel')}.")
    if found.has_more:
        said.append("The ledger holds more than this page reads: use `mpp-session channels`.")
    return el("p", " ".join(said), class_="note") if said else None
