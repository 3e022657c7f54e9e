"""What a credential asks to be done, in each of its eight forms."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

from channel.errors import MalformedPayloadError
from channel.limits import AMOUNT_MAX, WALLET_SIGNATURE_BYTES_MAX
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenHash,
    OpenPermit2,
    TopUpAuthorization,
    TopUpHash,
    TopUpPermit2,
    parse_payload,
)
from channel.types import ZERO_ADDRESS
from channel.wire.payload import (
    ClosePayload,
    Payload,
    VoucherPayload,
    format_payload,
)
from tests.channel.methods.evm.payloads import (
    DEPOSITS,
    OTHER_SIGNATURE,
    PAYLOADS,
    SIGNATURE,
    W1,
    payloads,
)
from tests.channel.vectors import EVM, Entry, name_of

FORMS = {
    "open hash": OpenHash,
    "open authorization": OpenAuthorization,
    "open permit2": OpenPermit2,
    "topUp hash": TopUpHash,
    "topUp authorization": TopUpAuthorization,
    "topUp permit2": TopUpPermit2,
    "voucher": VoucherPayload,
    "close": ClosePayload,
}
OPTIONAL = {"authorizedSigner"}
BAD: list[object] = [None, 5, 5.0, True, [], {"a": 1}, "", " ", "0x", "0x 1", "0xzz", "-1", "1_0"]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_whole_and_written_as_it_was(form: str) -> None:
    """CRED-04, OPEN-08, TOPUP-01, VCH-01, CLOSE-01: nothing is lost, nothing added."""
    payload = parse_payload(PAYLOADS[form])
    assert type(payload) is FORMS[form]
    assert format_payload(payload) == PAYLOADS[form]
    assert payload.channel_id == bytes.fromhex(W1[2:])
    assert payload.action == PAYLOADS[form]["action"]
    if not isinstance(payload, VoucherPayload | ClosePayload):
        assert payload.type == PAYLOADS[form]["type"]


@given(payloads)
def test_payloads_come_back(payload: Payload) -> None:
    """CRED-04."""
    assert parse_payload(format_payload(payload)) == payload


def test_the_vouchers_signature_is_separate_from_the_fundings() -> None:
    """OPEN table: `signature` is the voucher's for hash, `voucherSignature` otherwise."""
    for form in ("open hash", "open authorization", "open permit2"):
        payload = parse_payload(PAYLOADS[form])
        assert isinstance(payload, OpenHash | OpenAuthorization | OpenPermit2)
        assert payload.voucher.signature == bytes.fromhex(SIGNATURE[2:])


@pytest.mark.parametrize("form", FORMS)
def test_unknown_fields_are_ignored_also_when_another_form_has_them(form: str) -> None:
    """CRED-04."""
    more = {"memo": [1.5], "voucherSignature" if "hash" in form else "hash": 7, "x": None}
    assert parse_payload({**PAYLOADS[form], **more}) == parse_payload(PAYLOADS[form])


