"""Whether a trail is the one that the wallet wrote, and the first record that is not.

The chain of hashes finds a record that was changed, removed, moved or added. The checkpoints find
what a chain alone does not: a cut tail, a chain that was hashed anew, and another wallet's
database. After the last checkpoint only the chain speaks; docs/guide/audit.md says what follows.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from channel.errors import StoreError
from mpp_session.wallet.audit.canonical import ZERO_HASH, canonical, hash_record
from mpp_session.wallet.audit.merkle import Tree
from mpp_session.wallet.audit.notes import Note, PublicKey, TornNotesError, name_trail, split_notes
from mpp_session.wallet.audit.trail import GENESIS, QUERIES, VERSION

__all__ = ["Finding", "Report", "verify", "verify_files"]


class Finding(msgspec.Struct, frozen=True):
    """Something that the wallet did not write so."""

    seq: int
    """The first record that is concerned, or that is missing."""
    what: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared, and the first thing that is wrong."""

    records: int
    checkpoints: int
    covered: int
    """The first so many records are those of a signed checkpoint."""
    finding: Finding | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with what is there."""
        return self.finding is None

    def __str__(self) -> str:
        """Return the result as one line."""
        if self.finding is not None:
            return f"record {self.finding.seq}: {self.finding.what}"
        return (
            f"unchanged: {_plural(self.records)}, {self.covered} of them under "
            f"{_plural(self.checkpoints, 'checkpoint')}"
        )


def verify(db: sqlite3.Connection, notes: bytes, key: PublicKey | None) -> Report:
    """Compare a trail with its own hashes and with the checkpoints.

    Args:
        db: Its database, read in one transaction.
        notes: The content of the file of checkpoints; empty where none was made yet.
        key: That of the trail, kept where no program can change it. None where the owner has none:
            then `notes` must be empty, and the chain alone is followed.
    """
    found: list[Finding] = []
    held = _read_notes(notes, key, found)
    chain = _Chain(key)
    tree = Tree()
    places = {note.checkpoint.size: note for note in held}
    covered = good = 0
    for row in db.execute(QUERIES["load_bytes"]):
        problem = chain.follow(*row)
        if problem is not None:
            found.append(Finding(chain.seq, problem))
            break
        tree.add(row[2])
        note = places.get(tree.size)
        if note is None:
            continue
        if note.checkpoint.root != tree.root():
            what = f"changed since the checkpoint of {_plural(tree.size)}, and hashed anew"
            found.append(Finding(covered + 1, what))
            break
        covered, good = tree.size, good + 1
    else:
        found += _missing(tree.size, held, chain.noted)
    first = min(found, key=lambda each: each.seq, default=None)
    return Report(records=tree.size, checkpoints=good, covered=covered, finding=first)


def verify_files(database: sqlite3.Connection, notes: Path, key: PublicKey | None) -> Report:
    """Compare a trail with a file of checkpoints, also while the wallet adds to both.

    Raises:
        StoreError: A file cannot be read.
    """
    before = _read_file(notes)
    try:
        database.execute("BEGIN")
        try:
            (size,) = database.execute(QUERIES["count"]).fetchone()
            # The snapshot stands. Notes that were written since may be of later records.
            content = _read_file(notes)
            return verify(database, _settled(before, content, size), key)
        finally:
            database.execute("COMMIT")
    except sqlite3.Error as error:
        raise StoreError(f"the audit trail cannot be read: {error}") from error


class _Chain:
    """What the next record must be."""

    def __init__(self, key: PublicKey | None) -> None:
        self._name = None if key is None else key.name
        self._prev = ZERO_HASH
        self.seq = 0
        self.noted: list[tuple[int, int, str]] = []
        """The checkpoints that the trail itself tells of: record, size and root."""

    def follow(self, seq: object, text: object, digest: object) -> str | None:
        """Return what is wrong with the next record, or None."""
        self.seq += 1
        if seq != self.seq:
            return f"missing: the next record has number {seq}"
        if not isinstance(text, bytes) or not isinstance(digest, bytes):
            return "not a record"
        if hash_record(text) != digest:
            return "changed: its hash is of another content"
        try:
            record = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return "not a record"
        if canonical(record) != text:
            return "not in the form that the wallet writes"
        problem = self._place(record)
        self._prev = digest
        return problem

    def _place(self, record: dict[str, Any]) -> str | None:
        if record.get("v") != VERSION:
            return f"of version {record.get('v')!r}, expected {VERSION}: use the newest mpp-session"
        if record.get("seq") != self.seq:
            return f"moved: it says that it is record {record.get('seq')!r}"
        if record.get("prev") != self._prev.hex():
            return "its `prev` is not the hash of the record before"
        kind = record.get("kind")
        if (kind == GENESIS) != (self.seq == 1):
            return f"of kind {kind!r}: the first record alone is the {GENESIS}"
        if kind == GENESIS and self._name not in (None, name_trail(str(record.get("trail")))):
            return f"the first record of another trail than {self._name}"
        if kind == "checkpoint":
            self.noted.append((self.seq, record.get("size", 0), str(record.get("note"))))
        return None


def _read_notes(notes: bytes, key: PublicKey | None, found: list[Finding]) -> Sequence[Note]:
    """Return the notes that the key vouches for; add what is wrong with the file."""
    try:
        held = split_notes(notes)
    except TornNotesError as error:
        held = error.notes
        found.append(Finding(_size(held) + 1, f"the file of checkpoints is damaged: {error}"))
    if not held:
        return held
    if key is None:
        found.append(Finding(1, "there are checkpoints, and no public key to check them with"))
        return []
    if not key.verifies(held[-1]):
        found.append(Finding(1, f"the last checkpoint is not signed by the key of {key.name}"))
        return []
    before, size = ZERO_HASH, 0
    for note in held:
        if note.checkpoint.after != before or note.checkpoint.size <= size:
            found.append(Finding(size + 1, "a checkpoint is missing, was changed or was moved"))
            break
        before, size = note.hash, note.checkpoint.size
    return held


def _missing(
    size: int, held: Sequence[Note], noted: Sequence[tuple[int, int, str]]
) -> list[Finding]:
    """Return what trail and checkpoints say of each other and is not there."""
    last = _size(held)
    if last > size:
        return [Finding(size + 1, f"missing: the last checkpoint is of {_plural(last)}")]
    hashes = {note.hash.hex() for note in held}
    return [
        Finding(
            seq, f"tells of a checkpoint of {of} records that is not in the file of checkpoints"
        )
        for seq, of, note in noted
        if note not in hashes
    ][:1]


def _size(held: Sequence[Note]) -> int:
    return held[-1].checkpoint.size if held else 0


def _plural(count: int, noun: str = "record") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _settled(before: bytes, content: bytes, size: int) -> bytes:
    """Return the notes without those that were added since, of more records than there were."""
    if not content.startswith(before):
        return content
    try:
        notes = split_notes(content)
    except TornNotesError as error:
        notes = error.notes
        if len(before) > (notes[-1].end if notes else 0):
            return content  # it was damaged before, too
    ends = [note.end for note in notes if note.end <= len(before) or note.checkpoint.size <= size]
    return content[: ends[-1]] if ends else b""


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreError(f"the checkpoints {path} cannot be read: {error.strerror}") from error
