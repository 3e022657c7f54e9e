"""One batch on PostgreSQL: lock rows in order, call `decide`, write rows, commit.

A worker keeps states in memory, each with its row's `revision`. A batch first locks its rows and
gets their revisions. It reads a state again only if the revision in memory is older.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import asyncpg

from channel.errors import InvariantError
from channel.ledger.accounts import AccountSettings
from channel.ledger.answers import AnswerBounds
from channel.ledger.batch import Books, Job, ProofId, RequestId, decide, proof_id, request_id
from channel.ledger.cache import Cache
from channel.ledger.interface import Applied, StoreResponse
from channel.ledger.postgres_accounts import write_charges
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
    term_values,
)
from channel.limits import CHANNELS_CACHED_MAX
from channel.state.channel_state import ChannelState, ReservationKind
from channel.types import Address, ChannelId, ChannelKey, TxHash

__all__ = ["SQL", "Conflict", "PostgresBooks", "key_of_row", "now", "state_of_row"]

SQL: Final = load_queries("postgres")
_REVISION: Final = 25  # its column in select_channels

Entry = tuple[int, int, ChannelState, float]
"""A row's id and revision, its state, and when it was last read."""


class Conflict(Exception):  # noqa: N818 - not an error: the batch is decided again
    """Another worker inserted the same channel first."""


