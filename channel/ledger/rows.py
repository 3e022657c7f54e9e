"""Converts rows to values and back, without loss.

SQLite stores an amount as 16 bytes, big-endian; PostgreSQL as NUMERIC(39,0). Parts that belong
together are one column: a ladder voucher is an amount followed by its signature (F-38), and a
channel's reservations are one blob. They are in the channel's row because they change with it: a
row for each would cost two more b-tree writes for each paid request.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from channel.errors import InvariantError
from channel.state.channel_state import (
    ChannelState,
    LadderVoucher,
    Reservation,
    ReservationKind,
    require_invariants,
)
from channel.state.requests import RequestClaim, RequestRecord, StoredResponse
from channel.types import ChannelKey, ChannelTerms, address, channel_id

__all__ = [
    "account_values",
    "amount_bytes",
    "bytes_amount",
    "chain_values",
    "channel_from_row",
    "decode_reservations",
    "decode_voucher",
    "earliest_lease",
    "encode_reservations",
    "encode_voucher",
    "is_same_for_chain",
    "key_values",
    "request_from_row",
    "request_values",
    "row_fault",
    "term_values",
]

Row = Sequence[Any]

_AMOUNT_BYTES: Final = 16
# kind, flags, length of the id, lease, amount; the id follows, and then what the flags announce
_RESERVATION: Final = struct.Struct(">BBBq16s")
_REPLACED: Final = 1
_ACCOUNTED: Final = 2
# what the request has spent, length of its note; the note follows
_ACCOUNT: Final = struct.Struct(">16sH")
_headers_encoder = msgspec.msgpack.Encoder()
_headers_decoder = msgspec.msgpack.Decoder(tuple[tuple[bytes, bytes], ...])


def amount_bytes(amount: int) -> bytes:
    """Return an amount as SQLite stores it: 16 bytes that sort like the number."""
    return amount.to_bytes(_AMOUNT_BYTES, "big")


def bytes_amount(value: bytes) -> int:
    """Return the amount, or raise `ValueError`."""
    if len(value) != _AMOUNT_BYTES:
        msg = f"expected an amount of {_AMOUNT_BYTES} bytes, found {len(value)}"
        raise ValueError(msg)
    return int.from_bytes(value, "big")


def account_values(state: ChannelState, encode: Callable[[int], Any] = amount_bytes) -> list[Any]:
    """Return the columns that most vouchers change: ladder, amounts, published, active_at."""
    highest = encode_voucher(state.highest)
    below, above = state.at_or_below_spent, state.above_spent
    return [
        highest,
        None if below is None else encode_voucher(below),
        highest if above is state.highest else (None if above is None else encode_voucher(above)),
        encode(state.accepted),
        encode(state.spent),
        encode(state.published),
        state.active_at,
    ]


def chain_values(state: ChannelState, encode: Callable[[int], Any] = amount_bytes) -> list[Any]:
    """Return the columns of the chain's values, and of the payee's own close."""
    closing_with = state.closing_with
    return [
        encode(state.deposit),
        encode(state.settled),
        state.close_requested_at,
        state.is_finalized,
        state.fact_block,
        state.is_closing,
        None if closing_with is None else encode_voucher(closing_with),
        state.close_tx,
        state.foreign_block,
    ]


def key_values(key: ChannelKey) -> tuple[int, bytes, bytes]:
    """Return the columns of a key."""
    return key.chain_id, key.escrow, key.channel_id


def term_values(terms: ChannelTerms) -> list[bytes]:
    """Return the columns of a channel's terms."""
    return [terms.payer, terms.payee, terms.token, terms.authorized_signer]


def channel_from_row(
    row: Row, decode: Callable[[Any], int] = bytes_amount
) -> tuple[int, ChannelState]:
    """Return the row's id and its channel, from the columns of `select_channel`.

    Raises:
        InvariantError: This program did not write such a row.
    """
    try:
        return row[0], _channel_from_row(row, decode)
    except (ValueError, TypeError, struct.error) as error:
        raise InvariantError(f"row {row[0]} of the ledger cannot be read: {error}") from error


def row_fault(row: Row, decode: Callable[[Any], int] = bytes_amount) -> str | None:
    """Return what is wrong with a row of `select_channel`, or None."""
    try:
        _, state = channel_from_row(row, decode)
        require_invariants(state)
    except InvariantError as error:
        return str(error)
    return None


