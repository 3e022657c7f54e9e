"""The whole story of a payment, from any identifier that it left: forwards and backwards.

A request leads to its decisions, approvals, vouchers and receipts, and to the life of its channel.
A channel, a transaction or a receipt leads back to the requests that were paid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from mpp_session.wallet.audit.index import UNTRUSTED, Index
from mpp_session.wallet.audit.records import receipt_digest
from mpp_session.wallet.audit.trail import Entry

__all__ = ["Step", "describe", "tell"]

_LIFE: Final = frozenset({"open", "top_up", "settle", "close", "refund"})
_DIGITS: Final = 39
_HEX_DIGITS: Final = (40, 64)
_ID_CHARS: Final = 10
_SENTENCES: Final = {
    "approval": "{approval_id} is {state}: {amount} asked, {approved} approved for {scope} by "
    "{by}, {used} used",
    "open": "channel {channel_id} with {origin}, deposit {deposit}",
    "top_up": "channel {channel_id} with {origin}, deposit {deposit}",
    "receipt": "{spent} of {accepted} accepted is spent, says {origin} of channel {channel_id}",
    "settle": "channel {channel_id} paid {delta} on chain, {settled} in all, by {tx_hash}",
    "close": "channel {channel_id} is closed: {signed} signed, {settled} paid, {returned} of "
    "{deposit} returned, by {tx_hash}",
    "refund": "{returned} that was signed and not paid is back in the budgets of channel "
    "{channel_id}",
}
"""What a record of a kind says; other kinds list their fields."""


class Step(msgspec.Struct, frozen=True):
    """One line of the story. Of many vouchers in a row, the first and what they add up to."""

    seq: int
    at: float
    kind: str
    agent: str
    text: str
    said: str = ""
    """What the agent gave as its reason: untrusted."""
    vouchers: int = 0


def tell(index: Index, identifier: str) -> list[Step]:
    """Return what happened around an identifier, in order; empty if no record holds it.

    Args:
        index: Of the trail.
        identifier: A request's, channel's, approval's or challenge's id, a transaction's hash, a
            receipt's digest, or a receipt as the server sent it. Else a trace's id, as an agent
            named it.
    """
    named: dict[str, set[int]] = {}
    for form in _forms(identifier):
        named = index.named(form)
        if named:
            break
    proven = {name: found for name, found in named.items() if name != UNTRUSTED}
    named = proven or named
    seeds = set().union(*named.values()) if named else set()
    channels = set() if "request_id" in named else index.identifiers(seeds, "channel_id")
    if "request_id" in named or "approval_id" in named or not channels:
        numbers = _of_requests(index, seeds)
    else:
        numbers = seeds | _holding(index, channels)
        requests = _holding(index, index.identifiers(numbers, "request_id"))
        numbers |= requests
        numbers |= _holding(index, index.identifiers(numbers, "approval_id"))
    return _steps(index.entries(sorted(numbers)))


def _of_requests(index: Index, seeds: set[int]) -> set[int]:
    numbers = seeds | _holding(index, index.identifiers(seeds, "approval_id"))
    numbers |= _holding(index, index.identifiers(numbers, "request_id"))
    numbers |= _holding(index, index.identifiers(numbers, "approval_id"))
    last = max(numbers, default=0)
    around = _holding(index, index.identifiers(numbers, "channel_id"))
    beside = [
        entry for entry in index.entries(sorted(around - numbers)) if entry.seq not in numbers
    ]
    numbers |= {entry.seq for entry in beside if entry.kind in _LIFE}
    receipts = [entry.seq for entry in beside if entry.kind == "receipt" and entry.seq > last]
    return numbers | set(receipts[:1])


def _holding(index: Index, identifiers: set[str]) -> set[int]:
    return {
        seq
        for identifier in identifiers
        for name, numbers in index.named(identifier).items()
        for seq in numbers
        if name != UNTRUSTED
    }


def _forms(identifier: str) -> list[str]:
    text = identifier.strip()
    forms = [text, text.lower()]
    digits = text.lower().removeprefix("0x")
    if len(digits) in _HEX_DIGITS and all(c in "0123456789abcdef" for c in digits):
        forms += ["0x" + digits, digits]
    return [*forms, receipt_digest(text)]


def _steps(entries: Sequence[Entry]) -> list[Step]:
    steps: list[Step] = []
    group: list[Entry] = []
    for entry in entries:
        if group and (entry.kind != "voucher" or _payment(entry) != _payment(group[0])):
            steps.append(_voucher_step(group))
            group = []
        if entry.kind == "voucher":
            group.append(entry)
        else:
            said = str(_member(entry.fields, "ask", "untrusted", "reason") or "")
            steps.append(Step(entry.seq, entry.at, entry.kind, entry.agent, describe(entry), said))
    if group:
        steps.append(_voucher_step(group))
    return steps


def _payment(entry: Entry) -> tuple[object, object]:
    return entry.fields.get("request_id"), entry.fields.get("channel_id")


def _voucher_step(group: Sequence[Entry]) -> Step:
    first, last = group[0], group[-1]
    amounts = [_amount(entry) for entry in group]
    begin = _member(first.fields, "voucher", "cumulative")
    end = _member(last.fields, "voucher", "cumulative")
    text = f"signed {begin}"
    if len(group) > 1:
        text = f"signed {len(group)} times, from {begin} to {end}"
    text += f": {sum(amounts)} for {first.fields.get('request_id', '')}"
    return Step(first.seq, first.at, "voucher", first.agent, text, vouchers=len(group))


def _amount(entry: Entry) -> int:
    """Return what a voucher adds; 0 in a record that was changed, which `verify` names."""
    text = str(_member(entry.fields, "voucher", "delta"))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else 0


def describe(entry: Entry) -> str:
    """Return what a record says, on one line, without control characters; amounts in base units."""
    fields = entry.fields
    ask, decision = fields.get("ask"), fields.get("decision")
    if isinstance(ask, Mapping) and isinstance(decision, Mapping):
        rule = f", rule {decision['rule']}" if decision.get("rule") else ""
        line = (
            f"{decision.get('action')} {ask.get('kind')} of {ask.get('amount')} to "
            f"{ask.get('method')} {ask.get('origin')}{ask.get('path')}: "
            f"{decision.get('code')}{rule}: {decision.get('reason')}"
        )
    elif entry.kind in _SENTENCES:
        line = _SENTENCES[entry.kind].format_map(_Named(fields))
        line += f" ({fields['comment']})" if fields.get("comment") else ""
    else:
        own = {"v", "seq", "at", "prev", "kind", "agent"}
        line = ", ".join(
            f"{name} {_short(value)}"
            for name, value in fields.items()
            if name not in own and value not in ("", [], {})
        )
    return "".join(c if c.isprintable() else " " for c in line)


class _Named(dict[str, Any]):
    """A record's fields for a sentence; a long identifier is cut, an absent one shows as `-`."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__({name: _cut(value) for name, value in fields.items()})

    def __missing__(self, name: str) -> str:
        return "-"


def _cut(value: Any) -> str:
    text = _short(value)
    is_long = text.startswith("0x") and len(text) > _ID_CHARS
    return f"{text[:_ID_CHARS]}..." if is_long else text or "-"


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return msgspec.json.encode(value).decode()
    return str(value)


def _member(fields: Mapping[str, Any], *names: str) -> Any:
    value: Any = fields
    for name in names:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value
