"""One channel and its whole history: amounts, events, settlements, charges (pure)."""

from collections.abc import Sequence
from typing import Final

from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.charges import ChargeOutcome
from channel.types import TokenUnit
from mpp_session.dashboard.feed import Cycle
from mpp_session.dashboard.history import HistoryPage
from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.pages.cycles import timeline
from mpp_session.dashboard.pages.settlements import settlement_table
from mpp_session.dashboard.reading import Settlement, name_state
from mpp_session.dashboard.show import (
    ago,
    amount,
    badge,
    clock_time,
    empty,
    figure,
    numbers,
    section,
    table,
    usage_text,
    whole_id,
)
from settlement.settle.schedule import value_at_risk

__all__ = ["channel"]

_OUTCOMES: Final = {
    ChargeOutcome.DONE: "good",
    ChargeOutcome.LEFT: "warn",
    ChargeOutcome.FAILED: "bad",
    ChargeOutcome.EXPIRED: "bad",
}

_KINDS: Final = {ReservationKind.STREAM: "stream", ReservationKind.REQUEST: "request"}


def channel(
    state: ChannelState,
    settlements: Sequence[Settlement],
    cycles: Sequence[Cycle],
    unit: TokenUnit,
    now: float,
    *,
    history: HistoryPage | None = None,
    is_newest: bool = True,
) -> Markup:
    """Return the page's content; `history` is None if the ledger keeps no accounts."""
    at_risk = 0 if state.is_finalized else value_at_risk(state)
    return join(
        el("p", whole_id(state.key.channel_id), " ", badge(*name_state(state))),
        el(
            "dl",
            figure("Spent", amount(state.spent, unit), "delivered and charged"),
            figure("Settled", amount(state.settled, unit), "paid out on chain"),
            figure("At risk", amount(at_risk, unit), "delivered, not yet settled"),
            figure("Deposit", amount(state.deposit, unit), _left(state, unit)),
            class_="figures",
        ),
        _actions(state),
        section("Facts", numbers(_facts(state, unit, now))),
        section(
            "Settlements",
            settlement_table(settlements, unit, only=state.key.channel_id)
            if settlements
            else empty(
                "Nothing was sent to the chain for this channel.",
                "The settler settles once enough is unsettled, or for long enough.",
            ),
        ),
        section("Charges", _charges(state, history, unit, is_newest=is_newest)),
        section(
            "Requests",
            el("ol", [timeline(each, unit) for each in reversed(cycles)], class_="cycles")
            if cycles
            else empty(
                "No recent request.",
                "The last 200 payment cycles since the gateway started are kept.",
            ),
        ),
    )


def _charges(
    state: ChannelState, history: HistoryPage | None, unit: TokenUnit, *, is_newest: bool
) -> Markup:
    if history is None:
        return empty(
            "This ledger keeps no accounts.", "Set `ledger.charges = true` to keep each charge."
        )
    links = el("p", _links(state, history, is_newest=is_newest), class_="actions")
    if not history.charges and history.older is None and is_newest:
        return empty("No charge yet.", "A request stands here once it has ended.")
    rows: list[list[Child]] = [
        [
            clock_time(row.at),
            row.variant or row.route or "no request",
            badge(row.outcome, _OUTCOMES.get(row.outcome, "")),
            "unknown" if row.usage is None else usage_text(row.usage),
            amount(row.amount, unit),
        ]
        for row in history.charges
    ]
    columns = ["Time", "Model", "Outcome", "Units", "Charged"]
    return join(
        table(columns, rows, caption="Charges, the newest first", right=[3, 4])
        if rows
        else el("p", "No charge of this channel in the time that was read.", class_="note"),
        links,
    )


def _links(state: ChannelState, history: HistoryPage, *, is_newest: bool) -> list[Child]:
    here = f"/channels/0x{state.key.channel_id.hex()}"
    links: list[Child] = []
    if not is_newest:
        links.append(el("a", "Newest charges", href=f"{here}#charges", class_="button"))
    if history.older is None:
        links.append(el("span", "The books keep no older one.", class_="note"))
    else:
        older = f"{here}?before={history.older}#charges"
        links.append(el("a", "Older charges", href=older, class_="button"))
    return links


def _left(state: ChannelState, unit: TokenUnit) -> str:
    left = max(0, state.deposit - state.spent - state.reserved)
    return f"{unit.format(left)} not used"


def _actions(state: ChannelState) -> Markup | None:
    if state.is_finalized or state.closing_with is not None:
        return None
    target = f"/channels/0x{state.key.channel_id.hex()}/close"
    return section(
        "Actions",
        el("p", el("a", "Close this channel", href=target, class_="button"), class_="actions"),
    )


def _facts(state: ChannelState, unit: TokenUnit, now: float) -> list[tuple[str, Child]]:
    terms = state.terms
    facts: list[tuple[str, Child]] = [
        ("Payer", whole_id(terms.payer)),
        ("Signs vouchers", whole_id(terms.signer)),
        ("Payee", whole_id(terms.payee)),
        ("Token", whole_id(terms.token)),
        ("Escrow", join(whole_id(state.key.escrow), f" on chain {state.key.chain_id}")),
        ("Accepted", join(amount(state.accepted, unit), ", the highest voucher")),
        ("Public", join(amount(state.published, unit), ", the highest voucher ever sent")),
    ]
    if state.active_at:
        at = join(clock_time(state.active_at), ", ", ago(now - state.active_at))
        facts.append(("Last voucher", at))
    facts += [
        (
            f"Running {_KINDS[held.kind]}",
            join(amount(held.amount, unit), " reserved, until ", clock_time(held.lease_expires_at)),
        )
        for held in state.reservations
    ]
    if state.close_requested_at:
        facts.append(("Payer asked to close", clock_time(state.close_requested_at)))
    if state.close_tx:
        facts.append(("Closed by", whole_id(state.close_tx)))
    if state.is_finalized:
        refund = state.deposit - state.settled
        facts.append(("Given back to the payer", amount(refund, unit)))
    facts.append(("Chain facts of block", f"{state.fact_block:,}"))
    if state.foreign_block:
        text = "with the payee's key, but not by this ledger"
        facts.append((f"Paid out at block {state.foreign_block:,}", text))
    return facts
