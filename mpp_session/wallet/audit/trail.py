"""The chain of records, in the wallet's database.

`hash = sha256(0x00 || canonical JSON of the record)`, and each record holds the hash of the record
before. The first record, of kind `genesis`, holds a random id and the version of the schema. The
triggers that refuse changes are a hint for people; `verify` is the proof.
"""

import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from channel.errors import InvariantError, StoreError
from channel.sql import parse_queries
from mpp_session.wallet.audit.canonical import (
    ZERO_HASH,
    canonical,
    cut_text,
    hash_record,
    milliseconds,
    plain,
)

__all__ = [
    "GENESIS",
    "INDEX_SCHEMA",
    "KINDS",
    "QUERIES",
    "SCHEMA",
    "VERSION",
    "Entry",
    "Trail",
    "open_trail",
    "read_entries",
    "read_entry",
    "trail_id",
]

VERSION: Final = 1
GENESIS: Final = "genesis"
KINDS: Final = (
    GENESIS,
    "offer",
    "decision",
    "approval",
    "mandate",
    "open",
    "voucher",
    "top_up",
    "charge",
    "receipt",
    "close",
    "settle",
    "refund",
    "freeze",
    "revoke",
    "policy",
    "checkpoint",
)
"""The usual kinds; a record may have another one."""

_SQL: Final = resources.files("mpp_session.wallet.audit") / "sql"
SCHEMA: Final = (_SQL / "schema.sql").read_text()
INDEX_SCHEMA: Final = (_SQL / "index.sql").read_text()
"""Makes the index of a trail anew; in a file of its own."""
QUERIES: Final = parse_queries((_SQL / "queries.sql").read_text())
_LAST: Final = QUERIES["load_last"]
_KIND: Final = re.compile("[a-z][a-z_]{0,31}")
_END_OF_TIME_MS: Final = 253_402_300_800_000
"""The year 10000, which no clock here reaches."""
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError)
_OWN: Final = frozenset({"v", "seq", "at", "prev", "kind", "agent", "hash"})


class Entry(msgspec.Struct, frozen=True):
    """One record as it was read; `verify` says whether it is true."""

    seq: int
    at: float
    """Unix seconds."""
    kind: str
    agent: str
    fields: Mapping[str, Any]
    """All members of the record, those above too."""
    hash: bytes


class Trail:
    """Appends to the trail; every method runs in the caller's transaction."""

    SCHEMA = SCHEMA

    def __init__(self) -> None:
        self.appended = 0
        """Records since the start, also of transactions that were undone: for a rough count."""

    def append(
        self, db: sqlite3.Connection, kind: str, *, at: float, agent: str = "", **fields: Any
    ) -> int:
        """Add a record, and return its number. The transaction makes it durable, or undoes it.

        Args:
            db: Within a transaction that may write.
            kind: One of `KINDS`, or a word of the same form.
            at: Unix seconds.
            agent: Whom it concerns; empty for the wallet itself.
            fields: JSON values, or bytes. Amounts may be integers; see `canonical.AMOUNTS`. What is
                None is left out. Never a key, a signature, a credential or a prompt.

        Raises:
            InvariantError: No transaction is open, or a value has no form in a record.
            sqlite3.IntegrityError: Another writer added a record of this number.
        """
        if not db.in_transaction:
            raise InvariantError("a record of the audit trail needs a transaction")
        last = db.execute(_LAST).fetchone()
        if last is None:
            self.begin(db, at=at)
            last = db.execute(_LAST).fetchone()
        return self._add(db, last[0] + 1, last[1], kind, at, agent, fields)

    def begin(self, db: sqlite3.Connection, *, at: float) -> None:
        """Add the first record to an empty trail, with a random id. So does `append`."""
        if db.execute(_LAST).fetchone() is not None:
            return
        for query in ("refuse_changes", "refuse_deletions"):
            db.execute(QUERIES[query])
        self._add(db, 1, ZERO_HASH, GENESIS, at, "", {"trail": secrets.token_hex(16)})

    def _add(  # noqa: PLR0917 -- the members of a record
        self,
        db: sqlite3.Connection,
        seq: int,
        prev: bytes,
        kind: str,
        at: float,
        agent: str,
        fields: Mapping[str, Any],
    ) -> int:
        if _KIND.fullmatch(kind) is None or not _OWN.isdisjoint(fields):
            raise InvariantError(
                f"{kind!r} is not a kind, or a field has a name of the trail's own"
            )
        try:
            record = {
                name: plain(value, name) for name, value in fields.items() if value is not None
            }
        except TypeError as error:
            raise InvariantError(f"audit record {kind}: {error}") from error
        record["v"] = VERSION
        record["seq"] = seq
        record["at"] = milliseconds(at)
        record["prev"] = prev.hex()
        record["kind"] = kind
        record["agent"] = cut_text(agent)
        text = canonical(record)
        db.execute(QUERIES["add"], (seq, text.decode(), hash_record(text)))
        self.appended += 1
        return seq


def open_trail(path: Path) -> sqlite3.Connection:
    """Open a wallet's database for reading, also while the wallet runs; close it at the end.

    Raises:
        StoreError: There is none, it cannot be read, or has no audit trail.
    """
    if not path.is_file():
        raise StoreError(f"expected a wallet's database at {path}, found no file")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            db.execute(QUERIES["try_trail"]).fetchone()
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise StoreError(
            f"the audit trail in {path} cannot be read: {error}; a copy of a running wallet needs "
            "wallet.db-wal as well: docs/guide/audit.md"
        ) from error
    return db


def trail_id(db: sqlite3.Connection) -> str:
    """Return the random id of a trail, or an empty text where it has no first record.

    Raises:
        StoreError: The first record cannot be read.
    """
    row = db.execute(QUERIES["load"], (1,)).fetchone()
    return "" if row is None else str(_read(row).fields.get("trail", ""))


def read_entries(
    db: sqlite3.Connection, *, after: int = 0, since: float | None = None
) -> Iterator[Entry]:
    """Yield the records after a number, in order, that were written since a Unix time.

    Raises:
        StoreError: One cannot be read; `verify` says more.
    """
    for row in db.execute(QUERIES["load_after"], (after,)):
        entry = _read(row)
        if since is None or entry.at >= since:
            yield entry


def read_entry(db: sqlite3.Connection, seq: int) -> Entry | None:
    """Return one record, or None.

    Raises:
        StoreError: It cannot be read.
    """
    row = db.execute(QUERIES["load"], (seq,)).fetchone()
    return None if row is None else _read(row)


def _read(row: tuple[Any, ...]) -> Entry:
    seq, text, digest = row
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        if not 0 <= fields["at"] < _END_OF_TIME_MS:
            raise ValueError(f"its time is {fields['at']}")
        return msgspec.convert(
            {
                "seq": seq,
                "at": fields["at"] / 1000,
                "kind": fields["kind"],
                "agent": fields["agent"],
                "fields": fields,
                "hash": digest,
            },
            Entry,
        )
    except _UNREADABLE as error:
        raise StoreError(
            f"record {seq} of the audit trail cannot be read: {error}; "
            "run `mpp-session audit verify`"
        ) from error
