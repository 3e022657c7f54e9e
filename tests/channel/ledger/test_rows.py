"""Row <-> value without loss, and an error names a row that no ledger wrote."""

import sqlite3
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.errors import InvariantError
from channel.ledger.rows import (
    channel_from_row,
    decode_reservations,
    decode_voucher,
    encode_reservations,
    encode_voucher,
)
from channel.limits import AMOUNT_MAX
from channel.state.channel_state import LadderVoucher, Reservation, ReservationKind

amounts = st.integers(0, AMOUNT_MAX)
reservations = st.builds(
    Reservation,
    st.binary(max_size=255),
    st.sampled_from(ReservationKind),
    amounts,
    st.integers(0, 2**63 - 1),
    st.booleans(),
    amounts,
    st.binary(max_size=600),
)


@given(st.lists(reservations, max_size=5))
def test_reservations_come_back_as_they_were(held: list[Reservation]) -> None:
    encoded = encode_reservations(held)
    assert (encoded is None) == (not held)
    assert encoded is None or decode_reservations(encoded) == tuple(held)


def test_a_reservation_of_an_older_version_is_read() -> None:
    """F-108: without what it has spent, and without a note."""
    old = bytes.fromhex("0101" + "01" + "000000006b49d23c" + "00" * 15 + "07" + "73")
    held = Reservation(b"s", ReservationKind.STREAM, 7, 0x6B49D23C, is_replaced=True)
    assert decode_reservations(old) == (held,)
    assert encode_reservations([held]) == old


@given(amounts, st.binary(max_size=200))
def test_a_voucher_comes_back_as_it_was(amount: int, signature: bytes) -> None:
    kept = LadderVoucher(amount, signature)
    assert decode_voucher(encode_voucher(kept)) == kept


@given(amounts, amounts)
def test_stored_amounts_sort_as_numbers(one: int, other: int) -> None:
    first, second = (encode_voucher(LadderVoucher(amount, b"")) for amount in (one, other))
    assert (first < second) == (one < other)


@pytest.mark.parametrize("cut", [1, 20, 28])
def test_a_cut_off_value_is_refused(cut: int) -> None:
    held = Reservation(b"id", ReservationKind.STREAM, 5, 9)
    encoded = encode_reservations([held])
    assert encoded is not None
    with pytest.raises((ValueError, OSError, IndexError, Exception)):
        decode_reservations(encoded[:cut])
    accounted = encode_reservations([replace(held, spent=1, note=b"note")])
    assert accounted is not None
    with pytest.raises((ValueError, struct.error)):
        decode_reservations(accounted[: cut + 5])
    with pytest.raises(ValueError, match="16 bytes"):
        decode_voucher(encode_voucher(LadderVoucher(5, b""))[:15])


def test_a_row_that_cannot_be_read_is_named() -> None:
    connection = sqlite3.connect(":memory:")
    row = connection.execute("SELECT 7, 1, x'00', " + ", ".join(["NULL"] * 21)).fetchone()
    connection.close()
    with pytest.raises(InvariantError, match="row 7"):
        channel_from_row(row)
