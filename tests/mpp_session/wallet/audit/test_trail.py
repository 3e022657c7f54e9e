"""The trail appends in its caller's transaction, links each record, and never forks."""

import itertools
import json
import multiprocessing
import sqlite3
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.errors import InvariantError, StoreError
from channel.limits import AUDIT_TEXT_CHARS_MAX
from mpp_session.wallet.audit.canonical import canonical, hash_record, plain
from mpp_session.wallet.audit.trail import (
    SCHEMA,
    Trail,
    open_trail,
    read_entries,
    read_entry,
    trail_id,
)
from mpp_session.wallet.audit.verify import verify
from tests.mpp_session.wallet.audit.asks import TEXT

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=5), inner, max_size=3),
    ),
    max_leaves=8,
)


def connect(path: Path | str = ":memory:") -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=20)
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    return db


def nested(depth: int) -> list[object]:
    return [nested(depth - 1)] if depth else []


@settings(max_examples=60)
@given(value=VALUES)
def test_the_spelling_is_that_of_rfc_8785(value: object) -> None:
    record = {"x": plain(value, "x")}
    assert canonical(record) == rfc8785.dumps(record)


def test_each_record_holds_the_hash_of_the_one_before() -> None:
    db, trail = connect(), Trail()
    db.execute("BEGIN")
    numbers = [
        trail.append(db, "decision", at=1.5, agent="a", amount=10**30, tx_hash=b"\xab", empty=None),
        trail.append(db, "close", at=1.75),
    ]
    db.execute("COMMIT")
    assert numbers == [2, 3]
    rows = db.execute("SELECT seq, record, hash FROM trail ORDER BY seq").fetchall()
    previous = bytes(32)
    for seq, text, digest in rows:
        assert digest == sha256(b"\x00" + text.encode()).digest()
        record = json.loads(text)
        assert (record["v"], record["seq"], record["prev"]) == (1, seq, previous.hex())
        previous = digest
    genesis, decision, _ = (json.loads(text) for _, text, _ in rows)
    assert genesis["kind"] == "genesis"
    assert genesis["trail"] == trail_id(db)
    assert len(trail_id(db)) == 32
    assert decision | {"prev": ""} == {
        "v": 1,
        "seq": 2,
        "at": 1500,
        "prev": "",
        "kind": "decision",
        "agent": "a",
        "amount": "1" + "0" * 30,
        "tx_hash": "0xab",
    }
    assert [entry.seq for entry in read_entries(db, after=1, since=1.6)] == [3]
    assert read_entry(db, 9) is None


def test_a_record_is_undone_with_its_transaction() -> None:
    db, trail = connect(), Trail()
    db.execute("BEGIN")
    trail.append(db, "open", at=1)
    db.execute("ROLLBACK")
    assert trail_id(db) == ""
    assert list(read_entries(db)) == []


def test_text_that_an_agent_made_is_cut_and_never_fails() -> None:
    """Fails if an agent can stop a refusal's record by what it says."""
    db, trail = connect(), Trail()
    db.execute("BEGIN")
    trail.append(db, "offer", at=1, said="x" * (AUDIT_TEXT_CHARS_MAX + 1), odd="\ud800", nul="\0")
    fields = next(read_entries(db, after=1)).fields
    assert fields["said"] == "x" * (AUDIT_TEXT_CHARS_MAX - 1) + "…"
    assert fields["odd"] == "\\ud800"
    assert fields["nul"] == "\0"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Not a kind", {}),
        ("open", {"prev": "00"}),
        ("open", {"left": 0.5}),
        ("open", {"terms": {"ä": 1}}),
        ("open", {"terms": {1: 1}}),
        ("open", {"terms": nested(20)}),
        ("open", {"thing": object()}),
    ],
)
def test_what_has_no_form_is_refused(kind: str, fields: dict[str, Any]) -> None:
    db = connect()
    db.execute("BEGIN")
    with pytest.raises(InvariantError):
        Trail().append(db, kind, at=1, **fields)


def test_without_a_transaction_there_is_no_record() -> None:
    with pytest.raises(InvariantError, match="transaction"):
        Trail().append(connect(), "open", at=1)


def test_the_database_warns_who_changes_it_by_hand() -> None:
    db, trail = connect(), Trail()
    db.execute("BEGIN")
    trail.append(db, "open", at=1)
    db.execute("COMMIT")
    for statement in ("UPDATE trail SET record = '{}'", "DELETE FROM trail"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            db.execute(statement)


def append_many(path: Path, agent: str, count: int) -> None:
    db, trail = connect(path), Trail()
    for number in range(count):
        db.execute("BEGIN IMMEDIATE")
        trail.append(db, "voucher", at=number, agent=agent)
        db.execute("COMMIT")


def test_two_processes_never_fork_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "wallet.db"
    first = connect(path)
    first.execute("PRAGMA journal_mode = WAL")
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=append_many, args=(path, name, 40)) for name in "ab"]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    entries = list(read_entries(open_trail(path)))
    assert [entry.seq for entry in entries] == list(range(1, 82))
    assert sorted({entry.agent for entry in entries}) == ["", "a", "b"]
    for before, after in itertools.pairwise(entries):
        assert after.fields["prev"] == before.hash.hex()


def test_a_record_costs_little() -> None:
    """Fails if an append reads more than the last row: a voucher waits for it."""
    db, trail = connect(), Trail()
    db.execute("BEGIN")
    for _ in range(500):
        trail.append(db, "voucher", at=1, channel_id=b"\x01" * 32, voucher={"delta": 5})
    began = time.process_time()
    for _ in range(500):
        trail.append(db, "voucher", at=1, channel_id=b"\x01" * 32, voucher={"delta": 5})
    assert (time.process_time() - began) / 500 < 0.001


def test_a_file_without_a_trail_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found no file"):
        open_trail(tmp_path / "none.db")
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database, but long enough to be looked at" * 20)
    with pytest.raises(StoreError, match="cannot be read"):
        open_trail(other)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"a":' + "[" * 100_000,
        '{"agent":"","at":1e300,"kind":"open"}',
        '{"agent":"","at":-1,"kind":"open"}',
        '{"agent":"","at":"1","kind":"open"}',
        '{"agent":1,"at":1,"kind":"open"}',
    ],
)
def test_a_record_that_is_no_record_is_named(text: str) -> None:
    db = connect()
    db.execute("INSERT INTO trail VALUES (1, ?, ?)", (text, hash_record(text.encode())))
    assert not verify(db, b"", None).is_good
    with pytest.raises(StoreError, match=r"record 1 .* audit verify"):
        list(read_entries(db))
