"""Every change of a trail is found: each record, each hash, each end, each checkpoint."""

import json
import sqlite3
from base64 import b64decode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.errors import ConfigError, StoreError
from mpp_session.wallet.audit.canonical import canonical, hash_record
from mpp_session.wallet.audit.checkpoints import Checkpoints
from mpp_session.wallet.audit.merkle import Tree
from mpp_session.wallet.audit.notes import PublicKey, SigningKey, split_notes
from mpp_session.wallet.audit.trail import SCHEMA, Trail, trail_id
from mpp_session.wallet.audit.verify import Report, verify, verify_files

SECRET = b"s" * 32


class Written(NamedTuple):
    """A trail with checkpoints, in memory."""

    db: sqlite3.Connection
    notes: bytes
    key: PublicKey
    covered: int

    def rows(self) -> list[tuple[int, str, bytes]]:
        return self.db.execute("SELECT seq, record, hash FROM trail ORDER BY seq").fetchall()

    def report(self, notes: bytes | None = None, key: PublicKey | None = None) -> Report:
        return verify(self.db, self.notes if notes is None else notes, key or self.key)


def write(path: Path, groups: list[int]) -> Written:
    """Append so many records before each checkpoint, and one after the last."""
    path.unlink(missing_ok=True)
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    trail = Trail()
    db.execute("BEGIN")
    checkpoints = Checkpoints.open(db, trail, path, SECRET, 1.0)
    covered = 0
    for at, count in enumerate(groups):
        for number in range(count):
            trail.append(db, "decision", at=at, agent="a", number=number, reason="x")
        made = checkpoints.read(db, at)
        assert made is not None
        checkpoints.write(made)
        checkpoints.note(db, at)
        covered = made.size
    trail.append(db, "close", at=99)
    db.execute("COMMIT")
    for name in ("trail_keeps", "trail_grows"):
        db.execute(f"DROP TRIGGER {name}")
    checkpoints.close()
    return Written(db, path.read_bytes(), checkpoints.public_key, covered)


def rehash(db: sqlite3.Connection) -> None:
    """Make the chain whole again, as one would who knows how it is made."""
    previous = bytes(32)
    rows = db.execute("SELECT seq, record FROM trail ORDER BY seq").fetchall()
    for place, (seq, text) in enumerate(rows, 1):
        record = json.loads(text) | {"seq": place, "prev": previous.hex()}
        encoded = canonical(record)
        previous = hash_record(encoded)
        db.execute("DELETE FROM trail WHERE seq = ?", (seq,))
        db.execute("INSERT INTO trail VALUES (?, ?, ?)", (place, encoded.decode(), previous))


Mutation = Callable[[Written, Any], None]


def edit_member(trail: Written, draw: Any) -> None:
    seq, text, _ = draw(st.sampled_from(trail.rows()))
    record = json.loads(text)
    name = draw(st.sampled_from(sorted(record)))
    record[name] = record[name] + 1 if isinstance(record[name], int) else record[name] + "0"
    trail.db.execute("UPDATE trail SET record = ? WHERE seq = ?", (canonical(record).decode(), seq))


def edit_spelling(trail: Written, draw: Any) -> None:
    seq, text, _ = draw(st.sampled_from(trail.rows()))
    trail.db.execute("UPDATE trail SET record = ? WHERE seq = ?", (text + " ", seq))


def edit_hash(trail: Written, draw: Any) -> None:
    seq, _, digest = draw(st.sampled_from(trail.rows()))
    changed = bytes([digest[0] ^ 1]) + digest[1:]
    trail.db.execute("UPDATE trail SET hash = ? WHERE seq = ?", (changed, seq))


def edit_number(trail: Written, draw: Any) -> None:
    seq, _, _ = draw(st.sampled_from(trail.rows()))
    trail.db.execute("UPDATE trail SET seq = ? WHERE seq = ?", (seq + 1000, seq))


