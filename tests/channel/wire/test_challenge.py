"""`WWW-Authenticate: Payment`, the request object and the opaque map."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import ConfigError, WireError
from channel.limits import (
    AMOUNT_MAX,
    CHALLENGE_BYTES_MAX,
    CHALLENGES_PER_RESPONSE_MAX,
    DESCRIPTION_CHARS_MAX,
    REQUEST_PARAM_BYTES_MAX,
    SAFE_INTEGER_MAX,
)
from channel.methods.evm.method import EVM
from channel.types import Address, ChannelId
from channel.wire.challenge import (
    Challenge,
    SessionRequest,
    format_challenge,
    format_opaque,
    parse_challenges,
    parse_opaque,
)
from channel.wire.encoding import canonical_json, encode_base64url
from tests.channel.vectors import WIRE, Entry, name_of

ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)
AMOUNTS = st.integers(0, AMOUNT_MAX)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
CHALLENGE = Challenge(id="i", realm="r", method="evm", intent="session", request="e30")
REQUESTS = st.builds(
    SessionRequest,
    unit_price=st.integers(1, AMOUNT_MAX),
    currency=ADDRESSES,
    recipient=ADDRESSES,
    chain_id=st.integers(0, SAFE_INTEGER_MAX),
    escrow=ADDRESSES,
    unit_type=TEXT,
    suggested_deposit=st.none() | AMOUNTS,
    description=st.none() | TEXT,
    external_id=st.none() | TEXT,
    channel_id=st.none() | st.binary(min_size=32, max_size=32).map(ChannelId),
    min_voucher_delta=AMOUNTS,
    fee_payer=st.booleans(),
    credential_types=st.sampled_from([("hash",), ("permit2", "authorization", "hash")]),
    permit2=st.none() | ADDRESSES,
)


@pytest.mark.parametrize("entry", WIRE["challenges"], ids=name_of)
def test_golden_challenges_are_read_and_written_as_mppx_does(entry: Entry) -> None:
    """CHAL-01, CHAL-02, CHAL-03, 0.2: byte for byte in both directions."""
    (challenge,) = parse_challenges([entry["wire"]])
    slots = ("id", "realm", "method", "intent", "expires", "digest", "header", "opaque")
    assert {name: getattr(challenge, name) for name in slots} == {
        name: entry.get(name) for name in slots
    }
    assert challenge.description == entry.get("description")
    assert challenge.request == entry["requestB64"]
    assert format_challenge(challenge) == entry["wire"]
    if "meta" in entry:
        assert parse_opaque(entry["opaque"]) == entry["meta"]
        assert format_opaque(entry["meta"]) == entry["opaque"]


@pytest.mark.parametrize("entry", WIRE["challenges"], ids=name_of)
def test_golden_requests_are_canonical_json(entry: Entry) -> None:
    """F-07: the same bytes as another implementation's, and so the same id."""
    assert encode_base64url(canonical_json(entry["request"])) == entry["requestB64"]
    request = EVM.parse_request(entry["requestB64"])
    details = entry["request"]["methodDetails"]
    assert request.unit_price == int(entry["request"]["amount"])
    assert request.suggested_deposit == int(entry["request"]["suggestedDeposit"])
    assert request.chain_id == details["chainId"]
    assert request.min_voucher_delta == int(details["minVoucherDelta"])
    assert request.fee_payer is details.get("feePayer", False)
    assert list(request.credential_types) == details.get("credentialTypes", ["hash"])
    assert request.description == entry["request"].get("description")
    assert request.unit_type == "llm_token"


@pytest.mark.parametrize("entry", WIRE["multi"], ids=name_of)
def test_several_challenges_of_one_line_are_found(entry: Entry) -> None:
    """CORE-09, F-08."""
    found = parse_challenges([entry["wire"]])
    assert [challenge.id for challenge in found] == entry["ids"] == entry["mppx"]


def test_other_schemes_are_skipped_with_any_contents() -> None:
    """CORE-09: only a malformed Payment challenge is our concern."""
    lines = ['Bearer realm="unterminated', 'Basic realm="x"', format_challenge(CHALLENGE), ""]
    assert parse_challenges(lines) == (CHALLENGE,)
    assert parse_challenges(['Bearer realm="ask for Payment"']) == ()


@given(REQUESTS)
def test_requests_come_back(request: SessionRequest) -> None:
    """CHAL-02, CHAL-03."""
    wire = EVM.format_request(request)
    assert EVM.parse_request(wire) == request
    assert EVM.parse_request_object(EVM.request_object(request)) == request


