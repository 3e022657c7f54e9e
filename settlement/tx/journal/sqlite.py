"""The journal in the ledger's SQLite file: one backup holds both."""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from msgspec.structs import astuple

from channel.errors import ConfigError, InvariantError
from channel.ledger.queries import load_queries, load_schema
from channel.ledger.sqlite_connection import ProcessLock, SqliteConnection, connect
from channel.limits import DISTRUSTED_MAX
from channel.types import Address, ChannelKey, TxHash
from settlement.errors import LeaseLostError, NonceTakenError
from settlement.tx.journal.interface import (
    LEASE_S_MAX,
    PRUNED_AT_ONCE,
    SENT_MAX,
    Look,
    Order,
    OrderName,
    Quarantined,
)
from settlement.tx.journal.rows import (
    intent_values,
    quarantined_from_row,
    transactions_from_rows,
    tx_values,
    version_values,
)
from settlement.tx.state import Event, Intent, JournalTx, Signed, advance

__all__ = ["SqliteJournal"]

_SQL: Final = load_queries("sqlite", __package__)
_SCHEMA: Final = load_schema("journal", "sqlite", __package__)

_T = TypeVar("_T")


class SqliteJournal:
    """See `interface.SettlerJournal`. Make one with `open`.

    Processes that share a SQLite file run on one machine. The lease therefore uses this machine's
    clock, and its holder also locks a file. A standby replaces a killed holder immediately, and
    a hung one when its lease expires.
    """

    is_durable = True

    def __init__(
        self, connection: SqliteConnection, path: Path, chain_id: int, account: Address
    ) -> None:
        self._connection = connection
        self._scope = (chain_id, account)
        self._fence: int | None = None
        self._lock_path = path.with_name(f"{path.name}.settler-{chain_id}-{account.hex()}.lock")
        self._lock: ProcessLock | None = None

    @classmethod
    async def open(
        cls, path: Path, *, chain_id: int, account: Address, read_only: bool = False
    ) -> "SqliteJournal":
        """Open the journal of one key on one chain.

        Raises:
            ConfigError: The file cannot be opened or made durable, or a newer version wrote it.
        """
        connection = await connect(path, read_only=read_only, schema=_SCHEMA)
        return cls(connection, path, chain_id, account)

    @property
    def account(self) -> Address:
        """See `interface.SettlerJournal.account`."""
        return self._scope[1]

    async def add(self, intent: Intent, *, at: int) -> JournalTx:
        """See `interface.Journal.add`."""
        return await self._write(lambda db: self._add(db, intent, at))

    async def next_nonce(self) -> int:
        """See `interface.Journal.next_nonce`."""
        return await self._connection.run(self._next_nonce)

    async def record(self, tx_id: int, events: Sequence[Event]) -> JournalTx:
        """See `interface.Journal.record`."""
        return await self._write(lambda db: self._record(db, tx_id, events))

    async def open_transactions(self) -> list[JournalTx]:
        """See `interface.Journal.open_transactions`."""
        return await self._connection.run(self._select, "select_open", *self._scope)

    async def transactions_from(self, nonce: int) -> list[JournalTx]:
        """See `interface.Journal.transactions_from`."""
        return await self._connection.run(self._select, "select_from", *self._scope, nonce)

    async def find(self, tx_hash: TxHash) -> JournalTx | None:
        """See `interface.Journal.find`."""
        found = await self._connection.run(self._select, "select_by_hash", *self._scope, tx_hash)
        return found[0] if found else None

    async def take_lease(self, holder: str, *, ttl_s: float) -> int | None:
        """See `interface.SettlerJournal.take_lease`."""
        lock = await self._try_lock()
        fence = await self._connection.run_transaction(
            lambda db: self._take_lease(db, holder, ttl_s, has_lock=lock is not None)
        )
        if fence is not None:
            self._fence, self._lock = fence, lock
        elif lock is not None:
            lock.release()
        return fence

    async def _try_lock(self) -> ProcessLock | None:
        """Lock the lease holder's lock file; return None while another process has it."""
        lock = ProcessLock(self._lock_path)
        try:
            await lock.acquire()
        except ConfigError:
            return None
        return lock

    async def renew_lease(self, *, ttl_s: float) -> None:
        """See `interface.SettlerJournal.renew_lease`."""
        await self._write(lambda db: self._set_expiry(db, time.time() + ttl_s))

    async def release_lease(self) -> None:
        """See `interface.SettlerJournal.release_lease`."""
        if self._fence is not None:
            await self._connection.run_transaction(lambda db: self._set_expiry(db, 0.0))
            self._fence = None
        self._unlock()

    async def lease_holder(self) -> str | None:
        """See `interface.SettlerJournal.lease_holder`."""
        row = await self._connection.run(self._lease)
        if row is None or not 0 < row[2] - time.time() <= LEASE_S_MAX:
            return None
        return str(row[1])

    async def quarantined(self) -> list[Quarantined]:
        """See `interface.SettlerJournal.quarantined`."""
        rows = await self._connection.run(_rows, "select_quarantine", self._scope[0])
        return [quarantined_from_row(row) for row in rows]

    async def find_quarantined(self, key: ChannelKey) -> Quarantined | None:
        """See `interface.SettlerJournal.find_quarantined`."""
        rows = await self._connection.run(_rows, "select_quarantined", *_key(key))
        return quarantined_from_row(rows[0]) if rows else None

    async def quarantine(self, entry: Quarantined) -> None:
        """See `interface.SettlerJournal.quarantine`."""
        values = [*_key(entry.key), entry.reason, entry.tries, entry.since, entry.retry_at]
        await self._write(lambda db: db.execute(_SQL["upsert_quarantined"], values))

    async def release(self, key: ChannelKey) -> None:
        """See `interface.SettlerJournal.release`."""
        await self._write(lambda db: db.execute(_SQL["delete_quarantined"], _key(key)))

    async def distrust(self, addresses: Sequence[Address], *, at: int) -> None:
        """See `interface.SettlerJournal.distrust`."""
        rows = [(self._scope[0], each, at) for each in addresses]
        await self._write(lambda db: db.executemany(_SQL["insert_distrusted"], rows))

    async def distrusted(self) -> frozenset[Address]:
        """See `interface.SettlerJournal.distrusted`."""
        rows: list[tuple[bytes]] = await self._connection.run(
            lambda db: db.execute(
                _SQL["select_distrusted"], [self._scope[0], DISTRUSTED_MAX]
            ).fetchall()
        )
        return frozenset(Address(row[0]) for row in rows)

    async def prune(self, before: int) -> int:
        """See `interface.SettlerJournal.prune`."""
        return await self._write(lambda db: self._prune(db, before))

    async def sent_since(self, at: int) -> list[JournalTx]:
        """See `interface.SettlerJournal.sent_since`."""
        values = (*self._scope, at, SENT_MAX)
        return await self._connection.run(self._select, "select_since", *values)

    async def note_look(self, look: Look) -> None:
        """See `interface.SettlerJournal.note_look`."""
        values = [*self._scope, *astuple(look)]
        await self._write(lambda db: db.execute(_SQL["upsert_look"], values))

    async def last_look(self) -> Look | None:
        """See `interface.SettlerJournal.last_look`."""
        found: list[tuple[int, bytes, int, int]]
        found = await self._connection.run(
            lambda db: db.execute(_SQL["select_look"], self._scope).fetchall()
        )
        return Look(*found[0]) if found else None

    async def order(self, name: OrderName) -> Order | None:
        """See `interface.SettlerJournal.order`."""
        found: list[tuple[int, int | None, str]]
        found = await self._connection.run(
            lambda db: db.execute(_SQL["select_order"], [*self._scope, name.value]).fetchall()
        )
        return Order(*found[0]) if found else None

    async def place_order(self, name: OrderName, *, at: int) -> None:
        """See `interface.SettlerJournal.place_order`."""
        values = [*self._scope, name.value, at]
        await self._connection.run_transaction(lambda db: db.execute(_SQL["place_order"], values))

    async def end_order(self, name: OrderName, *, at: int, outcome: str) -> None:
        """See `interface.SettlerJournal.end_order`."""
        values = [at, outcome, *self._scope, name.value]
        await self._connection.run_transaction(lambda db: db.execute(_SQL["end_order"], values))

    async def close(self) -> None:
        """See `interface.SettlerJournal.close`."""
        self._unlock()
        await self._connection.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Runs in the connection's thread.

    async def _write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        def fenced(db: sqlite3.Connection) -> _T:
            lease = self._lease(db)
            if self._fence is None or lease is None or lease[0] != self._fence:
                raise LeaseLostError("Another settler has taken over the key.")
            return work(db)

        return await self._connection.run_transaction(fenced)

    def _add(self, db: sqlite3.Connection, intent: Intent, at: int) -> JournalTx:
        tx = JournalTx(tx_id=0, intent=intent)
        values = [*self._scope, at, *intent_values(intent), *tx_values(tx)]
        tx_id = db.execute(_SQL["insert_transaction"], values).lastrowid
        if tx_id is None:  # pragma: no cover - SQLite gives every inserted row an id
            raise InvariantError("SQLite gave an inserted row no id")
        return JournalTx(tx_id=tx_id, intent=intent)

    def _record(self, db: sqlite3.Connection, tx_id: int, events: Sequence[Event]) -> JournalTx:
        found = self._select(db, "select_transaction", *self._scope, tx_id)
        if not found:
            raise InvariantError(f"the journal has no transaction {tx_id} of this key")
        before = after = found[0]
        for event in events:
            if isinstance(event, Signed):
                self._require_free(db, event)
            after = advance(after, event)
        if after is not before:
            db.execute(_SQL["update_transaction"], [*tx_values(after), tx_id])
            for number in range(len(before.versions), len(after.versions)):
                version = after.versions[number]
                values = [tx_id, number, *version_values(version)]
                db.execute(_SQL["insert_version_row"], values)
        return after

    def _require_free(self, db: sqlite3.Connection, event: Signed) -> None:
        if event.fills_gap:
            later = self._select(db, "select_from", *self._scope, event.nonce)
            is_taken = any(tx.nonce == event.nonce for tx in later)
        else:
            is_taken = event.nonce < self._next_nonce(db)
        if is_taken:
            raise NonceTakenError(f"Nonce {event.nonce} was given before.")

    def _prune(self, db: sqlite3.Connection, before: int) -> int:
        values = [*self._scope, before, PRUNED_AT_ONCE]
        ids = [row[0] for row in db.execute(_SQL["select_ended_before"], values)]
        for name in ("delete_versions", "delete_transactions"):
            db.execute(_SQL[name], [json.dumps(ids)])
        return len(ids)

    def _next_nonce(self, db: sqlite3.Connection) -> int:
        return int(db.execute(_SQL["select_next_nonce"], self._scope).fetchone()[0])

    def _select(self, db: sqlite3.Connection, name: str, *values: object) -> list[JournalTx]:
        rows = _rows(db, name, *values)
        versions = [row for one in rows for row in _rows(db, "select_versions", one[0])]
        return transactions_from_rows(rows, versions)

    def _lease(self, db: sqlite3.Connection) -> tuple[int, str, float, int] | None:
        """Return fence, holder, expiry, and whether the holder has the lock file."""
        row: tuple[int, str, float, int] | None
        row = db.execute(_SQL["select_lease"], self._scope).fetchone()
        return row

    def _take_lease(
        self, db: sqlite3.Connection, holder: str, ttl_s: float, *, has_lock: bool
    ) -> int | None:
        now, lease = time.time(), self._lease(db)
        # A lease that ends later than its length from now was written before the clock went back.
        if lease is not None and now < lease[2] <= now + ttl_s:
            is_dead = has_lock and lease[3]
            if not is_dead:
                return None
        fence = 1 if lease is None else lease[0] + 1
        values = [*self._scope, fence, holder, has_lock, now + ttl_s]
        db.execute(_SQL["upsert_lease"], values)
        return fence

    def _set_expiry(self, db: sqlite3.Connection, expires_at: float) -> None:
        db.execute(_SQL["update_lease"], [expires_at, *self._scope, self._fence])


def _rows(db: sqlite3.Connection, name: str, *values: object) -> list[tuple[object, ...]]:
    return db.execute(_SQL[name], values).fetchall()


def _key(key: ChannelKey) -> tuple[int, bytes, bytes]:
    return key.chain_id, key.escrow, key.channel_id
