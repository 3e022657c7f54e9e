"""Runs in the SQLite thread: read rows, call `decide`, write rows, commit.

One object belongs to one connection, and only its thread uses it, except for `peek`.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from channel.errors import InvariantError
from channel.ledger.accounts import AccountSettings
from channel.ledger.answers import AnswerBounds
from channel.ledger.batch import Books, Job, RequestId, decide, proof_id, request_id
from channel.ledger.cache import Cache
from channel.ledger.interface import Applied, StoreResponse
from channel.ledger.queries import load_queries
from channel.ledger.rows import (
    account_values,
    chain_values,
    channel_from_row,
    earliest_lease,
    encode_reservations,
    is_same_for_chain,
    key_values,
    request_from_row,
    request_values,
    row_fault,
    term_values,
)
from channel.ledger.sqlite_accounts import balance_faults, write_charges
from channel.limits import (
    CHANNELS_CACHED_MAX,
    CHANNELS_PER_PAGE_MAX,
    PRUNE_BATCH_MAX,
    PRUNE_CHANNELS_MAX,
    STORED_RESPONSES_PER_CHANNEL_MAX,
)
from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelId, ChannelKey

__all__ = [
    "SqliteBooks",
    "drop_expired_requests",
    "faults",
    "forget_answers",
    "forget_oldest",
    "has_accounts",
    "leased",
    "list_channels",
    "list_foreign",
    "list_pending_closes",
    "mark",
    "select_identity",
]

_SQL: Final = load_queries("sqlite")

Written = tuple[list[Applied | Exception], dict[ChannelKey, ChannelState]]


class SqliteBooks:
    """The rows of one database, and the most recently used states.

    A state in memory is trusted only inside a transaction that has found `PRAGMA data_version`
    unchanged, because other processes may write to the file (decision 9).
    """

    def __init__(
        self,
        channels_cached_max: int = CHANNELS_CACHED_MAX,
        accounts: AccountSettings = AccountSettings(),  # noqa: B008 - frozen
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cache: Cache[ChannelKey, tuple[int, ChannelState]] = Cache(channels_cached_max)
        self._data_version = -1
        self._accounts = accounts
        self._now = now
        self.answers = AnswerBounds()

    def peek(self, key: ChannelKey) -> ChannelState | None:
        """Return a state as it was durable when last read. Any thread may call it."""
        found = self._cache.peek(key)
        return None if found is None else found[1]

    def has_foreign_commit(self, connection: sqlite3.Connection) -> bool:
        """Whether another process committed since the last look; then drop the memory."""
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._data_version:
            return False
        self._data_version = version
        self._cache.clear()
        return True

    def load(
        self, connection: sqlite3.Connection, keys: Iterable[ChannelKey]
    ) -> list[ChannelState | InvariantError | None]:
        """Return channels as they are on disk."""
        self.has_foreign_commit(connection)
        states: list[ChannelState | InvariantError | None] = []
        for key in keys:
            try:
                found = self._find(connection, key)
            except InvariantError as error:
                states.append(error)
            else:
                states.append(None if found is None else found[1])
        return states

    def write_batch(self, connection: sqlite3.Connection, jobs: Sequence[Job]) -> Written:
        """Run a batch in one transaction; return each caller's result, and what changed.

        A return means committed. An exception means that nothing was changed or remembered.
        """
        books = Books()
        ids: dict[ChannelKey, int] = {}
        try:
            connection.execute("BEGIN IMMEDIATE")
            self.has_foreign_commit(connection)
            broken = self._read(connection, jobs, books, ids)
            before = dict(books.states)
            results = decide([job for job in jobs if job.key not in broken], books)
            self._write(connection, books, before, ids)
            connection.execute("COMMIT")
        except BaseException:
            self._cache.clear()
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        for key, state in books.changed_states.items():
            self._cache.put(key, (ids[key], state))
        if broken:
            decided = iter(results)
            results = [broken.get(job.key) or next(decided) for job in jobs]
        return results, books.changed_states

    def _read(
        self,
        connection: sqlite3.Connection,
        jobs: Sequence[Job],
        books: Books,
        ids: dict[ChannelKey, int],
    ) -> dict[ChannelKey, Exception]:
        """Fill `books`; return the channels whose rows cannot be read."""
        broken: dict[ChannelKey, Exception] = {}
        for job in jobs:
            if job.key not in ids:
                try:
                    found = self._find(connection, job.key)
                except InvariantError as error:
                    broken[job.key] = error
                    continue
                if found is not None:
                    ids[job.key], books.states[job.key] = found
            if job.request is not None and not isinstance(job.request, StoreResponse):
                row = request_id(job.key, job.request)
                self._read_request(connection, row, books, ids)
            if job.proof is not None:
                proof = proof_id(job.key, job.proof)
                columns = (proof.chain_id, proof.tx_hash, proof.log_index)
                owner = connection.execute(_SQL["select_proof"], columns).fetchone()
                if owner is not None:
                    books.proofs[proof] = _key(owner)
        return broken

    def _find(
        self, connection: sqlite3.Connection, key: ChannelKey
    ) -> tuple[int, ChannelState] | None:
        found = self._cache.get(key)
        if found is None:
            row = connection.execute(_SQL["select_channel"], key_values(key)).fetchone()
            if row is not None:
                found = channel_from_row(row)
                self._cache.put(key, found)
        return found

    def _read_request(
        self,
        connection: sqlite3.Connection,
        row: RequestId,
        books: Books,
        ids: dict[ChannelKey, int],
    ) -> None:
        channel = ids.get(row.key)
        if channel is None or row in books.requests:
            return
        columns = (channel, row.route, row.idempotency_key)
        found = connection.execute(_SQL["select_request"], columns).fetchone()
        if found is not None:
            books.requests[row] = request_from_row(row.route, row.idempotency_key, found)

    def _write(
        self,
        connection: sqlite3.Connection,
        books: Books,
        before: dict[ChannelKey, ChannelState],
        ids: dict[ChannelKey, int],
    ) -> None:
        accounts, leases, channels = [], [], []
        for key, state in books.changed_states.items():
            old = before.get(key)
            if old is None:
                ids[key] = _insert(connection, state)
                continue
            held = encode_reservations(state.reservations)
            lease = earliest_lease(state.reservations)
            values = account_values(state)
            if not is_same_for_chain(old, state):
                channels.append([held, lease, *values, *chain_values(state), ids[key]])
            elif lease != earliest_lease(old.reservations):
                leases.append([held, lease, *values, ids[key]])
            else:
                accounts.append([held, *values, ids[key]])
        for name, rows in (
            ("update_accounts", accounts),
            ("update_leases", leases),
            ("update_channel", channels),
        ):
            if rows:
                connection.executemany(_SQL[name], rows)
        _write_requests(connection, books, ids, self.answers)
        at = int(self._now())
        write_charges(connection, books.charges, ids, at=at, settings=self._accounts)
        for proof, key in books.consumed.items():
            columns = (proof.chain_id, proof.tx_hash, proof.log_index, ids[key])
            connection.execute(_SQL["insert_proof"], columns)


def list_channels(
    connection: sqlite3.Connection, after: ChannelKey | None, limit: int, *, open_only: bool
) -> list[ChannelState]:
    """Return a page of channels in key order."""
    name = "select_open_page" if open_only else "select_page"
    start = (-1, b"", b"") if after is None else key_values(after)
    rows = connection.execute(_SQL[name], (*start, limit)).fetchall()
    return [channel_from_row(row)[1] for row in rows]


def list_pending_closes(connection: sqlite3.Connection, limit: int) -> list[ChannelState]:
    """Return channels whose close was decided and is not mined."""
    rows = connection.execute(_SQL["select_pending_closes"], (limit,)).fetchall()
    return [channel_from_row(row)[1] for row in rows]


def list_foreign(connection: sqlite3.Connection, limit: int) -> list[ChannelState]:
    """Return channels settled or closed on chain, but not by this ledger."""
    rows = connection.execute(_SQL["select_foreign"], (limit,)).fetchall()
    return [channel_from_row(row)[1] for row in rows]


def select_identity(connection: sqlite3.Connection, marker: str) -> tuple[str, bool]:
    """Return the ledger's id, and whether it ever had a marker of this name."""
    ledger_id, is_marked = connection.execute(_SQL["select_identity"], (marker,)).fetchone()
    return str(ledger_id), bool(is_marked)