def store_garbage(trail: Written, draw: Any) -> None:
    seq, _, _ = draw(st.sampled_from(trail.rows()))
    text = draw(st.sampled_from(["", "[]", "\0", "{", b"\xff", b"{}", 1, '{"v":1}']))
    digest = hash_record(text.encode() if isinstance(text, str) else b"")
    trail.db.execute("UPDATE trail SET record = ?, hash = ? WHERE seq = ?", (text, digest, seq))


def delete_row(trail: Written, draw: Any) -> None:
    seq = draw(st.integers(1, trail.covered))
    trail.db.execute("DELETE FROM trail WHERE seq = ?", (seq,))


def cut_tail(trail: Written, draw: Any) -> None:
    seq = draw(st.integers(1, trail.covered))
    trail.db.execute("DELETE FROM trail WHERE seq >= ?", (seq,))


def delete_and_rehash(trail: Written, draw: Any) -> None:
    delete_row(trail, draw)
    rehash(trail.db)


def edit_and_rehash(trail: Written, draw: Any) -> None:
    seq = draw(st.integers(1, trail.covered))
    (text,) = trail.db.execute("SELECT record FROM trail WHERE seq = ?", (seq,)).fetchone()
    record = json.loads(text)
    name = draw(st.sampled_from(sorted(record.keys() - {"seq", "prev"})))
    record[name] = record[name] + 1 if isinstance(record[name], int) else record[name] + "0"
    trail.db.execute("UPDATE trail SET record = ? WHERE seq = ?", (json.dumps(record), seq))
    rehash(trail.db)


def swap(trail: Written, draw: Any) -> None:
    rows = trail.rows()
    first = draw(st.integers(0, len(rows) - 2))
    second = draw(st.integers(first + 1, len(rows) - 1))
    for at, to in ((first, second), (second, first)):
        trail.db.execute(
            "UPDATE trail SET record = ?, hash = ? WHERE seq = ?", (*rows[to][1:], rows[at][0])
        )


def insert(trail: Written, draw: Any) -> None:
    rows = trail.rows()
    _, text, digest = draw(st.sampled_from(rows))
    trail.db.execute("INSERT INTO trail VALUES (?, ?, ?)", (len(rows) + 1, text, digest))


def insert_and_rehash(trail: Written, draw: Any) -> None:
    seq = draw(st.integers(1, trail.covered))
    for (later,) in trail.db.execute(
        "SELECT seq FROM trail WHERE seq >= ? ORDER BY seq DESC", (seq,)
    ).fetchall():
        trail.db.execute("UPDATE trail SET seq = seq + 1 WHERE seq = ?", (later,))
    text = '{"agent":"a","at":1,"kind":"decision","v":1}'
    trail.db.execute("INSERT INTO trail VALUES (?, ?, x'00')", (seq, text))
    rehash(trail.db)


def replace_genesis(trail: Written, draw: Any) -> None:
    del draw
    (text,) = trail.db.execute("SELECT record FROM trail WHERE seq = 1").fetchone()
    record = json.dumps(json.loads(text) | {"trail": "0" * 32})
    trail.db.execute("UPDATE trail SET record = ? WHERE seq = 1", (record,))
    rehash(trail.db)


MUTATIONS: list[Mutation] = [
    edit_member,
    edit_spelling,
    edit_hash,
    edit_number,
    store_garbage,
    delete_row,
    cut_tail,
    delete_and_rehash,
    edit_and_rehash,
    swap,
    insert,
    insert_and_rehash,
    replace_genesis,
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "trail.checkpoints"


GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=3)


@settings(max_examples=50)
@given(data=st.data())
def test_every_change_of_the_database_is_found(path: Path, data: st.DataObject) -> None:
    """agent-bom#3697: a chain alone does not see a cut tail, nor one that was hashed anew."""
    trail = write(path, data.draw(GROUPS))
    untouched = trail.report()
    assert untouched.is_good, untouched
    assert (untouched.covered, untouched.records) == (trail.covered, trail.covered + 2)
    data.draw(st.sampled_from(MUTATIONS))(trail, data.draw)
    found = trail.report()
    assert not found.is_good
    assert found.finding is not None
    assert 1 <= found.finding.seq <= trail.covered + 3


