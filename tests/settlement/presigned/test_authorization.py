"""A settle signed ahead: what a line of it says, and who must have signed it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.limits import AMOUNT_MAX, TOWER_LINE_BYTES_MAX
from channel.state.channel_state import LadderVoucher
from channel.types import Address, ChannelId, ChannelKey
from channel.verify.signature import sign
from channel.verify.typed_data import close_authorization_digest
from settlement import abi
from settlement.presigned.authorization import PresignedError, PresignedSettle, parse_line, presign
from settlement.tx.signer import KeySigner

PAYEE_KEY = b"\x42" * 32
PAYEE = KeySigner(PAYEE_KEY)
KEY = ChannelKey(31337, Address(b"\xe5" * 20), ChannelId(b"\xc1" * 32))
VOUCHER = LadderVoucher(700, b"\x07" * 65)
DEADLINE = 1_900_000_000


async def settle(amount: int = 700, *, deadline: int = DEADLINE) -> PresignedSettle:
    voucher = replace(VOUCHER, cumulative_amount=amount)
    return await presign(KEY, voucher, payee=PAYEE, deadline=deadline)


SETTLES = st.builds(
    PresignedSettle,
    key=st.builds(
        ChannelKey,
        st.integers(1, 2**63),
        st.binary(min_size=20, max_size=20).map(Address),
        st.binary(min_size=32, max_size=32).map(ChannelId),
    ),
    payee=st.just(PAYEE.address),
    cumulative_amount=st.integers(0, AMOUNT_MAX),
    voucher_signature=st.binary(max_size=200),
    nonce=st.integers(0, 2**256 - 1),
    deadline=st.integers(0, 2**64 - 1),
    payee_signature=st.binary(max_size=65),
)


@given(SETTLES)
def test_a_line_says_everything_and_nothing_else(each: PresignedSettle) -> None:
    line = each.format_line()
    assert line.count(b"\n") == 1
    assert parse_line(line.rstrip()) == each


async def test_two_of_the_same_have_nonces_of_their_own() -> None:
    """RELAY-03."""
    assert (await settle()).nonce != (await settle()).nonce


async def test_the_payees_key_signed_exactly_this() -> None:
    """RELAY-02: amount, channel, nonce and deadline; only the payee's signature is valid."""
    signed = await settle()
    assert signed.is_signed_by_key()
    for changed in (
        replace(signed, cumulative_amount=701),
        replace(signed, deadline=DEADLINE + 1),
        replace(signed, nonce=signed.nonce ^ 1),
        replace(signed, key=replace(KEY, chain_id=1)),
        replace(signed, payee=Address(b"x" * 20)),
        replace(signed, payee_signature=sign(b"\x43" * 32, signed.digest)),
        replace(signed, payee_signature=b""),
    ):
        assert not changed.is_signed_by_key()


async def test_an_authorization_to_close_is_no_settle() -> None:
    """RELAY-05: a close signed ahead would end a channel below what was delivered later."""
    signed = await settle()
    digest = close_authorization_digest(KEY, 700, nonce=signed.nonce, deadline=DEADLINE)
    assert not replace(signed, payee_signature=sign(PAYEE_KEY, digest)).is_signed_by_key()


async def test_what_it_makes_is_a_settle_and_nothing_else() -> None:
    signed = await settle()
    calldata = signed.calldata()
    assert calldata[:4] == abi.settle_with_authorization.selector == bytes.fromhex("00203872")
    (entry,) = abi.decode_entries(calldata)
    assert (entry.channel_id, entry.cumulative_amount) == (KEY.channel_id, 700)


async def test_more_is_worth_more_and_then_longer() -> None:
    first = await settle(700)
    assert (await settle(701, deadline=1)).supersedes(first)
    assert (await settle(700, deadline=DEADLINE + 1)).supersedes(first)
    assert not (await settle(700)).supersedes(first)
    assert not (await settle(699, deadline=DEADLINE + 9)).supersedes(first)


async def test_no_signature_is_in_its_repr() -> None:
    """F-103."""
    signed = await settle()
    shown = repr(signed)
    assert signed.payee_signature.hex() not in shown
    assert VOUCHER.signature.hex() not in shown
    assert "700" in shown


async def test_what_is_no_line_is_refused_and_says_why() -> None:
    good = msgspec.json.decode((await settle()).format_line())
    for change in (
        {"format": 2},
        {"channel_id": "0x12"},
        {"escrow": good["escrow"][2:]},
        {"cumulative_amount": "-1"},
        {"cumulative_amount": str(AMOUNT_MAX + 1)},
        {"cumulative_amount": "1e3"},
        {"nonce": "0x01"},
        {"deadline": -1},
        {"deadline": 2**64},
        {"payee_signature": "0xzz"},
        {"purpose": "close"},
    ):
        with pytest.raises(PresignedError):
            parse_line(msgspec.json.encode({**good, **change}))
    for line in (b"", b"{}", b"[]", b"\xff", b'{"format":1}'):
        with pytest.raises(PresignedError):
            parse_line(line)


async def test_a_line_is_bounded() -> None:
    """Two signatures of the longest, and the rest."""
    with pytest.raises(PresignedError, match="longer"):
        parse_line(b" " * (TOWER_LINE_BYTES_MAX + 1))
    longest = replace(await settle(), voucher_signature=bytes(4096), payee_signature=bytes(4096))
    assert len(longest.format_line()) <= TOWER_LINE_BYTES_MAX
