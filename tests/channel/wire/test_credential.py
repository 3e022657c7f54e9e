"""`Authorization: Payment`: one credential, read strictly; a quick and a full reader agree."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import (
    BadRequestError,
    MalformedCredentialError,
    MalformedPayloadError,
    PeerError,
    WireError,
)
from channel.limits import AUTHORIZATION_BYTES_MAX
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenHash,
    TopUpHash,
    parse_payload,
)
from channel.types import Address
from channel.wire import credential as module
from channel.wire.challenge import Challenge
from channel.wire.credential import (
    Credential,
    format_credential,
    select_credential,
)
from channel.wire.encoding import decode_base64url, encode_base64url
from channel.wire.payload import (
    Payload,
    format_payload,
)
from tests.channel.methods.evm.payloads import (
    DEPOSITS,
    OTHER_SIGNATURE,
    PAYLOADS,
    SIGNATURE,
    addresses,
    payloads,
)
from tests.channel.vectors import WIRE, Entry, name_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SLOTS = ("expires", "digest", "header", "opaque", "description")
CHALLENGE = {
    "id": "i",
    "realm": "r",
    "method": "evm",
    "intent": "session",
    "request": "e30",
    "expires": "2026-04-01T12:05:00Z",
}
SOURCE = "did:pkh:eip155:196:0x" + "ab" * 20
challenges = st.builds(
    Challenge, TEXT, TEXT, TEXT, TEXT, TEXT, **{name: st.none() | TEXT for name in SLOTS}
)


def with_source(payload: Payload, source: tuple[int, Address] | None) -> tuple[int, Address] | None:
    """Return a source if the payload requires one."""
    return source or (
        (1, Address(bytes(20))) if isinstance(payload, OpenHash | TopUpHash) else None
    )


def wire_of(envelope: object) -> str:
    text = envelope if isinstance(envelope, str | bytes) else json.dumps(envelope)
    return "Payment " + encode_base64url(text.encode() if isinstance(text, str) else text)


def envelope_of(**changes: object) -> dict[str, Any]:
    envelope = {"challenge": dict(CHALLENGE), "payload": dict(PAYLOADS["voucher"]), **changes}
    return {name: value for name, value in envelope.items() if value is not ...}


@pytest.mark.parametrize("entry", WIRE["credentials"], ids=name_of)
def test_golden_credentials_are_read_whole(entry: Entry) -> None:
    """CRED-01: the challenge is echoed unchanged; every payload form mppx writes is read."""
    credential = EVM.parse_credential(entry["wire"])
    assert credential.payload == parse_payload(entry["payload"])
    assert format_payload(credential.payload) == entry["payload"]
    for name in Challenge.__struct_fields__:
        assert getattr(credential.challenge, name) == entry["challenge"].get(name)
    assert (credential.source is None) == ("source" not in entry)
    assert EVM.parse_credential(format_credential(credential)) == credential
    written = json.loads(decode_base64url(format_credential(credential)[8:]))
    assert written == {n: entry[n] for n in ("challenge", "payload", "source") if n in entry}


@given(challenges, payloads, st.none() | st.tuples(st.integers(1, 2**53 - 1), addresses))
def test_credentials_come_back(
    challenge: Challenge, payload: Payload, source: tuple[int, Address] | None
) -> None:
    """CRED-01, CRED-02."""
    credential = Credential(challenge, payload, with_source(payload, source))
    assert EVM.parse_credential(format_credential(credential)) == credential


# -- selection


@pytest.mark.parametrize(
    ("values", "selected"),
    [
        ([], None),
        ([""], None),
        (["Bearer abc"], None),
        (["Payment abc"], "Payment abc"),
        (["payment abc"], "payment abc"),
        (["  PAYMENT\tabc "], "PAYMENT\tabc "),
        (["Bearer abc", "Payment abc"], "Payment abc"),
        (["Bearer abc, Payment def"], "Payment def"),
        (['Digest username="a, Payment b", x=y'], None),
        (['Digest username="a\\", Payment b", x=y'], None),
        (["Payments abc"], None),
        (["NotPayment abc"], None),
        (["Payment"], "Payment"),
        (["Payment abc, Bearer def"], "Payment abc"),
    ],
)
def test_the_one_payment_credential_is_selected(values: list[str], selected: str | None) -> None:
    """CORE-08, CORE-10, CHAL-12: other schemes pass, quoted strings are no elements."""
    assert select_credential(values) == selected


@pytest.mark.parametrize(
    "values",
    [
        ["Payment abc", "Payment abc"],
        ["Payment abc", "Bearer x", "payment def"],
        ["Payment abc, Payment def"],
        ["Payment abc,payment def"],
        ["Bearer x, Payment abc, Payment"],
        ["Payment,Payment"],
    ],
)
def test_two_payment_credentials_are_a_bad_request(values: list[str]) -> None:
    """CORE-10: two lines, two elements, or two fields; equal or not."""
    with pytest.raises(BadRequestError, match="More than one"):
        select_credential(values)


def test_an_oversize_credential_is_refused_undecoded() -> None:
    """CORE-14, F-02: 64 KiB, with any contents."""
    most = "Payment " + "A" * (AUTHORIZATION_BYTES_MAX - 8)
    assert select_credential([most]) == most
    with pytest.raises(MalformedCredentialError):
        select_credential([most, "x"])
    with pytest.raises(MalformedCredentialError, match="over"):
        EVM.parse_credential(most + "A")


# -- envelope


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Payment",
        "Payment ",
        "Bearer abc",
        "Payment !!!",
        "Payment e30 e30",
        "Payment e30, Bearer x",
        wire_of("")[:-1] + "=",
        wire_of("[]"),
        wire_of('"text"'),
        wire_of("null"),
        wire_of("{"),
        wire_of(b'{"challenge":"\xff"}'),
        wire_of('{"challenge":{"id":"\\ud800"}}'),
        wire_of("[" * 40_000),
        wire_of('{"challenge":' * 3_000),
        wire_of('{"x":' + "[" * 30_000 + "]" * 30_000 + "}"),
        wire_of(envelope_of(challenge=...)),
        wire_of(envelope_of(payload=...)),
        wire_of(envelope_of(challenge=None)),
        wire_of(envelope_of(challenge="abc")),
        wire_of(envelope_of(payload=None)),
        wire_of(envelope_of(payload=[])),
        *[
            wire_of(envelope_of(challenge={n: v for n, v in CHALLENGE.items() if n != name}))
            for name in ("id", "realm", "method", "intent", "request")
        ],
        *[
            wire_of(envelope_of(challenge={**CHALLENGE, name: value}))
            for name, value in [
                ("id", None),
                ("realm", 5),
                ("request", {"amount": "1"}),
                ("expires", None),
                ("opaque", {"nonce": "1"}),
                ("digest", 5),
            ]
        ],
    ],
)
def test_an_undecodable_envelope_is_malformed(value: str) -> None:
    """CORE-03, CRED-01, F-02, F-03, F-11: 402 with a fresh challenge, never another error."""
    with pytest.raises(MalformedCredentialError) as refusal:
        EVM.parse_credential(value)
    assert (refusal.value.status, refusal.value.offers_challenge) == (402, True)


@pytest.mark.parametrize("scheme", ["Payment", "payment", "PAYMENT", " Payment "])
@pytest.mark.parametrize("pad", ["", "=", "=="])
def test_the_scheme_is_read_in_any_case_and_padding_is_tolerated(scheme: str, pad: str) -> None:
    """CORE-08, 0.2."""
    token = wire_of(envelope_of())[8:]
    assert EVM.parse_credential(f"{scheme} {token}{pad}").payload == parse_payload(
        PAYLOADS["voucher"]
    )


@pytest.mark.parametrize(
    "source",
    [None, 5, "", SOURCE + "#key", "did:pkh:eip155:0196:0x" + "ab" * 20, "0x" + "ab" * 20],
)
@pytest.mark.parametrize("form", ["voucher", "open hash"])
def test_a_malformed_source_is_refused_like_a_payload(source: object, form: str) -> None:
    """CRED-02: 400."""
    with pytest.raises(MalformedPayloadError, match="source"):
        EVM.parse_credential(wire_of(envelope_of(payload=PAYLOADS[form], source=source)))


@pytest.mark.parametrize("form", PAYLOADS)
def test_a_proof_by_hash_needs_a_source_and_nothing_else_does(form: str) -> None:
    """CRED-02: open and topUp by hash name the payer nowhere else."""
    with_it = EVM.parse_credential(wire_of(envelope_of(payload=PAYLOADS[form], source=SOURCE)))
    assert with_it.source == (196, bytes.fromhex("ab" * 20))
    without = wire_of(envelope_of(payload=PAYLOADS[form]))
    if "hash" in form:
        with pytest.raises(MalformedPayloadError, match="source: missing"):
            EVM.parse_credential(without)
    else:
        assert EVM.parse_credential(without).source is None


def test_a_malformed_payload_in_a_readable_envelope_is_400() -> None:
    """AMB-12: the envelope's errors are 402, the payload's 400."""
    with pytest.raises(MalformedPayloadError) as refusal:
        EVM.parse_credential(wire_of(envelope_of(payload={**PAYLOADS["voucher"], "signature": 5})))
    assert refusal.value.status == 400


# -- duplicates, unknown members and the short way


def is_read_quickly(text: str | bytes) -> bool:
    raw = text.encode() if isinstance(text, str) else text
    return module._read_quickly(raw) is not None  # noqa: SLF001


def test_vouchers_and_closes_take_the_short_way() -> None:
    """A change that sends every voucher the long way is a change in cost, so it shows here."""
    for form in ("voucher", "close"):
        for source in (SOURCE, ...):
            text = json.dumps(envelope_of(payload=PAYLOADS[form], source=source))
            assert is_read_quickly(text)
    for form in PAYLOADS:
        if form not in ("voucher", "close"):
            assert not is_read_quickly(json.dumps(envelope_of(payload=PAYLOADS[form])))
    rides = {**PAYLOADS["voucher"], "deposit": DEPOSITS["open permit2"]}
    assert not is_read_quickly(json.dumps(envelope_of(payload=rides)))


VOUCHER_TEXT = json.dumps(envelope_of(source=SOURCE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"id": "i"', '"id": "i", "id": "i"'),
        ('"id": "i"', '"id": "j", "id": "i"'),
        ('"id": "i"', '"id": "i", "\\u0069d": "i"'),
        ('"cumulativeAmount": ', '"cumulativeAmount": "1", "cumulativeAmount": '),
        ('"action": "voucher"', '"action": "voucher", "action": "voucher"'),
        ('"action": "voucher"', '"action": "close", "action": "voucher"'),
        ('"payload": {', '"payload": {}, "payload": {'),
        ('"source": ', '"source": "x", "source": '),
        ('"expires": ', '"expires": null, "expires": '),
        ('"payload": {', '"payload": {"memo": {"a": 1, "a": 1}, '),
        ('"payload": {', '"payload": {"memo": NaN, '),
        ('"payload": {', '"payload": {"memo": 1e400, '),
        ('"payload": {', '"payload": {"memo": "\\ud800", '),
        ('"payload": {', '"payload": {"memo": ' + "[" * 20 + "]" * 20 + ", "),
    ],
)
def test_a_member_named_twice_is_refused_wherever_it_stands(old: str, new: str) -> None:
    """F-03: two readers of one credential must not see two credentials."""
    assert old in VOUCHER_TEXT
    with pytest.raises((MalformedCredentialError, MalformedPayloadError)):
        EVM.parse_credential(wire_of(VOUCHER_TEXT.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"payload": {', '"payload": {"memo": [1.5, null, "\\u00e9"], '),
        ('"challenge": {', '"x": {}, "challenge": {"y": [{}], '),
        ('"realm": "r"', '"realm": "\\u0072"'),
        ('"source"', '"\\u0073ource"'),
        ("{", " {\n\t"),
    ],
)
def test_other_spellings_of_the_same_credential_mean_the_same(old: str, new: str) -> None:
    """CRED-04: unknown members, escapes and blanks change nothing."""
    assert EVM.parse_credential(wire_of(VOUCHER_TEXT.replace(old, new))) == EVM.parse_credential(
        wire_of(VOUCHER_TEXT)
    )


def judge(text: bytes, *, quickly: bool) -> object:
    """Return what a reader makes of a text: a credential, or the type of its refusal."""
    try:
        if quickly:
            return module._read_quickly(text)  # noqa: SLF001
        return module._read_envelope(text, EVM.parse_payload)  # noqa: SLF001
    except (PeerError, WireError) as error:
        return type(error)


DEEP = """
import sys, threading
from tests.channel.wire.test_credential import EVM, MalformedCredentialError, wire_of
sys.setrecursionlimit(100_000)
threading.stack_size(512 * 1024)  # as small as some systems make it

