"""`Payment-Receipt`: the channel's books after a payment."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import WireError
from channel.limits import AMOUNT_MAX, RATES_MAX, RECEIPT_BYTES_MAX, SAFE_INTEGER_MAX
from channel.types import ChannelId, TxHash
from channel.wire.encoding import decode_base64url, encode_base64url
from channel.wire.receipt import (
    Receipt,
    format_receipt,
    format_receipt_json,
    parse_receipt,
    parse_receipt_json,
)
from tests.channel.vectors import WIRE, Entry, entry_of, name_of

AMOUNTS = st.integers(0, AMOUNT_MAX)
COUNTS = st.none() | st.integers(0, SAFE_INTEGER_MAX)
USAGES = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True),
    st.integers(0, SAFE_INTEGER_MAX),
    max_size=RATES_MAX,
)
WORDS = st.binary(min_size=32, max_size=32)
RECEIPTS = st.builds(
    Receipt,
    challenge_id=st.text(st.characters(codec="utf-8"), max_size=20),
    channel_id=WORDS.map(ChannelId),
    chain_id=st.integers(0, SAFE_INTEGER_MAX),
    accepted=AMOUNTS,
    spent=AMOUNTS,
    timestamp=st.integers(0, 4_000_000_000),
    units=COUNTS,
    usage=st.none() | USAGES,
    tx_hash=st.none() | WORDS.map(TxHash),
    confirmations=COUNTS,
)
GOLDEN: dict[str, Any] = entry_of(WIRE["receipts"], "close")["receipt"]


@pytest.mark.parametrize("entry", WIRE["receipts"], ids=name_of)
def test_golden_receipts_are_read_and_written_as_mppx_does(entry: Entry) -> None:
    """RCPT table: byte for byte."""
    assert entry["mppxParses"]
    receipt = parse_receipt(entry["wire"])
    assert receipt.spent == int(entry["receipt"]["spent"])
    assert receipt.units == entry["receipt"].get("units")
    assert json.loads(format_receipt_json(receipt)) == entry["receipt"]
    assert format_receipt(receipt) == entry["wire"]


@given(RECEIPTS)
def test_receipts_come_back(receipt: Receipt) -> None:
    """RCPT-02, RCPT-05."""
    header = format_receipt(receipt)
    text = format_receipt_json(receipt)
    assert parse_receipt(header) == parse_receipt(f" {header}==\t") == receipt
    assert parse_receipt_json(text) == parse_receipt_json(text.encode()) == receipt
    assert "\n" not in text
    assert header.isascii()


def test_unknown_members_are_ignored() -> None:
    """RCPT-04."""
    assert parse_receipt_json(json.dumps({**GOLDEN, "extra": [1.5, {}]})) == parse_receipt_json(
        json.dumps(GOLDEN)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, ...) for name in GOLDEN if name not in ("units", "txHash", "confirmations")],
        ("method", 5),
        ("intent", "charge"),
        ("status", "failure"),
        ("status", None),
        ("timestamp", "2026-04-01T12:08:30"),
        ("timestamp", 1775045100),
        ("challengeId", 5),
        ("channelId", "0x12"),
        ("reference", "0x" + "00" * 32),
        ("chainId", "196"),
        ("chainId", True),
        ("acceptedCumulative", 250000),
        ("spent", "-1"),
        ("spent", str(AMOUNT_MAX + 1)),
        ("units", "500"),
        ("units", 1.5),
        ("usage", None),
        ("usage", [1]),
        ("usage", {"output_token": "35"}),
        ("usage", {"output_token": -1}),
        ("usage", {"output_token": True}),
        ("usage", {"Output token": 35}),
        ("usage", {f"k{n}": 1 for n in range(RATES_MAX + 1)}),
        ("txHash", "0x"),
        ("confirmations", -1),
    ],
)
def test_a_receipt_that_is_none_is_refused_by_the_name_of_its_field(
    name: str, value: object
) -> None:
    """RCPT table, ENC-03, CLIENT-09: a client checks each field, so each must be there."""
    wire = {n: v for n, v in GOLDEN.items() if n != name}
    if value is not ...:
        wire[name] = value
    with pytest.raises(WireError, match=name):
        parse_receipt_json(json.dumps(wire))


@pytest.mark.parametrize(
    "header", ["", "!", "W10", encode_base64url(b"{"), "A" * (RECEIPT_BYTES_MAX + 1)]
)
def test_a_header_that_holds_no_receipt_is_refused(header: str) -> None:
    with pytest.raises(WireError):
        parse_receipt(header)


def test_an_amount_beyond_uint128_is_no_receipt() -> None:
    """ENC-04."""
    receipt = parse_receipt_json(json.dumps(GOLDEN))
    wrong = Receipt(
        method="evm",
        challenge_id="i",
        channel_id=receipt.channel_id,
        chain_id=1,
        accepted=AMOUNT_MAX + 1,
        spent=0,
        timestamp=0,
    )
    with pytest.raises(WireError):
        format_receipt(wrong)


def test_a_usage_of_several_kinds_is_stated_by_kind() -> None:
    """TARIFF-07, RCPT-04: a member of this project replaces `units`: integers, not amounts."""
    usage = {"input_token": 57, "output_token": 35}
    wire = {name: value for name, value in GOLDEN.items() if name != "units"} | {"usage": usage}
    receipt = parse_receipt_json(json.dumps(wire))
    assert (receipt.usage, receipt.units) == (usage, None)
    assert json.loads(format_receipt_json(receipt)) == wire


@pytest.mark.parametrize(
    "usage",
    [{"Output": 1}, {"output_token": -1}, {"output_token": 1.5}, {f"k{n}": 1 for n in range(33)}],
)
def test_a_usage_that_no_client_can_read_is_not_written(usage: dict[str, Any]) -> None:
    receipt = parse_receipt_json(json.dumps(GOLDEN))
    with pytest.raises(WireError):
        format_receipt(msgspec.structs.replace(receipt, usage=usage))


def test_nothing_absent_is_written() -> None:
    receipt = parse_receipt(entry_of(WIRE["receipts"], "request")["wire"])
    written = json.loads(decode_base64url(format_receipt(receipt)))
    assert not {"txHash", "confirmations", "usage"} & set(written)