def test_addresses_are_emitted_with_checksums_and_defaults_left_out() -> None:
    """CHAL-02, ENC-01."""
    token = Address(bytes.fromhex("5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"))
    request = SessionRequest(
        unit_price=1,
        currency=token,
        recipient=token,
        chain_id=1,
        escrow=token,
        unit_type="",
        credential_types=("hash",),
    )
    spelling = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    assert EVM.request_object(request) == {
        "amount": "1",
        "currency": spelling,
        "recipient": spelling,
        "methodDetails": {"chainId": 1, "escrowContract": spelling},
    }


def test_a_price_of_nothing_is_a_configuration_error() -> None:
    """CHAL-02: amount > 0."""
    wire = WIRE["challenges"][0]["requestB64"]
    free = msgspec.structs.replace(EVM.parse_request(wire), unit_price=0)
    with pytest.raises(ConfigError, match="positive"):
        EVM.format_request(free)


def request_object(**changes: object) -> dict[str, Any]:
    """Return a golden request with members changed; `...` leaves one out."""
    wire = {**WIRE["challenges"][0]["request"]}
    wire["methodDetails"] = {**wire["methodDetails"]}
    for name, value in changes.items():
        inner = wire["methodDetails"] if name in DETAILS else wire
        if value is ...:
            inner.pop(name, None)
        else:
            inner[name] = value
    return wire


DETAILS = {
    "chainId",
    "escrowContract",
    "channelId",
    "minVoucherDelta",
    "feePayer",
    "credentialTypes",
    "permit2Contract",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, ...) for name in ("amount", "currency", "recipient", "methodDetails")],
        *[(name, ...) for name in ("chainId", "escrowContract")],
        ("amount", 100),
        ("amount", "0100"),
        ("amount", str(AMOUNT_MAX + 1)),
        ("currency", "0x12"),
        ("recipient", None),
        ("methodDetails", []),
        ("chainId", "196"),
        ("chainId", True),
        ("chainId", 196.0),
        ("chainId", -1),
        ("escrowContract", "0x" + "zz" * 20),
        ("unitType", 5),
        ("unitType", "x" * (DESCRIPTION_CHARS_MAX + 1)),
        ("suggestedDeposit", 5),
        ("suggestedDeposit", None),
        ("description", None),
        ("externalId", {}),
        ("channelId", "0x1234"),
        ("minVoucherDelta", -1),
        ("feePayer", "true"),
        ("feePayer", 1),
        ("credentialTypes", []),
        ("credentialTypes", "hash"),
        ("credentialTypes", ["hash"] * 9),
        ("credentialTypes", [1]),
        ("permit2Contract", ""),
    ],
)
def test_a_malformed_request_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    """CHAL-02, CHAL-03, ENC-02, ENC-03, F-03."""
    with pytest.raises(WireError, match=name):
        EVM.parse_request_object(request_object(**{name: value}))


def test_what_a_request_leaves_out_has_the_drafts_defaults() -> None:
    """CHAL-03: no least rise, no fee payer, proof by transaction hash."""
    request = EVM.parse_request_object(
        request_object(minVoucherDelta=..., unitType=..., suggestedDeposit=..., extra={"a": [1.5]})
    )
    assert (request.min_voucher_delta, request.fee_payer, request.unit_type) == (0, False, "")
    assert request.credential_types == ("hash",)
    assert (request.suggested_deposit, request.channel_id, request.permit2) == (None, None, None)


@pytest.mark.parametrize("request_param", ["", "!", "W10", encode_base64url(b"{"), "A" * 16_385])
def test_a_request_that_is_no_object_is_refused(request_param: str) -> None:
    """CORE-14, F-02."""
    with pytest.raises(WireError):
        EVM.parse_request(request_param)


@pytest.mark.parametrize("slot", ["realm", "method", "intent", "expires", "digest"])
def test_a_pipe_in_a_slot_is_refused_in_both_directions(slot: str) -> None:
    """CHAL-09, F-10: it would shift the slots of the HMAC."""
    wire = {"id": "i", "realm": "r", "method": "evm", "intent": "session", "request": "e30"}
    wire[slot] = "a|b"
    line = "Payment " + ", ".join(f'{name}="{value}"' for name, value in wire.items())
    with pytest.raises(WireError):
        parse_challenges([line])
    with pytest.raises(WireError):
        format_challenge(msgspec.structs.replace(CHALLENGE, **{slot: "a|b"}))