def mark(connection: sqlite3.Connection, marker: str) -> None:
    """Record that a marker of this name exists outside the database."""
    connection.execute(_SQL["insert_marker"], (marker,))


def faults(connection: sqlite3.Connection) -> list[str]:
    """Return what is wrong with the file, its references, and each channel's row."""
    found = [
        str(row[0])
        for row in connection.execute("PRAGMA integrity_check").fetchall()
        if row[0] != "ok"
    ]
    found += [
        f"a row of {row[0]} belongs to no channel"
        for row in connection.execute("PRAGMA foreign_key_check").fetchall()
    ]
    start: tuple[int, bytes, bytes] = (-1, b"", b"")
    while rows := connection.execute(
        _SQL["select_page"], (*start, CHANNELS_PER_PAGE_MAX)
    ).fetchall():
        found += [f"channel {row[3].hex()}: {fault}" for row in rows if (fault := row_fault(row))]
        start = tuple(rows[-1][1:4])
    if not found and has_accounts(connection):
        found = balance_faults(connection)
    return found


def has_accounts(connection: sqlite3.Connection) -> bool:
    """Whether the tables have the accounts: a version that is only read may be older."""
    return connection.execute(_SQL["has_accounts"]).fetchone() is not None


def leased(connection: sqlite3.Connection, until: int, limit: int) -> list[ChannelKey]:
    """Return channels with a lease that expires at `until` or before, earliest first."""
    rows = connection.execute(_SQL["select_leased"], (until, limit)).fetchall()
    return [_key(row) for row in rows]


