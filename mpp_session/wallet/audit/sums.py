"""What was asked, refused, deposited, signed, settled and returned: by agent, task, and for whom.

A channel may serve several tasks. A settlement pays its vouchers from the first on, because they
are cumulative, so each settled unit has one request. What a close returns goes to the last deposit
of the channel.
"""

import sqlite3
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from channel.errors import StoreError, WireError
from mpp_session.wallet.audit.records import decode_ask, decode_decision
from mpp_session.wallet.audit.trail import Entry, read_entries
from mpp_session.wallet.types import Ask, Decision

__all__ = ["By", "Sums", "add_up", "asks", "read_asks"]

By = Literal["agent", "on_behalf_of", "task", "origin"]

_REMEMBERED: Final = 10_000
"""Requests whose first ask is remembered for their vouchers."""


class Sums(msgspec.Struct, kw_only=True):
    """Base units of one token, for one agent, person, task or server."""

    name: str
    chain_id: int
    token: str
    requests: int = 0
    asked: int = 0
    refused: int = 0
    """Also what was held for an approval."""
    deposited: int = 0
    signed: int = 0
    settled: int = 0
    returned: int = 0


class _Channel(msgspec.Struct):
    signed: int = 0
    settled: int = 0
    parts: list[tuple[int, int, Sums]] = []
    """From which amount up to which was signed for whom."""
    next_part: int = 0
    last_deposit: Sums | None = None


def asks(db: sqlite3.Connection, *, since: float | None = None) -> Iterator[tuple[Ask, Decision]]:
    """Yield what was asked and decided, in order: for a replay under another policy.

    A voucher without a decision of its own is the first ask of its request with other amounts.

    Raises:
        StoreError: A record cannot be read.
    """
    for _, ask, decision in read_asks(read_entries(db, since=since)):
        if ask is not None and decision is not None:
            yield ask, decision


def add_up(db: sqlite3.Connection, by: By, *, since: float | None = None) -> list[Sums]:
    """Return the sums of each name and token, by name.

    Raises:
        StoreError: A record cannot be read.
    """
    rows: dict[tuple[str, int, str], Sums] = {}
    channels: dict[str, _Channel] = {}
    for entry, ask, decision in read_asks(read_entries(db, since=since)):
        if ask is None or decision is None:
            _end(channels, entry)
            continue
        name = str(getattr(ask if by in {"agent", "origin"} else ask.purpose, by))
        key = (name, ask.chain_id, "0x" + ask.token.hex())
        row = rows.setdefault(key, Sums(name=key[0], chain_id=key[1], token=key[2]))
        _count(row, channels, ask, decision)
    return [rows[key] for key in sorted(rows)]


def read_asks(
    entries: Iterator[Entry],
) -> Iterator[tuple[Entry, Ask | None, Decision | None]]:
    """Yield every record, with ask and decision where it has them.

    Raises:
        StoreError: A record cannot be read.
    """
    known: dict[str, tuple[Ask, Decision, int | None]] = {}
    for entry in entries:
        fields = entry.fields
        try:
            if "ask" in fields and "decision" in fields:
                ask, decision = decode_ask(fields["ask"]), decode_decision(fields["decision"])
                known.pop(ask.request_id, None)
                first = ask.total if ask.kind == "sign" else None
                known[ask.request_id] = (ask, decision, first)
                if len(known) > _REMEMBERED:
                    del known[next(iter(known))]
                yield entry, ask, decision
            elif entry.kind == "voucher" and fields.get("request_id") in known:
                ask, decision, first = known[fields["request_id"]]
                voucher = _voucher(ask, entry)
                if voucher.total == first:  # the decision before it is about this one
                    yield entry, None, None
                else:
                    yield entry, voucher, decision
            else:
                yield entry, None, None
        except (WireError, KeyError, ValueError, TypeError) as error:
            raise StoreError(f"record {entry.seq} of the audit trail: {error}") from error


def _voucher(ask: Ask, entry: Entry) -> Ask:
    voucher = entry.fields["voucher"]
    return replace(
        ask,
        kind="sign",
        amount=int(voucher["delta"]),
        total=int(voucher["cumulative"]),
        request_total=int(voucher["request_total"]),
        is_first=False,
        is_opening=False,
        at=entry.at,
    )


def _count(row: Sums, channels: dict[str, _Channel], ask: Ask, decision: Decision) -> None:
    channel = None
    if ask.channel_id is not None:
        channel = channels.setdefault("0x" + ask.channel_id.hex(), _Channel(parts=[]))
    if ask.kind == "sign" and channel is not None and decision.action == "allow":
        known = channel.signed if channel.parts else ask.total - ask.amount
        delta = max(0, ask.total - known)
        if delta:
            channel.parts.append((known, ask.total, row))
            channel.signed = ask.total
        row.signed += delta
        row.asked += delta
    else:
        row.asked += ask.amount
    row.requests += ask.is_first and ask.kind != "deposit"
    if decision.action != "allow":
        row.refused += ask.amount
    elif ask.kind == "charge":
        row.signed += ask.amount
    elif ask.kind == "deposit":
        row.deposited += ask.amount
        if channel is not None:
            channel.last_deposit = row


def _end(channels: dict[str, _Channel], entry: Entry) -> None:
    channel = channels.get(str(entry.fields.get("channel_id")))
    if channel is None or entry.kind not in {"settle", "close", "refund"}:
        return
    _settle(channel, _amount(entry, "settled"))
    if entry.kind == "close" and channel.last_deposit is not None:
        channel.last_deposit.returned += _amount(entry, "returned")
        channel.last_deposit = None


def _settle(channel: _Channel, settled: int) -> None:
    """Give what is settled anew to those for whom it was signed."""
    while channel.settled < settled and channel.next_part < len(channel.parts):
        begin, end, row = channel.parts[channel.next_part]
        up_to = min(end, settled)
        row.settled += max(0, up_to - max(begin, channel.settled))
        channel.settled = max(channel.settled, up_to)
        if up_to == end:
            channel.next_part += 1


def _amount(entry: Entry, name: str) -> int:
    value: Any = entry.fields.get(name, 0)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise StoreError(f"record {entry.seq} of the audit trail: {name}: {error}") from error