class PostgresBooks:
    """The most recently used states, and how a batch runs on a connection."""

    def __init__(
        self,
        notify_on: str,
        channels_cached_max: int = CHANNELS_CACHED_MAX,
        accounts: AccountSettings = AccountSettings(),  # noqa: B008 - frozen
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cache: Cache[ChannelKey, Entry] = Cache(channels_cached_max)
        self._keys: Cache[int, ChannelKey] = Cache(channels_cached_max)
        self._notify_on = notify_on
        self._accounts = accounts
        self._wall = wall
        self.answers = AnswerBounds()

    def peek(self, key: ChannelKey, since: float) -> ChannelState | None:
        """Return a state that was durable at `since` or later."""
        found = self._cache.get(key)
        return None if found is None or found[3] < since else found[2]

    def distrust(self, key: ChannelKey) -> None:
        """Another process changed this channel: `peek` returns None until it is read again."""
        found = self._cache.peek(key)
        if found is not None:
            self._cache.put(key, (*found[:3], float("-inf")))

    def key_of(self, row_id: int) -> ChannelKey | None:
        """Return the key of a row, if it was used recently."""
        return self._keys.peek(row_id)

    def forget(self) -> None:
        """Drop every state in memory."""
        self._cache.clear()

    async def load(
        self, connection: asyncpg.Connection, keys: Iterable[ChannelKey]
    ) -> dict[ChannelKey, Entry | InvariantError]:
        """Read channels; unknown ones are left out."""
        wanted = sorted(set(keys))
        found: dict[ChannelKey, Entry | InvariantError] = {}
        if not wanted:
            return found
        began = now()
        columns = _columns(map(key_values, wanted))
        for row in await connection.fetch(SQL["select_channels"], *columns):
            key = key_of_row(row[1:4])
            try:
                entry = (row[0], row[_REVISION], state_of_row(row), began)
            except InvariantError as error:
                found[key] = error
                continue
            found[key] = entry
            self._remember(entry)
        return found

    async def write_batch(
        self, connection: asyncpg.Connection, jobs: Sequence[Job]
    ) -> tuple[list[Applied | Exception], dict[ChannelKey, ChannelState]]:
        """Run a batch in one transaction; return each caller's result, and what changed.

        Raises:
            Conflict: Nothing was changed; run the batch again.
        """
        books = Books()
        began = now()
        async with connection.transaction():
            entries, broken = await self._lock(connection, {job.key for job in jobs})
            books.states = {key: entry[2] for key, entry in entries.items()}
            ids = {key: entry[0] for key, entry in entries.items()}
            await _read_requests(connection, jobs, books, ids)
            await _read_proofs(connection, jobs, books)
            results = decide([job for job in jobs if job.key not in broken], books)
            await self._write(connection, books, entries, ids)
        for key, state in books.changed_states.items():
            revision = entries[key][1] + 1 if key in entries else 1
            self._remember((ids[key], revision, state, began))
        if broken:
            decided = iter(results)
            results = [broken.get(job.key) or next(decided) for job in jobs]
        return results, books.changed_states

    def _remember(self, entry: Entry) -> None:
        key = entry[2].key
        known = self._cache.peek(key)
        if known is not None and known[1] > entry[1]:
            return  # this process committed a newer state after that read
        self._cache.put(key, entry)
        self._keys.put(entry[0], key)

    async def _lock(
        self, connection: asyncpg.Connection, keys: set[ChannelKey]
    ) -> tuple[dict[ChannelKey, Entry], dict[ChannelKey, Exception]]:
        """Lock the existing rows; return their states, and the rows that cannot be read."""
        entries: dict[ChannelKey, Entry] = {}
        broken: dict[ChannelKey, Exception] = {}
        unknown = []
        for key in keys:
            known = self._cache.get(key)
            if known is None:
                unknown.append(key)
            else:
                entries[key] = known
        _sort_out(await self.load(connection, unknown), entries, broken)
        if entries:
            ids = [entry[0] for entry in entries.values()]
            revisions = dict(await connection.fetch(SQL["lock_channels"], ids))
            stale = [key for key, known in entries.items() if revisions[known[0]] != known[1]]
            for key in stale:
                del entries[key]
            _sort_out(await self.load(connection, stale), entries, broken)
        return entries, broken

    async def _write(
        self,
        connection: asyncpg.Connection,
        books: Books,
        entries: dict[ChannelKey, Entry],
        ids: dict[ChannelKey, int],
    ) -> None:
        accounts, channels, new, awaited = [], [], [], []
        for key, state in books.changed_states.items():
            head = [encode_reservations(state.reservations), earliest_lease(state.reservations)]
            head += account_values(state, str)
            if key not in entries:
                columns = [*head, *chain_values(state, str), *key_values(key)]
                new.append([*columns, *term_values(state.terms)])
                continue
            old = entries[key][2]
            if is_same_for_chain(old, state):
                accounts.append([ids[key], *head])
            else:
                channels.append([ids[key], *head, *chain_values(state, str)])
            if _is_awaited(old, state):
                awaited.append(ids[key])
        for name, rows in (("update_accounts", accounts), ("update_channels", channels)):
            if rows:
                await connection.execute(SQL[name], *_columns(rows))
        if new:
            inserted = await connection.fetch(SQL["insert_channels"], *_columns(new))
            if len(inserted) < len(new):
                raise Conflict
            ids.update({key_of_row(row[1:4]): row[0] for row in inserted})
        await _write_requests(connection, books, ids, self.answers)
        await _write_proofs(connection, books, ids)
        at = int(self._wall())
        await write_charges(connection, books.charges, ids, at=at, settings=self._accounts)
        if awaited:
            await connection.execute(SQL["notify"], self._notify_on, awaited)


def now() -> float:
    """Return the time that entries carry, in seconds."""
    return time.monotonic()


def state_of_row(row: Sequence[Any]) -> ChannelState:
    """Return the channel of a row, or raise `InvariantError`."""
    return channel_from_row(row, int)[1]


def key_of_row(row: Sequence[Any]) -> ChannelKey:
    """Return a key from its three columns."""
    return ChannelKey(row[0], Address(row[1]), ChannelId(row[2]))


def _is_awaited(old: ChannelState, new: ChannelState) -> bool:
    """Whether another worker may wait for this: a stream for a voucher, a close for its end.

    PostgreSQL serializes commits that notify, so other changes send no notification; polling
    finds them.
    """
    if not is_same_for_chain(old, new):
        return True
    if new.is_closing:
        return old.reservations is not new.reservations
    return old.accepted != new.accepted and any(
        held.kind is ReservationKind.STREAM for held in new.reservations
    )


def _sort_out(
    loaded: dict[ChannelKey, Entry | InvariantError],
    entries: dict[ChannelKey, Entry],
    broken: dict[ChannelKey, Exception],
) -> None:
    for key, found in loaded.items():
        if isinstance(found, InvariantError):
            broken[key] = found
        else:
            entries[key] = found


async def _read_requests(
    connection: asyncpg.Connection, jobs: Sequence[Job], books: Books, ids: dict[ChannelKey, int]
) -> None:
    wanted: dict[tuple[int, str, str], RequestId] = {}
    for job in jobs:
        if job.request is None or isinstance(job.request, StoreResponse) or job.key not in ids:
            continue
        row = request_id(job.key, job.request)
        wanted[ids[job.key], row.route, row.idempotency_key] = row
    if wanted:
        for found in await connection.fetch(SQL["select_requests"], *_columns(sorted(wanted))):
            row = wanted[found[0], found[1], found[2]]
            books.requests[row] = request_from_row(row.route, row.idempotency_key, found[3:])


async def _read_proofs(connection: asyncpg.Connection, jobs: Sequence[Job], books: Books) -> None:
    wanted = {proof_id(job.key, job.proof) for job in jobs if job.proof is not None}
    if wanted:
        columns = _columns([(one.chain_id, one.tx_hash, one.log_index) for one in wanted])
        for row in await connection.fetch(SQL["select_proofs"], *columns):
            books.proofs[ProofId(row[0], TxHash(row[1]), row[2])] = key_of_row(row[3:6])


async def _write_requests(
    connection: asyncpg.Connection,
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
        await connection.execute(SQL["upsert_requests"], *_columns(upserts))
    for channel, bytes_max in surplus.items():
        await connection.execute(SQL["forget_surplus"], channel, bytes_max)
    if deletes:
        await connection.execute(SQL["delete_requests"], *_columns(deletes))


async def _write_proofs(
    connection: asyncpg.Connection, books: Books, ids: dict[ChannelKey, int]
) -> None:
    proofs = [
        (proof.chain_id, proof.tx_hash, proof.log_index, ids[key])
        for proof, key in books.consumed.items()
    ]
    if proofs:
        await connection.execute(SQL["insert_proofs"], *_columns(proofs))


def _columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Turn rows into one array per column, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)]
