"""Finds records by words and by identifiers, in a file of its own beside the trail.

The trail is only read, so appending costs nothing for it. The index catches up whenever it is
opened, can be deleted at any time, and is made anew for another trail.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from channel.errors import StoreError
from channel.files import create_own
from mpp_session.wallet.audit.trail import (
    INDEX_SCHEMA,
    QUERIES,
    Entry,
    read_entries,
    read_entry,
    trail_id,
)

__all__ = ["LINKS", "UNTRUSTED", "Index"]

LINKS: Final = frozenset(
    {
        "approval_id",
        "challenge_id",
        "channel_id",
        "digest",
        "receipt_digest",
        "reference",
        "request_id",
        "terms_hash",
        "trace_id",
        "tx_hash",
    }
)
"""Members whose values name something that several records are about."""

UNTRUSTED: Final = "untrusted"
"""The name of all identifiers that an agent chose: they could be those of another's payment."""

_VERSION: Final = 1
_NOT_WORDS: Final = frozenset({"hash", "prev", "policy_hash", "note"})


class Index:
    """Use it as a context: `with Index.open(trail, path) as index`."""

    def __init__(self, trail: sqlite3.Connection, own: sqlite3.Connection) -> None:
        self._trail = trail
        self._own = own

    @classmethod
    @contextlib.contextmanager
    def open(cls, trail: sqlite3.Connection, path: Path | None) -> Iterator[Self]:
        """Open the file, or a new one, and add what the trail has beyond it.

        Without a path, or where the file cannot be written, the index is made in memory.

        Raises:
            StoreError: A record of the trail cannot be read.
        """
        own = _open_file(path)
        try:
            index = cls(trail, own)
            index._catch_up()
            yield index
        except sqlite3.Error as error:
            raise StoreError(f"the index of the audit trail failed: {error}; delete it") from error
        finally:
            own.close()

    def search(
        self,
        words: str = "",
        *,
        agent: str | None = None,
        kind: str | None = None,
        since: float | None = None,
        count: int = 50,
    ) -> list[Entry]:
        """Return the newest records that hold every word, or a word that begins so.

        Args:
            words: Separated by spaces. They are only ever words: there are no operators.
            agent: Only records about this agent.
            kind: Only records of this kind.
            since: Only records that are not older, in Unix seconds.
            count: At most so many.
        """
        asked = [f'"{word}"*' for word in words.replace("\0", " ").replace('"', " ").split()]
        query = [word for word in asked if any(c.isalnum() for c in word)]
        if asked and not query:
            return []
        values = {
            "words": " ".join(query),
            "agent": agent,
            "kind": kind,
            "since": since,
            "count": count,
        }
        return self.entries(
            seq for (seq,) in self._own.execute(QUERIES["search"], values).fetchall()
        )

    def named(self, identifier: str) -> dict[str, set[int]]:
        """Return the records that hold an identifier, by the member that holds it."""
        found: dict[str, set[int]] = {}
        rows = self._own.execute(QUERIES["find_named"], (identifier,))
        for name, seq in rows:
            found.setdefault(name, set()).add(seq)
        return found

    def identifiers(self, numbers: Sequence[int] | set[int], name: str) -> set[str]:
        """Return what these records hold as a member."""
        found: set[str] = set()
        for seq in numbers:
            rows = self._own.execute(QUERIES["find_identifiers"], (seq, name))
            found.update(identifier for (identifier,) in rows)
        return found

    def entries(self, numbers: Iterator[int] | Sequence[int]) -> list[Entry]:
        """Return these records, as the trail has them."""
        found = (read_entry(self._trail, seq) for seq in numbers)
        return [entry for entry in found if entry is not None]

    def _catch_up(self) -> None:
        own, name = self._own, trail_id(self._trail)
        own.execute("BEGIN IMMEDIATE")
        try:
            after = self._after(name)
            last = None
            for last in read_entries(self._trail, after=after):
                self._add(last)
            if last is not None:
                own.execute(QUERIES["delete_place"])
                values = (name, last.seq, last.hash, _VERSION)
                own.execute(QUERIES["add_place"], values)
            own.execute("COMMIT")
        except BaseException:
            if own.in_transaction:
                own.execute("ROLLBACK")
            raise

    def _after(self, name: str) -> int:
        """Return the last record that is indexed; begin anew where the trail is another one."""
        place = None
        if self._own.execute(QUERIES["has_index"]).fetchone():
            place = self._own.execute(QUERIES["load_place"]).fetchone()
        if place is not None:
            last = read_entry(self._trail, place[1])
            if last is not None and place == (name, last.seq, last.hash, _VERSION):
                return last.seq
        for statement in INDEX_SCHEMA.split(";"):
            self._own.execute(statement)
        return 0

    def _add(self, entry: Entry) -> None:
        row = (entry.seq, entry.at, entry.kind, entry.agent)
        self._own.execute(QUERIES["add_entry"], row)
        texts: list[str] = []
        links: set[tuple[str, str]] = set()
        _walk(entry.fields, texts, links)
        self._own.executemany(
            QUERIES["add_link"],
            [(identifier, entry.seq, name) for name, identifier in links],
        )
        self._own.execute(QUERIES["add_words"], (entry.seq, "\n".join(texts)))


def _walk(
    value: Any,
    texts: list[str],
    links: set[tuple[str, str]],
    name: str = "",
    *,
    is_said: bool = False,
) -> None:
    if isinstance(value, str):
        if name not in _NOT_WORDS:
            texts.append(value)
        if name in LINKS and value:
            links.add((UNTRUSTED if is_said else name, value))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _walk(inner, texts, links, key, is_said=is_said or key == UNTRUSTED)
    elif isinstance(value, list):
        for inner in value:
            _walk(inner, texts, links, name, is_said=is_said)


def _open_file(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        with contextlib.suppress(sqlite3.Error, OSError):
            create_own(path)
            own = sqlite3.connect(path, isolation_level=None)
            try:
                own.execute("BEGIN IMMEDIATE")
                own.execute("ROLLBACK")
            except BaseException:
                own.close()
                raise
            return own
    return sqlite3.connect(":memory:", isolation_level=None)
