"""A payment is found by words and by each identifier it left, and shown from end to end."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.errors import StoreError
from mpp_session.wallet.audit.index import Index
from mpp_session.wallet.audit.records import receipt_digest
from mpp_session.wallet.audit.story import tell
from mpp_session.wallet.types import Purpose
from tests.mpp_session.wallet.audit.asks import make_ask
from tests.mpp_session.wallet.audit.payments import (
    AT,
    CHANNEL_ID,
    CLOSE_TX,
    OPEN_TX,
    Writer,
    write_payments,
)


@pytest.fixture(scope="module")
def writer() -> Writer:
    return write_payments()


@pytest.fixture(scope="module")
def index(writer: Writer) -> Iterator[Index]:
    with Index.open(writer.db, None) as opened:
        yield opened


def kinds(index: Index, identifier: str) -> list[str]:
    return [step.kind for step in tell(index, identifier)]


ALL_OF_R1 = [
    "decision",
    "approval",
    "approval",
    "decision",
    "open",
    "decision",
    "voucher",
    "receipt",
    "settle",
    "close",
]


@pytest.mark.parametrize("identifier", ["r1", "ap1"])
def test_a_request_leads_to_its_settlement(index: Index, identifier: str) -> None:
    assert kinds(index, identifier) == ALL_OF_R1
    steps = tell(index, identifier)
    assert steps[0].text.startswith("ask deposit of 100 to POST https://api.example:443/search")
    voucher = steps[6]
    assert voucher.vouchers == 3
    assert voucher.text == "signed 3 times, from 5 to 20: 20 for r1"
    assert steps[0].said == "=look at the \x1b[31m election polls"
    assert all(step.text.isprintable() for step in steps)


def test_another_request_of_the_channel_is_not_in_its_story(index: Index) -> None:
    assert kinds(index, "r2") == ["open", "decision", "voucher", "settle", "close"]
    assert kinds(index, "r3") == ["decision"]


@pytest.mark.parametrize(
    "identifier", [CHANNEL_ID, CHANNEL_ID[2:].upper(), OPEN_TX, CLOSE_TX, f" {CLOSE_TX}\n"]
)
def test_a_settlement_leads_back_to_its_requests(index: Index, identifier: str) -> None:
    expected = [*ALL_OF_R1[:8], "decision", "voucher", *ALL_OF_R1[8:]]
    assert kinds(index, identifier) == expected


def test_a_receipt_leads_to_its_channel(index: Index) -> None:
    assert kinds(index, "cmVjZWlwdA") == kinds(index, receipt_digest("cmVjZWlwdA"))
    assert "close" in kinds(index, "cmVjZWlwdA")


@pytest.mark.parametrize("identifier", ["", "r9", '" OR 1', "0x" + "ff" * 32])
def test_what_no_record_holds_has_no_story(index: Index, identifier: str) -> None:
    assert tell(index, identifier) == []


def test_words_and_filters_find_records(index: Index) -> None:
    by_words = index.search("elect POLL")
    assert [entry.kind for entry in by_words] == ["decision"] * 3  # two deposits, one voucher
    assert by_words == sorted(by_words, key=lambda entry: -entry.seq)
    assert [entry.agent for entry in index.search("rule_denied b.example")] == ["b"]
    assert {entry.kind for entry in index.search(kind="voucher")} == {"voucher"}
    assert [entry.fields["kind"] for entry in index.search(agent="b")] == ["decision"]
    assert len(index.search(count=2)) == 2
    assert index.search(since=AT + 10_000) == []
    assert index.search("nothing like it") == []


@settings(max_examples=80)
@given(
    words=st.text(max_size=20)
    | st.sampled_from(['"', '""', "a* OR", "NEAR(", "kind:x", "^a", "\0", "a AND"])
)
def test_words_are_never_operators(index: Index, words: str) -> None:
    for entry in index.search(words):
        assert entry.seq


def test_the_index_catches_up_and_is_made_anew_for_another_trail(tmp_path: Path) -> None:
    path, writer = tmp_path / "trail.index", write_payments(tmp_path / "wallet.db")

    def find(words: str, db: sqlite3.Connection = writer.db) -> int:
        with Index.open(db, path) as index:
            return len(index.search(words))

    assert find("election") == 3
    writer.add("policy", policy_revision=8, policy_hash="h", reason="election day")
    assert find("election") == 4
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    other = Writer(":memory:")
    assert find("election", other.db) == 0
    assert find("election") == 4
    path.write_bytes(b"not an index" * 100)
    assert find("election") == 4
    path.unlink()
    path.mkdir()
    assert find("election") == 4


def test_an_agent_cannot_put_itself_into_the_story_of_another() -> None:
    """A trace's id is the agent's word; it leads to its requests where nothing else has it."""
    writer = write_payments()
    for name, trace in (("r8", "r1"), ("r9", "trace-9")):
        purpose = Purpose(trace_id=trace, reason="r1")
        writer.decide(make_ask(request_id=name, purpose=purpose, channel_id=None), "deny")
    with Index.open(writer.db, None) as index:
        assert kinds(index, "r1") == ALL_OF_R1
        assert [step.seq for step in tell(index, "trace-9")] == [18]


def test_a_voucher_that_is_none_stops_no_story() -> None:
    writer = Writer(":memory:")
    for delta in ("many", "9" * 5000, None):
        writer.add("voucher", request_id="r1", voucher={"cumulative": "5", "delta": delta})
    writer.add("voucher", request_id="r1", voucher=[])
    with Index.open(writer.db, None) as index:
        (step,) = tell(index, "r1")
    assert step.text.endswith(": 0 for r1")


def test_a_record_that_cannot_be_read_is_named() -> None:
    writer = Writer(":memory:")
    writer.add("open")
    writer.db.execute("INSERT INTO trail VALUES (3, '[]', x'00')")
    with pytest.raises(StoreError, match="record 3"), Index.open(writer.db, None):
        pass
