"""The journal in the ledger's PostgreSQL database."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from msgspec.structs import astuple

from channel.errors import InvariantError
from channel.ledger import postgres_connection as pg
from channel.ledger.queries import load_queries, load_schema
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

__all__ = ["PostgresJournal"]

_SQL: Final = load_queries("postgres", __package__)
_SCHEMA: Final = load_schema("journal", "postgres", __package__)


class PostgresJournal:
    """See `interface.SettlerJournal`. Make one with `open`. The lease runs by the server's clock.

    Uses one connection, reopened when it is lost. The outcome of an interrupted call is unknown
    until the journal is read again, and every caller reads it again.
    """

    is_durable = True

    def __init__(
        self, dsn: str, chain_id: int, account: Address, *, read_only: bool = False
    ) -> None:
        self._database = pg.OneConnection(dsn, "journal", read_only=read_only)
        self._scope = (chain_id, account)
        self._fence: int | None = None

    @classmethod
    async def open(
        cls, dsn: str, *, chain_id: int, account: Address, read_only: bool = False
    ) -> "PostgresJournal":
        """Open the journal of one key on one chain.

        Raises:
            ConfigError: The server does not make commits durable, or a newer version wrote it.
            LedgerUnavailableError: The server does not answer.
        """
        journal = cls(dsn, chain_id, account, read_only=read_only)
        await journal._database.prepare(_SCHEMA)
        return journal

    @property
    def account(self) -> Address:
        """See `interface.SettlerJournal.account`."""
        return self._scope[1]

    async def add(self, intent: Intent, *, at: int) -> JournalTx:
        """See `interface.Journal.add`."""
        tx = JournalTx(tx_id=0, intent=intent)
        values = [*self._scope, at, *intent_values(intent), *tx_values(tx)]
        async with self._writing() as connection:
            tx_id = await connection.fetchval(_SQL["insert_transaction"], *values)
        return JournalTx(tx_id=tx_id, intent=intent)

    async def next_nonce(self) -> int:
        """See `interface.Journal.next_nonce`."""
        async with self._database.use() as connection:
            return await self._next_nonce(connection)

    async def record(self, tx_id: int, events: Sequence[Event]) -> JournalTx:
        """See `interface.Journal.record`."""
        async with self._writing() as connection:
            found = await _select(connection, "select_transaction", *self._scope, tx_id)
            if not found:
                raise InvariantError(f"the journal has no transaction {tx_id} of this key")
            before = after = found[0]
            for event in events:
                if isinstance(event, Signed):
                    await self._require_free(connection, event)
                after = advance(after, event)
            if after is not before:
                await _update(connection, before, after)
        return after

    async def _require_free(self, connection: asyncpg.Connection, event: Signed) -> None:
        if event.fills_gap:
            later = await _select(connection, "select_from", *self._scope, event.nonce)
            is_taken = any(tx.nonce == event.nonce for tx in later)
        else:
            is_taken = event.nonce < await self._next_nonce(connection)
        if is_taken:
            raise NonceTakenError(f"Nonce {event.nonce} was given before.")

    async def open_transactions(self) -> list[JournalTx]:
        """See `interface.Journal.open_transactions`."""
        async with self._database.use() as connection:
            return await _select(connection, "select_open", *self._scope)

    async def transactions_from(self, nonce: int) -> list[JournalTx]:
        """See `interface.Journal.transactions_from`."""
        async with self._database.use() as connection:
            return await _select(connection, "select_from", *self._scope, nonce)

    async def find(self, tx_hash: TxHash) -> JournalTx | None:
        """See `interface.Journal.find`."""
        async with self._database.use() as connection:
            found = await _select(connection, "select_by_hash", *self._scope, tx_hash)
        return found[0] if found else None

    async def take_lease(self, holder: str, *, ttl_s: float) -> int | None:
        """See `interface.SettlerJournal.take_lease`."""
        async with self._database.use() as connection:
            fence: int | None = await connection.fetchval(
                _SQL["take_lease"], *self._scope, holder, ttl_s
            )
        if fence is not None:
            self._fence = fence
        return fence

    async def renew_lease(self, *, ttl_s: float) -> None:
        """See `interface.SettlerJournal.renew_lease`."""
        async with self._database.use() as connection:
            values = (*self._scope, self._fence, ttl_s)
            if await connection.fetchval(_SQL["renew_lease"], *values) is None:
                raise LeaseLostError("Another settler has taken over the key.")

    async def release_lease(self) -> None:
        """See `interface.SettlerJournal.release_lease`."""
        if self._fence is not None:
            async with self._database.use() as connection:
                await connection.fetchval(_SQL["renew_lease"], *self._scope, self._fence, 0.0)
            self._fence = None

    async def lease_holder(self) -> str | None:
        """See `interface.SettlerJournal.lease_holder`."""
        async with self._database.use() as connection:
            holder: str | None = await connection.fetchval(
                _SQL["select_holder"], *self._scope, LEASE_S_MAX
            )
            return holder

    async def quarantined(self) -> list[Quarantined]:
        """See `interface.SettlerJournal.quarantined`."""
        async with self._database.use() as connection:
            rows = await connection.fetch(_SQL["select_quarantine"], self._scope[0])
        return [quarantined_from_row(row) for row in rows]

    async def find_quarantined(self, key: ChannelKey) -> Quarantined | None:
        """See `interface.SettlerJournal.find_quarantined`."""
        async with self._database.use() as connection:
            rows = await connection.fetch(_SQL["select_quarantined"], *_key(key))
        return quarantined_from_row(rows[0]) if rows else None

    async def quarantine(self, entry: Quarantined) -> None:
        """See `interface.SettlerJournal.quarantine`."""
        values = [*_key(entry.key), entry.reason, entry.tries, entry.since, entry.retry_at]
        async with self._writing() as connection:
            await connection.execute(_SQL["upsert_quarantined"], *values)

    async def release(self, key: ChannelKey) -> None:
        """See `interface.SettlerJournal.release`."""
        async with self._writing() as connection:
            await connection.execute(_SQL["delete_quarantined"], *_key(key))

    async def distrust(self, addresses: Sequence[Address], *, at: int) -> None:
        """See `interface.SettlerJournal.distrust`."""
        rows = [(self._scope[0], each, at) for each in addresses]
        async with self._writing() as connection:
            await connection.executemany(_SQL["insert_distrusted"], rows)

    async def distrusted(self) -> frozenset[Address]:
        """See `interface.SettlerJournal.distrusted`."""
        async with self._database.use() as connection:
            rows = await connection.fetch(_SQL["select_distrusted"], self._scope[0], DISTRUSTED_MAX)
        return frozenset(Address(row[0]) for row in rows)

    async def prune(self, before: int) -> int:
        """See `interface.SettlerJournal.prune`."""
        async with self._writing() as connection:
            values = (*self._scope, before, PRUNED_AT_ONCE)
            rows = await connection.fetch(_SQL["select_ended_before"], *values)
            ids = [row[0] for row in rows]
            for name in ("delete_versions", "delete_transactions"):
                await connection.execute(_SQL[name], ids)
        return len(ids)

    async def sent_since(self, at: int) -> list[JournalTx]:
        """See `interface.SettlerJournal.sent_since`."""
        async with self._database.use() as connection:
            return await _select(connection, "select_since", *self._scope, at, SENT_MAX)

    async def note_look(self, look: Look) -> None:
        """See `interface.SettlerJournal.note_look`."""
        async with self._writing() as connection:
            await connection.execute(_SQL["upsert_look"], *self._scope, *astuple(look))

    async def last_look(self) -> Look | None:
        """See `interface.SettlerJournal.last_look`."""
        async with self._database.use() as connection:
            row = await connection.fetchrow(_SQL["select_look"], *self._scope)
        return None if row is None else Look(*row)

    async def order(self, name: OrderName) -> Order | None:
        """See `interface.SettlerJournal.order`."""
        async with self._database.use() as connection:
            row = await connection.fetchrow(_SQL["select_order"], *self._scope, name.value)
        return None if row is None else Order(*row)

    async def place_order(self, name: OrderName, *, at: int) -> None:
        """See `interface.SettlerJournal.place_order`."""
        async with self._database.transaction() as connection:
            await connection.execute(_SQL["place_order"], *self._scope, name.value, at)

    async def end_order(self, name: OrderName, *, at: int, outcome: str) -> None:
        """See `interface.SettlerJournal.end_order`."""
        async with self._database.transaction() as connection:
            await connection.execute(_SQL["end_order"], at, outcome, *self._scope, name.value)

    async def close(self) -> None:
        """See `interface.SettlerJournal.close`."""
        await self._database.close()

    async def _next_nonce(self, connection: asyncpg.Connection) -> int:
        nonce: int = await connection.fetchval(_SQL["select_next_nonce"], *self._scope)
        return nonce

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[asyncpg.Connection]:
        """Open a database transaction in which no other settler can take the lease."""
        async with self._database.transaction() as connection:
            fence = await connection.fetchval(_SQL["lock_lease"], *self._scope)
            if self._fence is None or fence != self._fence:
                raise LeaseLostError("Another settler has taken over the key.")
            yield connection


async def _select(connection: asyncpg.Connection, name: str, *values: Any) -> list[JournalTx]:
    rows = await connection.fetch(_SQL[name], *values)
    ids = [row[0] for row in rows]
    versions = await connection.fetch(_SQL["select_versions"], ids) if ids else []
    return transactions_from_rows(rows, versions)


async def _update(connection: asyncpg.Connection, before: JournalTx, after: JournalTx) -> None:
    await connection.execute(_SQL["update_transaction"], *tx_values(after), after.tx_id)
    for number in range(len(before.versions), len(after.versions)):
        values = [after.tx_id, number, *version_values(after.versions[number])]
        await connection.execute(_SQL["insert_version_row"], *values)


def _key(key: ChannelKey) -> tuple[int, bytes, bytes]:
    return key.chain_id, key.escrow, key.channel_id
