"""Settlements: the settler's transactions (pure)."""

from collections.abc import Sequence
from typing import Final

from channel.types import ChannelId, TokenUnit
from mpp_session.agent.amounts import format_ether
from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.reading import Settlement
from mpp_session.dashboard.show import ago, amount, badge, clock_time, count, empty, short_id, table
from settlement.tx.journal.interface import Order
from settlement.tx.state import JournalTx, TxStatus

__all__ = ["ROWS_SHOWN", "settlement_table", "settlements"]

ROWS_SHOWN: Final = 200
_STATES: Final = {
    TxStatus.INTENT: ("planned", ""),
    TxStatus.SIGNED: ("signed", "warn"),
    TxStatus.SENT: ("sent", "warn"),
    TxStatus.MINED: ("mined", "good"),
    TxStatus.REVERTED: ("reverted", "bad"),
    TxStatus.REPLACED: ("replaced", "bad"),
    TxStatus.ABANDONED: ("given up", ""),
}


def settlements(
    sent: Sequence[Settlement], unit: TokenUnit, order: Order | None, now: float
) -> Markup:
    """Return the page's content; `order` is the operator's last one to settle."""
    head = el(
        "p",
        el("a", "Settle now", href="/actions/settle", class_="button"),
        el("span", _describe(order, now), class_="note"),
        class_="actions",
    )
    if not sent:
        return join(
            head,
            empty(
                "Nothing was settled yet.",
                "The settler sends a transaction once enough is unsettled, or for long enough.",
            ),
        )
    note = f"The newest {ROWS_SHOWN} of {count(len(sent), 'transaction')}."
    return join(
        head,
        settlement_table(sent[:ROWS_SHOWN], unit),
        el("p", note, class_="note") if len(sent) > ROWS_SHOWN else None,
    )


def _describe(order: Order | None, now: float) -> str:
    if order is None:
        return ""
    if order.ended_at is None:
        return f"Ordered {ago(now - order.placed_at)}; the settler has not carried it out yet."
    return f"The last order was carried out {ago(now - order.ended_at)}: {order.outcome}."


def settlement_table(
    sent: Sequence[Settlement], unit: TokenUnit, *, only: ChannelId | None = None
) -> Markup:
    """Return transactions; with `only`, the amount up to which each settles that channel."""
    rows: list[list[Child]] = []
    for each in sent:
        tx = each.tx
        what: Child = tx.intent.purpose.name.lower()
        if only is None:
            covered: Child = count(len(each.entries), "channel")
        else:
            up_to = [e.cumulative_amount for e in each.entries if e.channel_id == only]
            covered = amount(max(up_to, default=0), unit)
        rows.append(
            [
                "none" if not tx.versions else short_id(tx.newest.tx_hash),
                what,
                _state(tx),
                clock_time(tx.versions[0].signed_at) if tx.versions else "not signed",
                "" if tx.inclusion is None else f"{tx.inclusion.block_number:,}",
                covered,
                _gas(tx),
            ]
        )
    columns = [
        *("Transaction", "What", "State", "Signed", "Block"),
        "Channels" if only is None else "In all, up to",
        "Gas",
    ]
    return table(columns, rows, caption="Transactions, the newest first", right=[4, 5, 6])


def _state(tx: JournalTx) -> Markup:
    if tx.status is TxStatus.FINAL:
        is_success = tx.inclusion is not None and tx.inclusion.is_success
        name, kind = ("final", "good") if is_success else ("reverted", "bad")
    else:
        name, kind = _STATES[tx.status]
    return el("span", badge(name, kind), f" {tx.reason.lower()}" if tx.reason else None)


def _gas(tx: JournalTx) -> str:
    if tx.inclusion is None:
        return ""
    return format_ether(tx.inclusion.gas_used * tx.inclusion.gas_price_wei)
