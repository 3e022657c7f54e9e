"""From a signed voucher to a verified one, and no other way."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import InvalidSignatureError, PeerError, SignerMismatchError
from channel.limits import AMOUNT_MAX
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    parse_payload,
)
from channel.types import (
    ZERO_ADDRESS,
    Address,
    ChannelId,
    ChannelKey,
    SignedVoucher,
    VerifiedVoucher,
)
from channel.verify.signature import address_of, sign
from channel.verify.voucher import verify_wallet_voucher
from channel.wire.encoding import parse_address
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.vectors import EVM as VECTORS
from tests.channel.vectors import Entry, key_of, name_of

SECRET = (7).to_bytes(32, "big")
SIGNER = address_of(SECRET)
KEY = ChannelKey(196, Address(bytes(range(20))), ChannelId(bytes(range(32))))
AMOUNTS = st.integers(0, AMOUNT_MAX)


def signed(amount: int, *, key: ChannelKey = KEY, secret: bytes = SECRET) -> SignedVoucher:
    return SignedVoucher(key.channel_id, amount, sign(secret, EVM.voucher_digest(key, amount)))


@given(AMOUNTS)
def test_a_voucher_of_the_channels_signer_is_verified(amount: int) -> None:
    """VCH-02 steps 3 to 5: what comes out is what was signed."""
    voucher = signed(amount)
    assert EVM.verify_voucher(voucher, KEY, SIGNER) == VerifiedVoucher(
        KEY, amount, voucher.signature
    )


READABLE = [v for v in VECTORS["voucherNegative"] if v["problem"] != "malformed-credential (400)"]


@pytest.mark.parametrize("entry", READABLE, ids=name_of)
def test_golden_vouchers_are_accepted_or_refused_as_the_contract_does(entry: Entry) -> None:
    """AMB-15, ENC-06, SEC-03, F-16: unrecoverable or not canonical against not the signer."""
    fields = ("channelId", "cumulativeAmount", "signature")
    payload = parse_payload({"action": "voucher", **{name: entry[name] for name in fields}})
    assert isinstance(payload, VoucherPayload)
    key, signer = key_of(entry), parse_address(entry["expectedSigner"])
    if entry["expect"] == "accept":
        assert EVM.verify_voucher(payload.voucher, key, signer).cumulative_amount == 250_000
        return
    with pytest.raises(PeerError) as refusal:
        EVM.verify_voucher(payload.voucher, key, signer)
    assert refusal.value.problem_type == entry["problem"]
    assert refusal.value.status == 402


@given(AMOUNTS, AMOUNTS, st.sampled_from(["amount", "chain", "escrow", "channel", "key"]))
def test_a_voucher_with_any_part_altered_is_refused(amount: int, other: int, what: str) -> None:
    """SEC-03, F-14, F-23: amount, chain, escrow, channel, signer."""
    voucher, key = signed(amount), KEY
    if what == "amount":
        voucher = msgspec.structs.replace(voucher, cumulative_amount=other)
        if other == amount:
            return
    elif what == "chain":
        key = msgspec.structs.replace(key, chain_id=1)
    elif what == "escrow":
        key = msgspec.structs.replace(key, escrow=SIGNER)
    elif what == "channel":
        key = msgspec.structs.replace(key, channel_id=ChannelId(bytes(32)))
        voucher = msgspec.structs.replace(voucher, channel_id=key.channel_id)
    else:
        voucher = signed(amount, secret=(8).to_bytes(32, "big"))
    with pytest.raises((SignerMismatchError, InvalidSignatureError)):
        EVM.verify_voucher(voucher, key, SIGNER)


def test_a_signature_under_the_wrong_v_is_refused_also_right_after_the_right_one() -> None:
    """F-16: nothing remembered about a signer lets the other v pass."""
    voucher = signed(5)
    assert EVM.verify_voucher(voucher, KEY, SIGNER)
    wrong = voucher.signature[:64] + bytes([55 - voucher.signature[64]])
    with pytest.raises((SignerMismatchError, InvalidSignatureError)):
        EVM.verify_voucher(msgspec.structs.replace(voucher, signature=wrong), KEY, SIGNER)


def test_a_voucher_for_another_channel_is_refused_before_its_signature_is_read() -> None:
    """VCH-02: the key asked about is the channel the voucher names."""
    other = msgspec.structs.replace(KEY, channel_id=ChannelId(bytes(32)))
    voucher = SignedVoucher(other.channel_id, 1, b"")
    with pytest.raises(SignerMismatchError, match="another channel"):
        EVM.verify_voucher(voucher, KEY, SIGNER)
    with pytest.raises(SignerMismatchError, match="another channel"):
        verify_wallet_voucher(voucher, KEY, is_valid=True)


def test_no_signature_is_valid_for_address_zero() -> None:
    """F-17: no recovered address matches an unset signer."""
    with pytest.raises(SignerMismatchError):
        EVM.verify_voucher(signed(1), KEY, ZERO_ADDRESS)


def test_a_wallets_answer_decides_for_its_own_form_of_signature() -> None:
    """ENC-07, F-15: the chain was asked, and no answer is no."""
    voucher = SignedVoucher(KEY.channel_id, 9, b"a wallet's own")
    verified = verify_wallet_voucher(voucher, KEY, is_valid=True)
    assert verified == VerifiedVoucher(KEY, 9, b"a wallet's own", by_contract=True)
    with pytest.raises(InvalidSignatureError, match="wallet"):
        verify_wallet_voucher(voucher, KEY, is_valid=False)


def test_neither_voucher_prints_its_signature() -> None:
    """CORE-13, F-103."""
    voucher = signed(1)
    for value in (voucher, EVM.verify_voucher(voucher, KEY, SIGNER)):
        assert "signature=<withheld>" in repr(value)
        assert voucher.signature.hex() not in repr(value)
        assert "cumulative_amount=1" in repr(value)