@settings(max_examples=30)
@given(data=st.data())
def test_every_change_of_the_checkpoints_is_found(path: Path, data: st.DataObject) -> None:
    trail = write(path, data.draw(GROUPS))
    way = data.draw(st.sampled_from(["cut", "edit", "remove", "repeat", "sign", "none"]))
    notes = split_notes(trail.notes)
    ends = [0, *(note.end for note in notes)]
    if way == "cut":
        changed = trail.notes[: data.draw(st.integers(0, len(trail.notes) - 1))]
    elif way == "edit":
        place = data.draw(st.integers(0, len(trail.notes) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != trail.notes[place]))
        changed = trail.notes[:place] + bytes([byte]) + trail.notes[place + 1 :]
    elif way in {"remove", "repeat"}:
        index = data.draw(st.integers(0, len(notes) - 1))
        begin, end = ends[index], ends[index + 1]
        again = trail.notes[begin:end] * (2 if way == "repeat" else 0)
        changed = trail.notes[:begin] + again + trail.notes[end:]
    elif way == "sign":
        other = SigningKey(b"o" * 32, trail_id(trail.db))
        changed = b"".join(other.sign(note.checkpoint) for note in notes)
        assert not trail.report(changed, other.public).is_good  # the trail tells of the others
    else:
        changed = b""
    assert not trail.report(changed).is_good


def test_another_wallets_database_is_named(path: Path) -> None:
    first, second = write(path, [2]), write(path, [2])
    assert "another trail" in str(verify(second.db, first.notes, first.key))
    assert "not signed by the key" in str(verify(second.db, first.notes, second.key))


def test_a_report_is_one_line(path: Path) -> None:
    trail = write(path, [3, 2])
    assert str(trail.report()) == "unchanged: 9 records, 7 of them under 2 checkpoints"
    assert "no public key" in str(verify(trail.db, trail.notes, None))
    trail.db.execute("DELETE FROM trail WHERE seq > 5")
    assert str(trail.report()) == "record 6: missing: the last checkpoint is of 7 records"


def test_without_checkpoints_the_chain_alone_is_followed(path: Path) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    db.execute("BEGIN")
    Trail().append(db, "open", at=1)
    del path
    assert verify(db, b"", None).covered == 0
    assert verify(db, b"", None).is_good


def root_of(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else sha256(b"").digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + root_of(leaves[:split]) + root_of(leaves[split:])).digest()


def test_the_tree_is_that_of_rfc_6962() -> None:
    leaves = [sha256(bytes([n])).digest() for n in range(70)]
    tree = Tree()
    assert tree.root() == root_of([])
    for size, leaf in enumerate(leaves, 1):
        tree.add(leaf)
        assert (tree.size, tree.root()) == (size, root_of(leaves[:size]))


def test_a_note_is_signed_as_c2sp_says(path: Path) -> None:
    """The signature is plain Ed25519, so that other tools verify it: here, cryptography."""
    trail = write(path, [1])
    text, _, signatures = trail.notes.decode().partition("\n\n")
    dash, name, signed = signatures.rstrip("\n").split(" ")
    shown_name, key_id, encoded = str(trail.key).split("+", 2)
    assert (dash, name) == ("—", shown_name)
    point = b64decode(encoded)
    assert point[:1] == b"\x01"
    assert b64decode(signed)[:4].hex() == key_id
    assert sha256(name.encode() + b"\n" + point).hexdigest()[:8] == key_id
    verifier = Ed25519PublicKey.from_public_bytes(point[1:])
    verifier.verify(b64decode(signed)[4:], text.encode() + b"\n")
    origin, size, root, *_ = text.split("\n")
    assert (origin, int(size)) == (name, trail.covered)
    assert b64decode(root) == root_of([row[2] for row in trail.rows()[: trail.covered]])


