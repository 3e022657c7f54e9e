"""Who signed, in the one form that the escrow takes."""

import contextlib

import pytest
from coincurve import PrivateKey
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import InvalidSignatureError
from channel.limits import SIGNATURE_BYTES
from channel.verify.signature import address_of, recover, require_canonical, sign
from tests.channel.vectors import EVM, Entry, hex32, name_of

ORDER = int(EVM["constants"]["secp256k1_n"], 16)
KEYS = st.integers(1, ORDER - 1).map(lambda secret: secret.to_bytes(32, "big"))
DIGESTS = st.binary(min_size=32, max_size=32)
KEY, DIGEST = (1).to_bytes(32, "big"), bytes(range(32))
SIGNED = sign(KEY, DIGEST)


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def flipped(signature: bytes) -> bytes:
    """Return the same r and s under the other v."""
    return signature[:64] + bytes([55 - signature[64]])


@given(KEYS, DIGESTS)
def test_what_a_key_signs_recovers_to_its_address(key: bytes, digest: bytes) -> None:
    """ENC-06: 65 bytes, low s, v of 27 or 28."""
    signature = sign(key, digest)
    require_canonical(signature)
    assert recover(digest, signature) == address_of(key)


@given(KEYS, DIGESTS)
def test_another_implementation_agrees_on_signature_and_signer(key: bytes, digest: bytes) -> None:
    """ENC-06: eth_account signs the same bytes and recovers the same address."""
    account = Account.from_key(key)
    assert bytes(account.unsafe_sign_hash(digest).signature) == sign(key, digest)
    assert bytes.fromhex(account.address[2:]) == address_of(key)


@given(KEYS, DIGESTS)
def test_the_other_v_recovers_another_signer(key: bytes, digest: bytes) -> None:
    """F-16: verifying with the known key would accept it, and the contract would not."""
    try:
        other = recover(digest, flipped(sign(key, digest)))
    except InvalidSignatureError:
        return
    assert other != address_of(key)


def test_verification_by_key_would_fall_into_the_trap() -> None:
    """F-16: why signers are recovered: r and s alone satisfy the key with either v."""
    public = PrivateKey(KEY).public_key
    from_right = PrivateKey(KEY).sign(DIGEST, hasher=None)
    assert public.verify(from_right, DIGEST, hasher=None)
    assert recover(DIGEST, flipped(SIGNED)) != address_of(KEY)


R, S = int.from_bytes(SIGNED[:32], "big"), int.from_bytes(SIGNED[32:64], "big")


@pytest.mark.parametrize(
    ("what", "signature"),
    [
        ("empty", b""),
        ("compact EIP-2098", SIGNED[:64]),
        ("66 bytes", SIGNED + b"\0"),
        ("v of 0", SIGNED[:64] + b"\0"),
        ("v of 1", SIGNED[:64] + b"\1"),
        ("v of 26", SIGNED[:64] + b"\x1a"),
        ("v of 29", SIGNED[:64] + b"\x1d"),
        ("v of EIP-155", SIGNED[:64] + b"\x25"),
        ("r of 0", word(0) + SIGNED[32:]),
        ("r of n", word(ORDER) + SIGNED[32:]),
        ("r above n", word(2**256 - 1) + SIGNED[32:]),
        ("s of 0", SIGNED[:32] + word(0) + SIGNED[64:]),
        ("s above n/2", SIGNED[:32] + word(ORDER // 2 + 1) + SIGNED[64:]),
        ("high s", SIGNED[:32] + word(ORDER - S) + flipped(SIGNED)[64:]),
        ("s of n", SIGNED[:32] + word(ORDER) + SIGNED[64:]),
    ],
)
def test_a_form_the_escrow_refuses_is_refused(what: str, signature: bytes) -> None:
    """ENC-06, AMB-07, F-16: before any curve arithmetic."""
    with pytest.raises(InvalidSignatureError):
        require_canonical(signature)
    with pytest.raises(InvalidSignatureError, match="signature"):
        recover(DIGEST, signature)
    assert what


def test_a_keys_signature_has_so_many_bytes_and_no_more_and_no_fewer() -> None:
    """ENC-06, issue 10 B: the escrow takes no other length from a key."""
    assert len(SIGNED) == SIGNATURE_BYTES
    require_canonical(SIGNED)
    for other in (SIGNED[:-1], SIGNED + b"\0", SIGNED[:-1] + b"\0" + SIGNED[-1:]):
        assert abs(len(other) - SIGNATURE_BYTES) == 1
        with pytest.raises(InvalidSignatureError, match="bytes"):
            require_canonical(other)


def test_the_greatest_low_s_is_canonical() -> None:
    """ENC-06: n/2 is inside."""
    require_canonical(SIGNED[:32] + word(ORDER // 2) + SIGNED[64:])
    require_canonical(word(1) + word(1) + b"\x1b")
    require_canonical(word(ORDER - 1) + word(1) + b"\x1c")


def test_an_r_that_is_no_point_recovers_no_signer() -> None:
    """F-17: never address zero, always a refusal. No point has the x of 5."""
    with pytest.raises(InvalidSignatureError, match="No key"):
        recover(DIGEST, word(5) + word(1) + b"\x1b")


@given(st.binary(min_size=65, max_size=65), DIGESTS)
def test_any_65_bytes_recover_a_signer_or_are_refused(signature: bytes, digest: bytes) -> None:
    """F-17: a typed refusal and no other error; no signer has address zero."""
    with contextlib.suppress(InvalidSignatureError):
        assert recover(digest, signature[:64] + b"\x1b") != bytes(20)


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33)])
def test_a_digest_has_32_bytes(digest: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        recover(digest, SIGNED)
    with pytest.raises(ValueError, match="32 bytes"):
        sign(KEY, digest)


@pytest.mark.parametrize(
    "key", [bytes(32), word(ORDER), word(2**256 - 1), b"", bytes(31), b"\1" * 33]
)
def test_a_key_out_of_range_signs_nothing(key: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        sign(key, DIGEST)
    with pytest.raises(ValueError, match=r".+"):
        address_of(key)


BAD_FORM = [v for v in EVM["voucherNegative"] if v["problem"] == "session/invalid-signature"]


@pytest.mark.parametrize("entry", BAD_FORM, ids=name_of)
def test_golden_signatures_of_bad_form_are_refused(entry: Entry) -> None:
    """ENC-06, AMB-15: high s, v of 29, compact, 66 bytes, r of 0, s of n."""
    assert len(BAD_FORM) == 6
    with pytest.raises(InvalidSignatureError):
        recover(hex32(entry, "channelId"), bytes.fromhex(entry["signature"][2:]))
