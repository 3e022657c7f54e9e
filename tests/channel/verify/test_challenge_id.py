"""The HMAC over a challenge's wire strings."""

import hashlib
import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import ConfigError, WireError
from channel.limits import SECRET_BYTES_MIN
from channel.methods.evm.method import EVM
from channel.types import ChannelId, SignedVoucher
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.challenge import Challenge, format_challenge, parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.encoding import encode_base64url
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.vectors import WIRE, Entry, name_of

SECRET = WIRE["secretKey"].encode()
BINDER = ChallengeBinder([SECRET])
SLOTS = ("realm", "method", "intent", "request", "expires", "digest", "header", "opaque")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="|"), max_size=12)
OPTIONAL = st.none() | TEXT.filter(bool)
challenges = st.builds(
    Challenge, TEXT, TEXT, TEXT, TEXT, TEXT, OPTIONAL, OPTIONAL, OPTIONAL, OPTIONAL
)


def bind(challenge: Challenge, binder: ChallengeBinder = BINDER) -> Challenge:
    """Return the challenge under the id that binds it."""
    bound = binder.bind(
        realm=challenge.realm,
        method=challenge.method,
        intent=challenge.intent,
        request=challenge.request,
        expires=challenge.expires,
        digest=challenge.digest,
        header=challenge.header,
        opaque=challenge.opaque,
    )
    return msgspec.structs.replace(challenge, id=bound)


@pytest.mark.parametrize("entry", WIRE["challenges"], ids=name_of)
def test_golden_ids_are_mppxs(entry: Entry) -> None:
    """0.1, AMB-01, AMB-02, CHAL-12: seven slots, eight when another header is advertised."""
    (challenge,) = parse_challenges([entry["wire"]])
    assert entry["verifies"]
    assert entry["secretKey"] == WIRE["secretKey"]
    assert BINDER.is_bound(challenge)
    assert bind(challenge).id == entry["id"]
    expected = hmac.digest(SECRET, entry["hmacInput"].encode(), "sha256")
    assert encode_base64url(expected) == entry["id"]


@pytest.mark.parametrize("order", ["the vectors'", "the draft's"])
def test_an_id_is_private_to_its_server(order: str) -> None:
    """AMB-02, CHAL-05: we verify our own order alone; a client echoes either, byte for byte.

    Drafts -01 and -02 append `header` behind `opaque`; the vectors, mppx and pympp put it before.
    """
    issued = Challenge(
        id="",
        realm="api.example",
        method="evm",
        intent="session",
        request="e30",
        expires="2026-04-01T12:05:00Z",
        header="Payment-Authorization",
        opaque="e30",
    )
    slots = [issued.realm, issued.method, issued.intent, issued.request, issued.expires, ""]
    last = [issued.header, issued.opaque]
    slots += last if order == "the vectors'" else reversed(last)
    text = "|".join(slot or "" for slot in slots)
    made = encode_base64url(hmac.digest(SECRET, text.encode(), "sha256"))
    (challenge,) = parse_challenges([format_challenge(msgspec.structs.replace(issued, id=made))])
    assert BINDER.is_bound(challenge) == (order == "the vectors'")
    payload = VoucherPayload(SignedVoucher(ChannelId(bytes(32)), 1, bytes(65)))
    sent = EVM.parse_credential(format_credential(Credential(challenge, payload, None)))
    assert sent.challenge == challenge


@given(challenges)
def test_an_issued_challenge_is_recognised(challenge: Challenge) -> None:
    """CHAL-05."""
    assert BINDER.is_bound(bind(challenge))


@given(challenges, st.sampled_from(SLOTS), TEXT)
def test_no_bound_slot_can_be_altered(challenge: Challenge, slot: str, text: str) -> None:
    """CHAL-05, F-31: realm, method, intent, request, expires, digest, header and opaque."""
    bound = bind(challenge)
    altered = msgspec.structs.replace(bound, **{slot: text})
    if bind(altered).id != bound.id:  # an empty slot and an absent one are the same
        assert not BINDER.is_bound(altered)
    else:
        assert (getattr(bound, slot) or "") == text or slot == "header"


@given(challenges, TEXT)
def test_the_description_is_not_bound(challenge: Challenge, text: str) -> None:
    """CHAL-13."""
    assert BINDER.is_bound(msgspec.structs.replace(bind(challenge), description=text))