@pytest.mark.parametrize("missing", ["id", "realm", "method", "intent", "request"])
def test_a_challenge_without_one_of_its_parameters_is_refused(missing: str) -> None:
    """CHAL-01."""
    wire = {"id": "i", "realm": "r", "method": "evm", "intent": "session", "request": "e30"}
    line = "Payment " + ", ".join(f'{n}="{v}"' for n, v in wire.items() if n != missing)
    with pytest.raises(WireError, match=missing):
        parse_challenges([line])


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        ("id", ""),
        ("method", ""),
        ("method", "EVM"),
        ("method", "1evm"),
        ("method", "e vm"),
        ("intent", ""),
        ("intent", "ses_sion"),
        ("request", ""),
        ("request", "A" * (REQUEST_PARAM_BYTES_MAX + 1)),
    ],
)
def test_a_challenge_with_a_malformed_parameter_is_refused(slot: str, value: str) -> None:
    """CHAL-01, CORE-12, CORE-14, F-08."""
    with pytest.raises(WireError):
        format_challenge(msgspec.structs.replace(CHALLENGE, **{slot: value}))
    quoted = format_challenge(CHALLENGE).replace(f'{slot}="', f'{slot}="{value}@@', 1)
    line = quoted.replace("@@" + getattr(CHALLENGE, slot), "")
    with pytest.raises(WireError):
        parse_challenges([line])


def test_method_names_of_other_implementations_are_read() -> None:
    """CORE-12."""
    other = msgspec.structs.replace(CHALLENGE, method="evm:base_2-x", intent="pay-AS-you-go1")
    assert parse_challenges([format_challenge(other)]) == (other,)


def test_a_payment_challenge_without_parameters_is_refused() -> None:
    for line in ("Payment", "Payment dG9rZW4=", "Payment id="):
        with pytest.raises(WireError, match="lacks id"):
            parse_challenges([line])


def test_challenges_are_bounded_in_bytes_and_number() -> None:
    """CORE-14."""
    line = format_challenge(CHALLENGE)
    assert len(parse_challenges([line] * CHALLENGES_PER_RESPONSE_MAX)) == 32
    with pytest.raises(WireError, match="challenges"):
        parse_challenges([line] * (CHALLENGES_PER_RESPONSE_MAX + 1))
    with pytest.raises(WireError, match="bytes"):
        parse_challenges([line, "x" * CHALLENGE_BYTES_MAX])


def test_every_slot_is_written_when_it_is_there() -> None:
    """CHAL-01, CHAL-12, CHAL-13."""
    full = msgspec.structs.replace(
        CHALLENGE,
        expires="2026-04-01T12:05:00Z",
        digest="sha-256=:AAAA:",
        header="Payment-Authorization",
        opaque="e30",
        description='"\u2615"',
    )
    assert parse_challenges([format_challenge(full)]) == (full,)


@pytest.mark.parametrize(
    "header", ["Authorization", "payment-authorization", "Cookie", "X-Payment", "", "a|b"]
)
def test_a_challenge_for_any_other_field_is_not_recognised(header: str) -> None:
    """CHAL-12, O-58: nothing may be sent for it; the challenge beside it is read."""
    good = format_challenge(CHALLENGE)
    other = f'{good}, header="{header}"'
    assert parse_challenges([other]) == ()
    assert parse_challenges([other, good]) == (CHALLENGE,)
    with pytest.raises(WireError):
        format_challenge(msgspec.structs.replace(CHALLENGE, header=header))


@given(st.dictionaries(TEXT, TEXT, max_size=4))
def test_opaque_maps_come_back(entries: dict[str, str]) -> None:
    """CHAL-10: a flat map of strings."""
    assert parse_opaque(format_opaque(entries)) == entries


@pytest.mark.parametrize("value", [{"a": 1}, {"a": {}}, {"a": None}])
def test_an_opaque_map_holds_strings_alone(value: dict[str, Any]) -> None:
    """CHAL-10."""
    with pytest.raises(WireError, match="a: not a string"):
        parse_opaque(encode_base64url(canonical_json(value)))


def test_an_opaque_map_is_bounded() -> None:
    with pytest.raises(WireError, match="over"):
        parse_opaque("A" * (REQUEST_PARAM_BYTES_MAX + 1))
