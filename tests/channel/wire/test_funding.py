"""Deposits that ride on a voucher, and the authorizations inside (VCH-06)."""

from typing import Any

import pytest
from hypothesis import given

from channel.errors import MalformedPayloadError, WireError
from channel.methods.evm.payload import (
    parse_payload,
)
from channel.types import ZERO_ADDRESS
from channel.wire.funding import (
    Deposit,
    parse_deposit,
)
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.methods.evm.payloads import DEPOSITS, PAYLOADS, deposits


@pytest.mark.parametrize("form", DEPOSITS)
def test_each_deposit_is_read_whole_and_written_as_it_was(form: str) -> None:
    """VCH-06."""
    deposit = parse_deposit(DEPOSITS[form])
    assert deposit.members() == DEPOSITS[form]
    assert f"{deposit.action} {deposit.type}" == form


@given(deposits)
def test_deposits_come_back(deposit: Deposit) -> None:
    """VCH-06."""
    assert parse_deposit(deposit.members()) == deposit


@pytest.mark.parametrize("form", DEPOSITS)
def test_the_amount_of_a_deposit_is_its_authorizations(form: str) -> None:
    """VCH-06: there is no amount field to contradict it."""
    assert parse_deposit({**DEPOSITS[form], "amount": "1"}).amount == 5_000_000


@pytest.mark.parametrize(
    ("form", "is_needed"),
    [
        ("open authorization", True),
        ("open permit2", True),
        ("topUp authorization", True),
        ("topUp permit2", False),
    ],
)
def test_every_deposit_but_a_top_up_by_permit2_needs_a_salt(form: str, *, is_needed: bool) -> None:
    """VCH-06, TOPUP-01."""
    wire = {name: value for name, value in DEPOSITS[form].items() if name != "salt"}
    if is_needed:
        with pytest.raises(WireError, match="salt: missing"):
            parse_deposit(wire)
    else:
        assert parse_deposit({**wire, "salt": 5}).salt is None


def test_a_top_up_has_no_authorized_signer() -> None:
    """VCH-06: open only; omitted means zero (CLIENT-03)."""
    wire = {**DEPOSITS["topUp authorization"], "authorizedSigner": "0x" + "ab" * 20}
    assert parse_deposit(wire).authorized_signer == ZERO_ADDRESS
    unsigned = {n: v for n, v in DEPOSITS["open permit2"].items() if n != "authorizedSigner"}
    assert parse_deposit(unsigned).authorized_signer == ZERO_ADDRESS


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "close"},
        {"type": "hash"},
        {"type": None},
        {"authorization": None},
        {"signature": "0x"},
    ],
)
def test_a_malformed_deposit_is_refused_with_the_voucher_it_rides_on(
    changes: dict[str, Any],
) -> None:
    """VCH-06, VCH-07: a hash is no deposit; the refusal says where it is."""
    wire = {**PAYLOADS["voucher"], "deposit": {**DEPOSITS["open authorization"], **changes}}
    with pytest.raises(MalformedPayloadError, match=r"payload\.deposit: "):
        parse_payload(wire)
    with pytest.raises(MalformedPayloadError, match="deposit: not an object"):
        parse_payload({**PAYLOADS["voucher"], "deposit": None})


def test_a_deposit_is_read_with_its_voucher() -> None:
    """VCH-01."""
    wire = {**PAYLOADS["voucher"], "deposit": DEPOSITS["topUp permit2"]}
    payload = parse_payload(wire)
    assert isinstance(payload, VoucherPayload)
    assert payload.deposit == parse_deposit(DEPOSITS["topUp permit2"])