def test_a_public_key_is_read_strictly() -> None:
    key = SigningKey(SECRET, "0" * 32).public
    assert PublicKey.parse(f" {key}\n") == key
    for text in ("", "x+y", "x+y+A", str(key)[:-4], str(key).replace("mpp", "npp"), f"{key}="):
        with pytest.raises(ConfigError, match="public key of an audit trail"):
            PublicKey.parse(text)
    with pytest.raises(ConfigError, match="32 bytes"):
        SigningKey(b"short", "0" * 32)


def test_files_are_compared_while_the_wallet_adds_to_them(tmp_path: Path) -> None:
    """A note of records that came after the snapshot is no finding."""
    trail = write(tmp_path / "notes", [2, 2])
    early = tmp_path / "early"
    first = split_notes(trail.notes)[0]

    class Adding(type(early)):  # type: ignore[misc]
        """A file to which the wallet adds a note between two looks."""

        looks = 0

        def read_bytes(self) -> bytes:
            type(self).looks += 1
            return trail.notes[: first.end] if self.looks == 1 else trail.notes

    trail.db.execute("DELETE FROM trail WHERE seq > ?", (first.checkpoint.size + 1,))
    report = verify_files(trail.db, Adding(early), trail.key)
    assert report.is_good, report
    assert report.covered == first.checkpoint.size
    assert not verify_files(trail.db, tmp_path / "notes", trail.key).is_good
    with pytest.raises(StoreError, match="cannot be read"):
        verify_files(trail.db, tmp_path, trail.key)


def test_a_signature_is_checked_and_not_only_the_hash(path: Path) -> None:
    trail = write(path, [1])
    (note,) = split_notes(trail.notes)
    place = trail.notes.rindex(b" ") + 20
    changed = b"A" if trail.notes[place : place + 1] != b"A" else b"B"
    forged = trail.notes[:place] + changed + trail.notes[place + 1 :]
    assert trail.key.verifies(note)
    assert not trail.key.verifies(split_notes(forged)[0])
    assert "not signed by the key" in str(trail.report(forged))


def test_a_chain_that_is_hashed_right_must_still_be_one(path: Path) -> None:
    """After the last checkpoint, where no root would tell."""
    trail = write(path, [1])
    last = trail.rows()[-1]
    record = json.loads(last[1])

    def with_last(text: str) -> str:
        trail.db.execute(
            "UPDATE trail SET record = ?, hash = ? WHERE seq = ?",
            (text, hash_record(text.encode()), last[0]),
        )
        return str(trail.report())

    for member, value, said in (
        ("v", 2, "of version 2, expected 1"),
        ("seq", 9, "it says that it is record 9"),
        ("prev", "00", "`prev` is not the hash"),
        ("kind", "genesis", "the first record alone"),
    ):
        assert said in with_last(canonical(record | {member: value}).decode())
    assert "not in the form" in with_last(json.dumps(record))
    trail.db.execute("UPDATE trail SET record = x'ff' WHERE seq = ?", (last[0],))
    assert "not a record" in str(trail.report())


def test_a_file_that_was_damaged_before_is_found_while_it_grows(tmp_path: Path) -> None:
    trail = write(tmp_path / "notes", [2])

    class Growing(type(tmp_path)):  # type: ignore[misc]
        """A file that grows between two looks."""

        looks: ClassVar[list[bytes]] = []

        def read_bytes(self) -> bytes:
            return self.looks.pop(0)

    part = trail.notes[:40]
    for looks, is_good in (
        ([trail.notes, trail.notes + part], True),  # the wallet writes the next one now
        ([trail.notes + part, trail.notes + part], False),
        ([trail.notes, trail.notes[:-9] + part], False),
        ([b"", trail.notes], True),
    ):
        Growing.looks = looks
        report = verify_files(trail.db, Growing(tmp_path), trail.key)
        assert report.is_good is is_good, report
    trail.db.execute("DROP TABLE trail")
    with pytest.raises(StoreError, match="no such table"):
        verify_files(trail.db, tmp_path / "notes", trail.key)
