"""Amounts are added up for whom they were spent, and asks come back for a replay."""

import pytest
from msgspec.structs import replace

from channel.errors import StoreError
from mpp_session.wallet.audit.records import decision_fields
from mpp_session.wallet.audit.sums import By, add_up, asks
from tests.mpp_session.wallet.audit.asks import make_ask, make_decision
from tests.mpp_session.wallet.audit.payments import AT, Writer, write_payments

NAMES = ("requests", "asked", "refused", "deposited", "signed", "settled", "returned")


def sums(by: By, writer: Writer | None = None) -> dict[str, tuple[int, ...]]:
    rows = add_up((writer or write_payments()).db, by)
    return {row.name: tuple(getattr(row, name) for name in NAMES) for row in rows}


def test_amounts_are_added_up_for_whom_they_were_spent() -> None:
    """A close settles 45 of 50: all 20 of the first task, and 25 of the second."""
    assert sums("task") == {
        "one": (1, 220, 100, 100, 20, 20, 55),
        "t": (1, 7, 7, 0, 0, 0, 0),
        "two": (1, 30, 0, 0, 30, 25, 0),
    }
    assert sums("agent") == {"a": (2, 250, 100, 100, 50, 45, 55), "b": (1, 7, 7, 0, 0, 0, 0)}
    assert sums("on_behalf_of")["ann"] == sums("task")["one"]
    assert list(sums("origin")) == ["https://api.example:443", "https://b.example:443"]


def test_a_charge_is_signed_and_a_second_settlement_adds_what_is_new() -> None:
    writer = Writer(":memory:")
    charge = make_ask(kind="charge", amount=9, total=9, channel_id=None, tariff=None, escrow=None)
    writer.decide(charge)
    request = make_ask(request_id="r2", total=100)  # the channel was used before
    writer.pay(request, 10, 10)
    channel = request.channel_id
    for settled in (95, 105, 105, 112):
        writer.add("settle", channel_id=channel, settled=settled)
    writer.add("settle", channel_id=b"\x09" * 32, settled=5)
    assert sums("agent", writer) == {"a": (2, 29, 0, 0, 29, 12, 0)}


def test_since_leaves_out_what_was_before() -> None:
    writer = write_payments()
    assert add_up(writer.db, "agent", since=AT + 10_000) == []
    assert list(asks(writer.db, since=AT + 10_000)) == []


def test_asks_come_back_once_each_with_their_amounts() -> None:
    found = list(asks(write_payments().db))
    assert [(ask.kind, ask.request_id, ask.amount, ask.total) for ask, _ in found] == [
        ("deposit", "r1", 100, 100),
        ("deposit", "r1", 100, 100),
        ("sign", "r1", 5, 5),
        ("sign", "r1", 10, 15),
        ("sign", "r1", 5, 20),
        ("sign", "r2", 30, 50),
        ("sign", "r3", 7, 5),
    ]
    assert [decision.action for _, decision in found] == ["ask", *["allow"] * 5, "deny"]
    assert [ask.is_first for ask, _ in found[2:5]] == [True, False, False]


def test_requests_are_forgotten_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpp_session.wallet.audit.sums._REMEMBERED", 1)
    writer = Writer(":memory:")
    for name in ("r1", "r2"):
        writer.decide(make_ask(request_id=name))
    writer.add(
        "voucher", request_id="r1", voucher={"delta": 1, "cumulative": 9, "request_total": 1}
    )
    assert [ask.request_id for ask, _ in asks(writer.db)] == ["r1", "r2"]


def test_a_record_that_is_no_ask_is_named() -> None:
    writer = Writer(":memory:")
    fields = decision_fields(make_ask(), make_decision())
    writer.add("decision", **(fields | {"ask": {"kind": "gift"}}))
    with pytest.raises(StoreError, match="record 2"):
        list(asks(writer.db))
    writer = Writer(":memory:")
    writer.decide(replace(make_ask(), request_id="r1"))
    writer.add("voucher", request_id="r1", voucher={})
    with pytest.raises(StoreError, match="record 3"):
        list(asks(writer.db))
    writer = Writer(":memory:")
    writer.decide(make_ask())
    writer.add("settle", channel_id=make_ask().channel_id, settled="many")
    with pytest.raises(StoreError, match="record 3"):
        add_up(writer.db, "agent")
