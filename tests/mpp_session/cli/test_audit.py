"""`mpp-session audit` reads a wallet's trail while the wallet may add to it."""

import csv
import io
import json
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest
import rfc8785

from mpp_session.wallet.audit.checkpoints import Checkpoints
from tests.mpp_session.cli.conftest import Run
from tests.mpp_session.wallet.audit.payments import CLOSE_TX, Writer, write_payments


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "wallet"
    folder.mkdir()
    return folder


@pytest.fixture
def wallet(home: Path) -> Writer:
    """A wallet that runs: its database stays open."""
    writer = write_payments(home / "wallet.db")
    writer.db.execute("BEGIN IMMEDIATE")
    notes = Checkpoints.open(
        writer.db, writer.trail, home / "trail.checkpoints", b"s" * 32, writer.at
    )
    writer.db.execute("COMMIT")
    notes.publish(home / "trail.pub")
    made = notes.read(writer.db, writer.at)
    assert made is not None
    notes.write(made)
    writer.db.execute("BEGIN IMMEDIATE")
    notes.note(writer.db, writer.at)
    writer.db.execute("COMMIT")
    return writer


def test_a_whole_trail_is_good_and_a_changed_one_exits_with_its_record(
    run: Run, wallet: Writer, home: Path
) -> None:
    done = run("audit", "verify", "--home", str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "unchanged: 17 records, 16 of them under 1 checkpoint\n"
    other = "mpp-session-trail-" + "0" * 32
    done = run("audit", "verify", "--home", str(home), "--key", other)
    assert (done.returncode, done.stdout) == (2, "")
    wallet.db.execute("DROP TRIGGER trail_keeps")
    wallet.db.execute("UPDATE trail SET record = replace(record, '\"20\"', '\"10\"')")
    done = run("audit", "verify", "--home", str(home))
    assert done.returncode == 1
    assert done.stdout.startswith("record 10: changed: ")
    assert len(done.stdout.splitlines()) == 1
    found = json.loads(run("audit", "verify", "--home", str(home), "--json").stdout)
    assert (found["good"], found["finding"]["seq"]) == (False, 10)


def test_a_checkpoint_that_is_gone_is_found(run: Run, wallet: Writer, home: Path) -> None:
    del wallet
    kept = home.parent / "kept"
    (home / "trail.checkpoints").rename(kept)
    done = run("audit", "verify", "--home", str(home))
    assert done.returncode == 1
    assert "record 17: tells of a checkpoint of 16 records" in done.stdout
    done = run("audit", "verify", "--home", str(home), "--checkpoints", str(kept))
    assert done.returncode == 0


def test_a_story_is_told_and_what_an_agent_says_is_marked(
    run: Run, wallet: Writer, home: Path
) -> None:
    del wallet
    done = run("audit", "show", CLOSE_TX, "--home", str(home))
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "ask deposit of 100 to POST" in lines[0]
    assert lines[1].strip() == "the agent says: =look at the  [31m election polls"
    assert "\x1b" not in done.stdout
    assert "signed 3 times" in done.stdout
    steps = json.loads(run("audit", "show", "r1", "--home", str(home), "--json").stdout)
    assert [step["seq"] for step in steps] == sorted(step["seq"] for step in steps)
    done = run("audit", "show", "r9", "--home", str(home))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no record holds r9" in done.stderr


def test_records_are_found_by_words(run: Run, wallet: Writer, home: Path) -> None:
    del wallet
    done = run("audit", "search", "election", "polls", "--home", str(home), "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["ask"]["request_id"] for record in found} == {"r1"}
    done = run("audit", "search", "--agent", "b", "--home", str(home), "--since", "2026-01-01")
    assert "rule_denied" in done.stdout
    done = run("audit", "search", 'odd" OR *', "--home", str(home))
    assert (done.returncode, done.stdout) == (0, "no records\n")


def test_an_exported_record_has_the_hash_that_it_says(run: Run, wallet: Writer, home: Path) -> None:
    del wallet
    lines = run("audit", "export", "--home", str(home)).stdout.splitlines()
    previous = "00" * 32
    for line in lines:
        record = json.loads(line)
        digest = record.pop("hash")
        assert record["prev"] == previous
        assert digest == sha256(b"\0" + rfc8785.dumps(record)).hexdigest()
        previous = digest
    assert len(lines) == 17


def test_no_cell_of_an_export_is_a_formula(run: Run, wallet: Writer, home: Path) -> None:
    del wallet
    file = home / "trail.csv"
    run("audit", "export", "--format", "csv", "--home", str(home), "--output", str(file))
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert len(rows) == 17
    assert rows[1]["reason"].startswith("'=look")
    assert (rows[1]["amount"], rows[1]["origin"]) == ("100", "https://api.example:443")
    assert not [cell for row in rows for cell in row.values() if cell.startswith(tuple("=+-@"))]


def test_amounts_are_added_up(run: Run, wallet: Writer, home: Path) -> None:
    del wallet
    done = run("audit", "report", "--by", "task", "--home", str(home))
    assert done.returncode == 0
    assert "two" in done.stdout
    rows = json.loads(run("audit", "report", "--home", str(home), "--json").stdout)
    assert [(row["name"], row["signed"], row["returned"]) for row in rows] == [
        ("a", "50", "55"),
        ("b", "0", "0"),
    ]


def test_a_wallet_without_records_says_so(run: Run, home: Path) -> None:
    Writer(home / "wallet.db")
    for command in ("search", "report"):
        assert run("audit", command, "--home", str(home)).stdout == "no records\n"
    done = run("audit", "verify", "--home", str(home))
    assert done.stdout == "unchanged: 0 records, 0 of them under 0 checkpoints\n"
    (home / "trail.pub").write_bytes(b"\xff")
    assert run("audit", "verify", "--home", str(home)).returncode == 2


def test_a_database_without_a_trail_is_named(run: Run, home: Path) -> None:
    sqlite3.connect(home / "wallet.db").execute("CREATE TABLE other (x)")
    done = run("audit", "report", "--home", str(home))
    assert done.returncode == 1
    assert "no such table: trail" in done.stderr