def drop_expired_requests(connection: sqlite3.Connection, now: int) -> int:
    """Delete a bounded number of idempotency rows past their lifetime; return how many."""
    return connection.execute(_SQL["delete_expired_requests"], (now, PRUNE_BATCH_MAX)).rowcount


def forget_answers(connection: sqlite3.Connection, after: int) -> tuple[int, int | None, int]:
    """Delete a bounded number of answers of a bounded number of channels: see `interface`.

    Starts with the first channel's row after `after`. Returns how many answers were deleted, the
    row to continue after (None at the end), and the bytes of the answers that stay, of all channels
    that were passed.
    """
    found = connection.execute(_SQL["select_answered"], (after, PRUNE_CHANNELS_MAX)).fetchall()
    room = PRUNE_BATCH_MAX
    passed: list[int] = []
    for (channel,) in found:
        columns = (channel, room, STORED_RESPONSES_PER_CHANNEL_MAX)
        room -= connection.execute(_SQL["forget_answers"], columns).rowcount
        if not room:
            return PRUNE_BATCH_MAX, channel - 1, _sum_answers(connection, passed)
        passed.append(channel)
    last = passed[-1] if passed else None
    return PRUNE_BATCH_MAX - room, last, _sum_answers(connection, passed)


def forget_oldest(connection: sqlite3.Connection, surplus: int) -> tuple[int, int]:
    """Delete a bounded number of the oldest answers, until `surplus` bytes are free.

    Returns how many were deleted, and their bytes.
    """
    gone, freed = [], 0
    for row_id, size in connection.execute(_SQL["select_oldest"], (PRUNE_BATCH_MAX,)).fetchall():
        if freed < surplus:
            gone.append(row_id)
            freed += size
    connection.execute(_SQL["forget_these"], (json.dumps(gone),))
    return len(gone), freed


def _sum_answers(connection: sqlite3.Connection, channels: Sequence[int]) -> int:
    row = connection.execute(_SQL["sum_answers"], (json.dumps(channels),)).fetchone()
    return int(row[0])


def _insert(connection: sqlite3.Connection, state: ChannelState) -> int:
    columns: list[Any] = [
        encode_reservations(state.reservations),
        earliest_lease(state.reservations),
        *account_values(state),
        *chain_values(state),
        *key_values(state.key),
        *term_values(state.terms),
    ]
    row_id = connection.execute(_SQL["insert_channel"], columns).lastrowid
    if row_id is None:  # pragma: no cover - the library's type, for statements that insert nothing
        raise InvariantError("SQLite returned no id for an inserted row")
    return row_id


def _write_requests(
    connection: sqlite3.Connection,
    books: Books,
    ids: dict[ChannelKey, int],
    answers: AnswerBounds,
) -> None:
    upserts, deletes, surplus = [], [], {}
    for row, record in books.changed_requests.items():
        columns = (ids[row.key], row.route, row.idempotency_key)
        if record is None:
            deletes.append(columns)
        else:
            channel, spent = ids[row.key], books.states[row.key].spent
            kept, bytes_max = answers.take(channel, record, spent=spent)
            upserts.append((*columns, *request_values(kept)))
            if bytes_max is not None:
                surplus[channel] = bytes_max
    if upserts:
        connection.executemany(_SQL["upsert_request"], upserts)
    for channel, bytes_max in surplus.items():
        connection.execute(_SQL["forget_surplus"], (channel, bytes_max))
    if deletes:
        connection.executemany(_SQL["delete_request"], deletes)


def _key(row: Sequence[Any]) -> ChannelKey:
    return ChannelKey(row[0], Address(row[1]), ChannelId(row[2]))
