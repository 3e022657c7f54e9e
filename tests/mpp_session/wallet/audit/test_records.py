"""Asks and decisions come back from the trail as they were, and hold nothing secret."""

import itertools
import json

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from channel.client.store.record import ChannelRecord
from channel.errors import WireError
from channel.limits import AUDIT_ALTERNATIVES_MAX, AUDIT_REASON_CHARS_MAX
from channel.types import Address, ChannelId, ChannelKey, ChannelTerms, TxHash
from mpp_session.wallet.audit.canonical import canonical, plain
from mpp_session.wallet.audit.records import (
    decision_fields,
    decode_ask,
    decode_decision,
    describe_change,
    encode_ask,
    receipt_digest,
    voucher_fields,
)
from mpp_session.wallet.types import Alternative, Ask, Decision, Purpose
from tests.mpp_session.wallet.audit.asks import ASKS, DECISIONS, make_ask, make_decision


@settings(max_examples=60)
@given(ask=ASKS, decision=DECISIONS)
def test_asks_and_decisions_return_from_a_record(ask: Ask, decision: Decision) -> None:
    written = canonical(plain(decision_fields(ask, decision, policy_hash="h")))
    read = json.loads(written)
    assert decode_ask(read["ask"]) == ask
    assert decode_decision(read["decision"]) == decision
    assert (read["policy_revision"], read["policy_hash"]) == (decision.policy_revision, "h")


def test_what_an_agent_says_is_marked_and_bounded() -> None:
    many = (Alternative("https://b.example", "0.1"),) * (AUDIT_ALTERNATIVES_MAX + 1)
    purpose = Purpose(reason="x" * (AUDIT_REASON_CHARS_MAX + 1), alternatives=many)
    encoded = encode_ask(make_ask(purpose=purpose))
    assert "reason" not in encoded
    said = encoded["untrusted"]
    assert said["reason"] == "x" * (AUDIT_REASON_CHARS_MAX - 1) + "…"
    assert len(said["alternatives"]) == AUDIT_ALTERNATIVES_MAX


@pytest.mark.parametrize(
    "changed",
    [
        {"more": 1},
        {"amount": 5},
        {"amount": "05"},
        {"token": "0x12"},
        {"token": "0x" + "AB" * 20},
        {"kind": "gift"},
        {"tariff": {"rates": []}},
        {"tariff": {"rates": [{"kind": "request", "amount": "1", "more": 1}]}},
        {"channel_id": "0x12"},
        {"untrusted": {"more": ""}},
    ],
)
def test_an_ask_is_read_strictly(changed: dict[str, object]) -> None:
    with pytest.raises(WireError):
        decode_ask(encode_ask(make_ask()) | changed)


def test_a_decision_is_read_strictly() -> None:
    encoded = decision_fields(make_ask(), make_decision())["decision"]
    for changed in ({"code": "odd"}, {"left": 1}, {"more": ""}):
        with pytest.raises(WireError):
            decode_decision(encoded | changed)


def test_a_voucher_is_its_amounts() -> None:
    fields = plain(voucher_fields(make_ask(amount=5, total=25), digest=b"\x07" * 32))
    assert fields == {
        "request_id": "r1",
        "channel_id": "0x" + "04" * 32,
        "voucher": {
            "cumulative": "25",
            "delta": "5",
            "request_total": "5",
            "digest": "0x" + "07" * 32,
        },
    }


CHANNEL = ChannelRecord(
    key=ChannelKey(8453, Address(b"\x03" * 20), ChannelId(b"\x04" * 32)),
    origin="https://api.example:443",
    url="https://api.example/search",
    terms=ChannelTerms(*(Address(bytes([n]) * 20) for n in (5, 2, 1, 6))),
    salt=b"\x08" * 32,
    state="opening",
    deposit=100,
    opened_at=1,
)


def test_a_channel_is_followed_to_its_end() -> None:
    opened = replace(CHANNEL, state="open", open_tx=TxHash(b"\x0a" * 32))
    topped = replace(opened, deposit=150)
    used = replace(topped, signed=60, accepted=60, spent=55, receipt="e30")
    closed = replace(used, state="closed", settled=55, end_tx=TxHash(b"\x0b" * 32))
    steps = [None, CHANNEL, opened, topped, used, closed]
    found = [
        each
        for before, after in itertools.pairwise(steps)
        if after is not None
        for each in describe_change(before, after)
    ]
    assert [kind for kind, _ in found] == ["open", "top_up", "receipt", "settle", "close"]
    assert found[0][1]["terms"]["token"] == b"\x01" * 20
    assert found[1][1]["delta"] == 50
    assert found[2][1]["receipt_digest"] == receipt_digest("e30\n")
    assert found[3][1]["tx_hash"] == b"\x0b" * 32
    assert (found[4][1]["settled"], found[4][1]["returned"]) == (55, 95)
    assert all(fields["channel_id"] == CHANNEL.key.channel_id for _, fields in found)


def test_a_channel_that_never_opened_returns_nothing() -> None:
    assert describe_change(CHANNEL, CHANNEL) == []
    ((kind, fields),) = describe_change(CHANNEL, replace(CHANNEL, state="closed"))
    assert (kind, fields["deposit"], fields["returned"]) == ("close", 0, 0)