@given(challenges, st.sampled_from([*SLOTS, "id", "description"]), TEXT)
def test_what_is_remembered_lets_nothing_altered_pass(
    challenge: Challenge, slot: str, text: str
) -> None:
    """CHAL-05, F-31: a binder that has seen a challenge judges every other as a fresh one does."""
    seen = ChallengeBinder([SECRET])
    bound = bind(challenge)
    assert seen.is_bound(bound)
    assert seen.is_bound(bound)
    altered = msgspec.structs.replace(bound, **{slot: text})
    assert seen.is_bound(altered) == ChallengeBinder([SECRET]).is_bound(altered)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """F-100: neither many challenges nor a long description, which anyone can add, is kept."""
    monkeypatch.setattr("channel.verify.challenge_id.GENUINE_CHALLENGES_MAX", 3)
    binder = ChallengeBinder([SECRET])
    issued = [bind(Challenge("", f"r{number}", "evm", "session", "e30")) for number in range(8)]
    for challenge in issued:
        assert binder.is_bound(challenge)
        assert binder.is_bound(msgspec.structs.replace(challenge, description="x" * 9999))
        kept = binder._genuine.values()  # noqa: SLF001
        assert len(kept) <= 3
        assert all(known.description is None for known in kept)
    assert all(binder.is_bound(challenge) for challenge in issued)


def test_a_pipe_cannot_shift_the_slots() -> None:
    """CHAL-09, F-10: realm `a|b` with method `evm` is not realm `a` with method `b|evm`."""
    honest = Challenge("", "a", "b", "session", "e30", "t")
    shifted = Challenge(bind(honest).id, "a|b", "session", "e30", "t", None)
    assert not BINDER.is_bound(shifted)
    for slot in SLOTS:
        piped = msgspec.structs.replace(honest, **{slot: "x|y"})
        with pytest.raises(WireError, match=r"\|"):
            bind(piped)
        assert not BINDER.is_bound(piped)


def test_moving_a_pipe_from_one_slot_into_another_is_seen() -> None:
    """CHAL-09: the number of separators, not only their place."""
    text = "r|evm|session|e30||x|"
    forged = encode_base64url(hmac.digest(SECRET, text.encode(), "sha256"))
    assert not BINDER.is_bound(Challenge(forged, "r|evm", "session", "e30", "", None, "x"))


@pytest.mark.parametrize("header", ["Authorization", "authorization", "AUTHORIZATION", None])
def test_the_usual_header_has_no_slot(header: str | None) -> None:
    """0.1: slot 5a exists only for a header other than `Authorization`."""
    plain = bind(Challenge("", "r", "evm", "session", "e30"))
    assert bind(msgspec.structs.replace(plain, header=header)).id == plain.id


def test_secrets_rotate_with_overlap() -> None:
    """CHAL-08, F-102: the first issues, all verify."""
    old, new = ChallengeBinder([b"o" * 32]), ChallengeBinder([b"n" * 32, b"o" * 32])
    challenge = Challenge("", "r", "evm", "session", "e30")
    assert new.is_bound(bind(challenge, old))
    assert new.is_bound(bind(challenge, new))
    assert not old.is_bound(bind(challenge, new))
    assert bind(challenge, new).id == bind(challenge, ChallengeBinder([b"n" * 32])).id


@pytest.mark.parametrize("secrets", [[], [b""], [b"x" * (SECRET_BYTES_MIN - 1)], [b"x" * 32, b"y"]])
def test_short_secrets_are_refused_at_the_start(secrets: list[bytes]) -> None:
    """CHAL-08, F-102: 32 bytes or the program does not start."""
    with pytest.raises(ConfigError, match="32 bytes"):
        ChallengeBinder(secrets)


@given(st.binary(min_size=32, max_size=200), st.binary(max_size=300))
def test_the_prepared_hmac_is_hmac(secret: bytes, request: bytes) -> None:
    """CHAL-05: key blocks hashed in advance change nothing, at any length of key."""
    text = f"r|evm|session|{request.hex()}|||"
    bound = bind(Challenge("", "r", "evm", "session", request.hex()), ChallengeBinder([secret]))
    assert bound.id == encode_base64url(hmac.new(secret, text.encode(), hashlib.sha256).digest())


@pytest.mark.parametrize("given_id", ["", "\u00e9", "\ud800", "A" * 43, "A" * 5000])
def test_an_id_that_was_never_issued_is_refused(given_id: str) -> None:
    """CHAL-05, SEC-06."""
    assert not BINDER.is_bound(Challenge(given_id, "r", "evm", "session", "e30"))


@pytest.mark.parametrize("slot", SLOTS)
def test_text_that_cannot_be_encoded_binds_nothing(slot: str) -> None:
    """F-11."""
    challenge = msgspec.structs.replace(
        Challenge("A" * 43, "r", "evm", "session", "e30"), **{slot: "\ud800"}
    )
    assert not BINDER.is_bound(challenge)
    with pytest.raises(WireError):
        bind(challenge)