def refuse():
    for text in ("[" * 45_000, '{"x":' * 9_000, '{"x":' + "[" * 45_000, '{"x":' + '{"":' * 11_000):
        try:
            EVM.parse_credential(wire_of(text))
        except MalformedCredentialError:
            print("refused")

thread = threading.Thread(target=refuse)
thread.start()
thread.join()
"""


def test_a_deeply_nested_credential_is_refused_under_any_recursion_limit() -> None:
    """F-02, SEC-10: a dependency raises the limit on import; then only our bound is left."""
    command = [sys.executable, "-c", DEEP]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout) == (0, "refused\n" * 4), done.stderr


MEMBERS = st.sampled_from(
    [
        '"id":"i"',
        '"realm":"r"',
        '"method":"evm"',
        '"intent":"session"',
        '"request":"e30"',
        '"expires":"e"',
        '"expires":null',
        '"digest":"\\""',
        '"header":"\\u0041"',
        '"opaque":"\u20ac"',
        '"description":"\\ud800"',
        '"description":"\\ud83d\\ude00"',
        '"x":1',
        '"x":"y"',
        '"":""',
    ]
)
ALL_CHALLENGE = ['"id":"i"', '"realm":"r"', '"method":"evm"', '"intent":"session"', '"request":"e"']
VOUCHER = PAYLOADS["voucher"]
PAYLOAD_MEMBERS = st.sampled_from(
    [
        *[f'"{name}":"{value}"' for name, value in VOUCHER.items()],
        '"action":"close"',
        '"cumulativeAmount":"01"',
        '"cumulativeAmount":5',
        '"signature":"0x"',
        '"deposit":{}',
        '"deposit":null',
        '"memo":{"a":"b"}',
        '"memo":[]',
    ]
)
ALL_PAYLOAD = [f'"{name}":"{value}"' for name, value in VOUCHER.items()]


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Draw an envelope that is nearly right: members missing, repeated, odd, in any order."""
    challenge = draw(
        st.permutations(ALL_CHALLENGE + draw(st.lists(MEMBERS, max_size=2)))
        | st.lists(MEMBERS, max_size=7)
    )
    payload = draw(
        st.permutations(ALL_PAYLOAD + draw(st.lists(PAYLOAD_MEMBERS, max_size=1)))
        | st.lists(PAYLOAD_MEMBERS, max_size=5)
    )
    members = [f'"challenge":{{{",".join(challenge)}}}', f'"payload":{{{",".join(payload)}}}']
    members += draw(
        st.lists(
            st.sampled_from([f'"source":"{SOURCE}"', '"source":null', '"source":"x"', '"z":0.5']),
            max_size=2,
        )
    )
    return f"{{{','.join(draw(st.permutations(members)))}}}".encode()


@given(texts())
def test_the_short_way_answers_only_what_the_long_way_answers(text: bytes) -> None:
    """F-03: msgspec alone takes duplicates; counted quotation marks prove there are none."""
    quick = judge(text, quickly=True)
    if quick is not None:
        assert quick == judge(text, quickly=False)


@given(texts(), st.integers(0, 10_000), st.binary(max_size=3))
def test_damaged_texts_are_judged_the_same_too(text: bytes, at: int, damage: bytes) -> None:
    """F-03."""
    at %= len(text)
    damaged = text[:at] + damage + text[at + len(damage) :]
    quick = judge(damaged, quickly=True)
    if quick is not None:
        assert quick == judge(damaged, quickly=False)


@pytest.mark.parametrize("form", PAYLOADS)
def test_a_printed_credential_holds_no_signature(form: str) -> None:
    """CORE-13, F-103."""
    credential = EVM.parse_credential(wire_of(envelope_of(payload=PAYLOADS[form], source=SOURCE)))
    for signature in (SIGNATURE, OTHER_SIGNATURE):
        assert signature[2:] not in repr(credential)
        assert repr(bytes.fromhex(signature[2:]))[2:-1] not in repr(credential)