def _channel_from_row(row: Row, decode: Callable[[Any], int]) -> ChannelState:
    return ChannelState(
        key=ChannelKey(row[1], address(row[2]), channel_id(row[3])),
        terms=ChannelTerms(address(row[4]), address(row[5]), address(row[6]), address(row[7])),
        deposit=decode(row[8]),
        settled=decode(row[9]),
        close_requested_at=row[10],
        is_finalized=bool(row[11]),
        fact_block=row[12],
        is_closing=bool(row[13]),
        closing_with=None if row[14] is None else decode_voucher(row[14]),
        close_tx=row[15],
        foreign_block=row[16],
        accepted=decode(row[17]),
        spent=decode(row[18]),
        published=decode(row[19]),
        active_at=row[20],
        highest=decode_voucher(row[21]),
        at_or_below_spent=None if row[22] is None else decode_voucher(row[22]),
        above_spent=None if row[23] is None else decode_voucher(row[23]),
        reservations=() if row[24] is None else decode_reservations(row[24]),
    )


def encode_voucher(voucher: LadderVoucher) -> bytes:
    """Return amount and signature as one value."""
    return amount_bytes(voucher.cumulative_amount) + voucher.signature


def decode_voucher(value: bytes) -> LadderVoucher:
    """Return the voucher, or raise `ValueError`."""
    return LadderVoucher(bytes_amount(value[:_AMOUNT_BYTES]), value[_AMOUNT_BYTES:])


def encode_reservations(reservations: Sequence[Reservation]) -> bytes | None:
    """Return all reservations of a channel as one value; None when there are none."""
    if not reservations:
        return None
    return b"".join([_encode_reservation(held) for held in reservations])


def _encode_reservation(held: Reservation) -> bytes:
    is_accounted = held.spent or held.note
    flags = (_REPLACED if held.is_replaced else 0) | (_ACCOUNTED if is_accounted else 0)
    head = _RESERVATION.pack(
        held.kind,
        flags,
        len(held.reservation_id),
        held.lease_expires_at,
        amount_bytes(held.amount),
    )
    if not is_accounted:
        return head + held.reservation_id
    account = _ACCOUNT.pack(amount_bytes(held.spent), len(held.note))
    return head + held.reservation_id + account + held.note


def decode_reservations(value: bytes) -> tuple[Reservation, ...]:
    """Return the reservations, or raise `ValueError` or `struct.error`."""
    found = []
    at = 0
    while at < len(value):
        kind, flags, id_bytes, lease, amount = _RESERVATION.unpack_from(value, at)
        at += _RESERVATION.size
        reservation_id = value[at : at + id_bytes]
        at += id_bytes
        spent, note = 0, b""
        if flags & _ACCOUNTED:
            held_spent, note_bytes = _ACCOUNT.unpack_from(value, at)
            at += _ACCOUNT.size
            spent, note = bytes_amount(held_spent), value[at : at + note_bytes]
            at += note_bytes
        if at > len(value):
            msg = "a reservation is cut off"
            raise ValueError(msg)
        found.append(
            Reservation(
                reservation_id=reservation_id,
                kind=ReservationKind(kind),
                amount=bytes_amount(amount),
                lease_expires_at=lease,
                is_replaced=bool(flags & _REPLACED),
                spent=spent,
                note=note,
            )
        )
    return tuple(found)


def is_same_for_chain(old: ChannelState, new: ChannelState) -> bool:
    """Whether `chain_values` are equal, by identity: `replace` keeps unchanged objects."""
    return (
        old.deposit is new.deposit
        and old.settled is new.settled
        and old.fact_block is new.fact_block
        and old.close_requested_at is new.close_requested_at
        and old.is_finalized is new.is_finalized
        and old.is_closing is new.is_closing
        and old.closing_with is new.closing_with
        and old.close_tx is new.close_tx
        and old.foreign_block is new.foreign_block
    )


def earliest_lease(reservations: Sequence[Reservation]) -> int | None:
    """Return when the first lease expires; None when there is none."""
    if not reservations:
        return None
    return min([held.lease_expires_at for held in reservations])


def request_values(record: RequestRecord) -> list[Any]:
    """Return an idempotency record as the columns after its key."""
    claim, response = record.claim, record.response
    values: list[Any] = [
        claim.request_digest,
        claim.reservation_id,
        claim.claimed_at,
        claim.expires_at,
    ]
    if response is None:
        return [*values, None, None, None]
    return [*values, response.status, _headers_encoder.encode(response.headers), response.body]


def request_from_row(route: str, idempotency_key: str, row: Row) -> RequestRecord:
    """Return the idempotency record from the columns of `select_request`."""
    digest, reservation_id, claimed_at, expires_at, status, headers, body = row
    claim = RequestClaim(route, idempotency_key, digest, reservation_id, claimed_at, expires_at)
    if status is None:
        return RequestRecord(claim, None)
    return RequestRecord(claim, StoredResponse(status, _headers_decoder.decode(headers), body))