def paths(value: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in value.items():
        yield (*prefix, name)
        if isinstance(inner, dict):
            yield from paths(inner, (*prefix, name))


def changed(value: dict[str, Any], path: tuple[str, ...], new: object) -> dict[str, Any]:
    if len(path) > 1:
        return {**value, path[0]: changed(value[path[0]], path[1:], new)}
    without = {name: inner for name, inner in value.items() if name != path[0]}
    return without if new is ... else {**without, path[0]: new}


FIELDS = [(form, path) for form in PAYLOADS for path in paths(PAYLOADS[form])]


@pytest.mark.parametrize(
    ("form", "path"), FIELDS, ids=lambda x: x if isinstance(x, str) else ".".join(x)
)
def test_every_field_is_required_and_strict_and_a_refusal_names_it(
    form: str, path: tuple[str, ...]
) -> None:
    """CRED-06, ENC-01, ENC-02: missing, null, number, list, spaces, other lengths."""
    wire = PAYLOADS[form]
    if path[-1] in OPTIONAL:
        read = parse_payload(changed(wire, path, ...))
        funding = getattr(read, "authorization", read) if len(path) > 1 else read
        assert getattr(funding, "authorized_signer") == ZERO_ADDRESS  # noqa: B009 - any of three
    else:
        with pytest.raises(MalformedPayloadError, match=f"{path[-1]}: missing"):
            parse_payload(changed(wire, path, ...))
    for bad in BAD:
        with pytest.raises(MalformedPayloadError) as refusal:
            parse_payload(changed(wire, path, bad))
        assert path[-1] in str(refusal.value) or isinstance(bad, dict)


@pytest.mark.parametrize(
    "form", [form for form in PAYLOADS if "cumulativeAmount" in PAYLOADS[form]]
)
def test_no_amount_above_uint128_reaches_the_signature_check(form: str) -> None:
    """ENC-04: `amount_overflow_wraps_to_valid`."""
    wire = {**PAYLOADS[form], "cumulativeAmount": str(AMOUNT_MAX + 1)}
    with pytest.raises(MalformedPayloadError, match="cumulativeAmount"):
        parse_payload(wire)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"action": "charge"}, "action"),
        ({"action": "OPEN"}, "action"),
        ({"action": "topup"}, "action"),
        ({"action": ""}, "action"),
        ({"action": "open", "type": "transaction"}, "type"),
        ({"action": "open", "type": "eip-3009"}, "type"),
        ({"action": "topUp", "type": "HASH"}, "type"),
        ({"action": "topUp", "type": ""}, "type"),
    ],
)
def test_unknown_actions_and_types_are_refused(changes: dict[str, str], named: str) -> None:
    """CRED-04, CRED-05, AMB-22."""
    with pytest.raises(MalformedPayloadError, match=f"payload.{named}: not defined"):
        parse_payload({**PAYLOADS["open hash"], **changes})


def test_a_payload_without_action_is_refused() -> None:
    with pytest.raises(MalformedPayloadError, match="action: missing"):
        parse_payload({})


def test_a_signature_may_be_a_wallets_up_to_the_cap() -> None:
    """ENC-06: other lengths than 65 are for the chain to judge."""
    longest = "0x" + "ab" * WALLET_SIGNATURE_BYTES_MAX
    payload = parse_payload({**PAYLOADS["voucher"], "signature": longest})
    assert isinstance(payload, VoucherPayload)
    assert len(payload.voucher.signature) == WALLET_SIGNATURE_BYTES_MAX
    with pytest.raises(MalformedPayloadError, match="signature"):
        parse_payload({**PAYLOADS["voucher"], "signature": longest + "ab"})


def test_either_case_of_a_channel_id_is_the_same_channel() -> None:
    """F-06: no spelling opens a second row."""
    upper = "0x" + W1[2:].upper()
    assert parse_payload({**PAYLOADS["close"], "channelId": upper}).channel_id == (
        parse_payload(PAYLOADS["close"]).channel_id
    )


@pytest.mark.parametrize("form", PAYLOADS)
@pytest.mark.parametrize("deposit", DEPOSITS)
def test_no_signature_is_ever_printed(form: str, deposit: str) -> None:
    """CORE-13, F-103: also not inside another value, and every other field is shown."""
    payload = parse_payload({**PAYLOADS[form], "deposit": DEPOSITS[deposit]})
    for text in (repr(payload), str(payload), repr([payload])):
        for signature in (SIGNATURE, OTHER_SIGNATURE):
            assert signature[2:] not in text
            assert repr(bytes.fromhex(signature[2:]))[2:-1] not in text
        assert f"channel_id={W1}" in text


MALFORMED = [v for v in EVM["voucherNegative"] if v["problem"] == "malformed-credential (400)"]


@pytest.mark.parametrize("entry", MALFORMED, ids=name_of)
def test_golden_malformed_vouchers_are_refused_before_any_cryptography(entry: Entry) -> None:
    """ENC-01, ENC-02, ENC-04, F-01, F-05, CRED-06."""
    fields = ("channelId", "cumulativeAmount", "signature")
    with pytest.raises(MalformedPayloadError) as refusal:
        parse_payload({"action": "voucher", **{name: entry[name] for name in fields}})
    assert (refusal.value.status, refusal.value.problem_type) == (400, "malformed-credential")
