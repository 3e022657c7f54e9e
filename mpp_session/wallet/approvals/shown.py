"""A question as people read it: the same lines in the page, the terminal and the message (pure).

The agent chose some of the texts and a server others, and either may try to look like something
else. So every character that is not visible is written as an escape, and texts have a bound.
"""

from datetime import UTC, datetime
from typing import Final

import msgspec

from channel.tariff import describe_rate
from channel.types import TokenUnit
from mpp_session.wallet.approvals.record import Question, Record
from mpp_session.wallet.approvals.rules import ApprovalRules

__all__ = ["Line", "headline", "lines", "visible"]

_KINDS: Final = {
    "open": "pay a deposit that opens a channel",
    "top_up": "add a deposit to a channel",
    "charge": "make one payment",
    "request": "pay for one request from an open channel",
    "raise": "go beyond an envelope",
    "anomaly": "make an unusual payment",
}
_SHOWN: Final = 1000


class Line(msgspec.Struct, frozen=True):
    """One fact about a question."""

    name: str
    text: str
    is_agents: bool = False
    """The agent's own words, which are not checked."""


def visible(text: str, chars: int = _SHOWN) -> str:
    """Return text in which no character is invisible or moves another, cut after so many."""
    cut = text if len(text) <= chars else text[:chars] + "…"
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut
    )


def headline(question: Question, rules: ApprovalRules) -> str:
    """Return the question in one line."""
    unit = rules.unit(question.chain_id, question.token)
    return (
        f"{visible(question.agent)} asks to pay {unit.format(question.amount)} to "
        f"{visible(question.origin)}"
    )


def lines(record: Record, rules: ApprovalRules) -> list[Line]:
    """Return what a person should know before answering, the most important first."""
    question = record.question
    unit = rules.unit(question.chain_id, question.token)
    found = [
        Line("Amount", unit.format(question.amount)),
        Line("To do what", _KINDS[question.kind]),
        Line("Why you are asked", visible(question.why)),
        Line("Rule and code", f"{visible(question.rule) or 'none'}, {question.code}"),
        Line("Request", visible(f"{question.method} {question.origin}{question.path}")),
        Line("Paid to", f"0x{question.recipient.hex()} on chain {question.chain_id}"),
        Line("Token", f"0x{question.token.hex()}"),
        *_prices(question, unit),
        *_cost(question, unit),
        *_left(question, unit),
        Line("Task", visible(question.task), is_agents=True),
        Line("For agent", visible(question.on_behalf_of), is_agents=True),
        Line("Tool", visible(question.tool), is_agents=True),
        Line("Reason", visible(question.reason), is_agents=True),
        *_alternatives(question),
        Line("Answer by", _time(question.answer_by)),
        Line("Terms", record.terms.exact.hex()),
        *_answers(record, unit),
    ]
    if question.escrow is not None:
        found.insert(7, Line("Escrow", f"0x{question.escrow.hex()}"))
    return [line for line in found if line.text]


def _prices(question: Question, unit: TokenUnit) -> list[Line]:
    tariff = question.tariff
    if tariff is None:
        return []
    prices = [describe_rate(rate, unit) for rate in tariff.rates]
    prices += [f"at least {unit.format(tariff.minimum)}"] if tariff.minimum else []
    prices += [] if tariff.maximum is None else [f"at most {unit.format(tariff.maximum)}"]
    return [Line("Prices", visible("; ".join(prices)))]


def _cost(question: Question, unit: TokenUnit) -> list[Line]:
    """Return what the request costs at most, where the deposit is only a part of it."""
    if question.ask != "deposit" or question.request_max <= question.amount:
        return []
    return [Line("The request costs", f"at most {unit.format(question.request_max)}")]


def _left(question: Question, unit: TokenUnit) -> list[Line]:
    found = [Line("Envelopes", visible(", ".join(question.envelopes)))]
    if question.left_before is not None and question.left_after is not None:
        after = unit.format(question.left_after)
        text = f"{unit.format(question.left_before)} before this payment, {after} after it"
        found.append(Line("Left in the limits", text))
    return found


def _alternatives(question: Question) -> list[Line]:
    return [
        Line(
            "Other offer",
            visible(": ".join(filter(None, (each.origin, each.price, each.why_not)))),
            is_agents=True,
        )
        for each in question.alternatives
    ]


def _answers(record: Record, unit: TokenUnit) -> list[Line]:
    found = [
        Line(
            "Answered",
            f"{vote.by.kind} {visible(vote.by.id)}: {vote.verdict}, {unit.format(vote.amount)}, "
            f"{vote.scope}{vote.comment and ': ' + visible(vote.comment)}",
        )
        for vote in record.votes
    ]
    if record.state != "pending":
        approved = f", {unit.format(record.used)} of {unit.format(record.approved)} used"
        comment = record.comment and f" ({visible(record.comment)})"
        found.append(Line("State", f"{record.state}{approved if record.approved else ''}{comment}"))
        if record.state == "approved":
            found.append(Line("Usable until", _time(record.expires_at)))
    return found


def _time(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
