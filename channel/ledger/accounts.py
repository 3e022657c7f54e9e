"""The accounts of both ledgers: entries as rows, what they add up to, and days of old entries.

For each channel `spent` is the sum of its entries and of what its running reservations have spent.
An entry is a row. Beyond `AccountSettings.kept_s` it is part of a day, and of its channel's
`pruned`. What was never a row is its channel's `unlisted`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from channel.ledger.rows import amount_bytes, bytes_amount, decode_reservations
from channel.limits import CHARGES_DAYS
from channel.state.charges import Charge, ChargeOutcome, decode_note, encode_note
from channel.types import Address, ChannelId, ChannelKey

__all__ = [
    "DAY_S",
    "AccountSettings",
    "ChargeDay",
    "ChargeRow",
    "DayId",
    "OldCharge",
    "add_up_days",
    "balance_fault",
    "charge_from_row",
    "charge_of_row",
    "charge_values",
    "day_from_row",
    "day_values",
    "is_listed",
    "last_day",
    "old_charge",
]

DAY_S: Final = 86_400

Row = Sequence[Any]

_usage_encoder: Final = msgspec.json.Encoder(order="deterministic")
_usage_decoder: Final = msgspec.json.Decoder(dict[str, int])


class AccountSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger keeps of paid requests."""

    is_kept: bool = True
    """Whether each paid request has a row; otherwise only its channel's sum is kept."""
    kept_s: int = CHARGES_DAYS * DAY_S
    """Age beyond which rows are added up by day and deleted."""


class ChargeRow(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One entry of the accounts."""

    row_id: int
    at: int
    """Unix seconds of the commit."""
    key: ChannelKey
    payer: Address
    payee: Address
    token: Address
    reservation_id: bytes
    """Of the request; empty when it was none."""
    outcome: ChargeOutcome
    is_stream: bool
    route: str
    variant: str
    usage: Mapping[str, int] | None
    """Units by kind; None when they are unknown."""
    response_id: str
    amount: int


class DayId(msgspec.Struct, frozen=True, gc=False):
    """What is added up together."""

    day: int
    """Days since 1970-01-01, in UTC."""
    chain_id: int
    payee: bytes
    token: bytes
    route: str
    variant: str
    outcome: str


class ChargeDay(msgspec.Struct, gc=False):
    """Old entries of a day, added up."""

    id: DayId
    requests: int
    usage: dict[str, int]
    """Units by kind, as far as they are known."""
    amount: int


class OldCharge(msgspec.Struct, frozen=True, gc=False):
    """An entry to add up and delete."""

    row_id: int
    channel: int
    """The channel's row."""
    day: ChargeDay


def last_day(at: int) -> int:
    """Return when the day of this time began, in Unix seconds: days are deleted whole."""
    return at // DAY_S * DAY_S


def is_listed(charge: Charge, settings: AccountSettings) -> bool:
    """Whether a charge gets a row of its own."""
    return settings.is_kept and charge.outcome is not ChargeOutcome.BEFORE


def charge_values(
    channel: int, at: int, charge: Charge, encode: Callable[[int], Any] = amount_bytes
) -> list[Any]:
    """Return a charge as the columns of `insert_charge`."""
    note = decode_note(charge.note)
    return [
        channel,
        at,
        charge.reservation_id or None,
        charge.outcome.value,
        charge.is_stream,
        note.route,
        note.variant,
        None if charge.usage is None else _usage_encoder.encode(charge.usage).decode(),
        charge.response_id,
        encode(charge.amount),
    ]


def charge_from_row(row: Row, decode: Callable[[Any], int] = bytes_amount) -> ChargeRow:
    """Return the entry of a row of `select_charges`."""
    return ChargeRow(
        row_id=row[0],
        at=row[1],
        reservation_id=row[2] or b"",
        outcome=ChargeOutcome(row[3]),
        is_stream=bool(row[4]),
        route=row[5],
        variant=row[6],
        usage=None if row[7] is None else _usage_decoder.decode(row[7]),
        response_id=row[8],
        amount=decode(row[9]),
        key=ChannelKey(row[10], Address(row[11]), ChannelId(row[12])),
        payer=Address(row[13]),
        payee=Address(row[14]),
        token=Address(row[15]),
    )


def charge_of_row(row: ChargeRow) -> Charge:
    """Return an entry as what was entered."""
    return Charge(
        row.amount,
        row.outcome,
        row.reservation_id,
        row.is_stream,
        encode_note(row.route, row.variant),
        row.usage,
        row.response_id,
    )


def old_charge(row: Row, decode: Callable[[Any], int] = bytes_amount) -> OldCharge:
    """Return the entry of a row of `select_old_charges`, as a day of its own."""
    row_id, channel, at, outcome, route, variant, usage, amount, chain_id, payee, token, is_one = (
        row
    )
    one = DayId(at // DAY_S, chain_id, payee, token, route, variant, outcome)
    used = {} if usage is None else _usage_decoder.decode(usage)
    return OldCharge(row_id, channel, ChargeDay(one, int(is_one), used, decode(amount)))


def add_up_days(days: Iterable[ChargeDay]) -> list[ChargeDay]:
    """Return one sum for each id, in order of the ids."""
    sums: dict[DayId, ChargeDay] = {}
    for day in days:
        known = sums.get(day.id)
        if known is None:
            sums[day.id] = ChargeDay(day.id, day.requests, dict(day.usage), day.amount)
            continue
        known.requests += day.requests
        known.amount += day.amount
        for kind, units in day.usage.items():
            known.usage[kind] = known.usage.get(kind, 0) + units
    return [sums[one] for one in sorted(sums, key=msgspec.structs.astuple)]


def day_values(day: ChargeDay, encode: Callable[[int], Any] = amount_bytes) -> list[Any]:
    """Return a day as the columns of `upsert_day`."""
    usage = _usage_encoder.encode(day.usage).decode()
    return [*msgspec.structs.astuple(day.id), day.requests, usage, encode(day.amount)]


def day_from_row(one: DayId, row: Row, decode: Callable[[Any], int] = bytes_amount) -> ChargeDay:
    """Return the day of a row of `select_day`."""
    return ChargeDay(one, row[0], _usage_decoder.decode(row[1]), decode(row[2]))


def balance_fault(
    channel_id: bytes, spent: int, reservations: bytes | None, entries: int
) -> str | None:
    """Return how a sound channel's entries disagree with its `spent`, or None."""
    running = decode_reservations(reservations or b"")
    expected = entries + sum(held.spent for held in running)
    if expected == spent:
        return None
    return (
        f"channel {channel_id.hex()}: expected spent {expected}, the sum of its charges, "
        f"found {spent}"
    )
