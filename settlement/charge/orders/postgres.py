"""Charge orders in the ledger's PostgreSQL database."""

from collections.abc import Sequence
from typing import Final
from zlib import crc32

import asyncpg

from channel.ledger import postgres_connection as pg
from channel.ledger.queries import load_queries, load_schema
from channel.limits import OPEN_ORDERS_MAX
from channel.types import Address, TxHash
from settlement.charge.orders.interface import ChargeClaim, ChargeOrder, GasLimit, decide_claim
from settlement.charge.orders.rows import (
    credit_values,
    made_values,
    order_from_row,
    order_values,
    owner_values,
    place_values,
    prune_values,
    require_gas_left,
)
from settlement.tx.orders import OrderStatus

__all__ = ["PostgresCharges"]

_SQL: Final = load_queries("postgres", __package__)
_SCHEMA: Final = load_schema("charges", "postgres", __package__)
_CLAIM_LOCK: Final = crc32(b"mpp-session charge orders")


class PostgresCharges:
    """See `interface.ChargeOrders`. Make one with `open`. One connection, opened on demand."""

    def __init__(self, dsn: str, place: tuple[int, Address], *, read_only: bool = False) -> None:
        self._database = pg.OneConnection(dsn, "list of charges", read_only=read_only)
        self._place = place

    @classmethod
    async def open(
        cls, dsn: str, *, chain_id: int, token: Address, read_only: bool = False
    ) -> "PostgresCharges":
        """Open the charges of one token.

        Raises:
            ConfigError: The server does not make commits durable, or a newer version wrote it.
            LedgerUnavailableError: The server does not answer.
        """
        orders = cls(dsn, (chain_id, token), read_only=read_only)
        await orders._database.prepare(_SCHEMA)
        return orders

    async def claim(self, wanted: ChargeOrder, *, now: int, is_private: bool) -> ChargeClaim:
        """See `interface.ChargeOrders.claim`. Locked: two could take the same credit."""
        async with self._database.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
            known = await _find(connection, wanted.order_id)
            if known is None:
                asked = credit_values(wanted, self._place, now)
                credit = _order(await connection.fetchrow(_SQL["select_credit"], *asked))
            else:
                credit = None if known.paid_by is None else await _find(connection, known.paid_by)
            made = decide_claim(known, credit, wanted, now=now, is_private=is_private)
            if made.stored is not None:
                await connection.execute(
                    _SQL["upsert_order"], *order_values(made.stored, self._place)
                )
            if made.claim.is_owner and made.claim.order is not made.stored:
                await connection.execute(_SQL["own_order"], *owner_values(made.claim.order))
        return made.claim

    async def place(self, order: ChargeOrder, limit: GasLimit) -> bool:
        """See `interface.ChargeOrders.place`. Locked: two could share the last of the gas."""
        async with self._database.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
            since = order.wanted_at - limit.period_s
            used = await connection.fetchval(_SQL["select_gas"], *self._place, since)
            require_gas_left(order, limit, used)
            done = await connection.execute(_SQL["place_order"], *place_values(order))
        return _count(done) > 0

    async def adopt(self, order_id: bytes, tx_hash: TxHash) -> None:
        """See `interface.ChargeOrders.adopt`."""
        async with self._database.use() as connection:
            await connection.execute(_SQL["adopt_order"], tx_hash, order_id)

    async def release(self, order_id: bytes, owner: bytes) -> None:
        """See `interface.ChargeOrders.release`."""
        async with self._database.transaction() as connection:
            done = await connection.execute(_SQL["delete_claim"], order_id, owner)
            if not _count(done):
                await connection.execute(_SQL["release_order"], order_id, owner)

    async def serve(self, order_id: bytes, owner: bytes) -> None:
        """See `interface.ChargeOrders.serve`."""
        async with self._database.use() as connection:
            await connection.execute(_SQL["serve_order"], order_id, owner)

    async def find(self, order_id: bytes) -> ChargeOrder | None:
        """See `interface.ChargeOrders.find`."""
        async with self._database.use() as connection:
            return await _find(connection, order_id)

    async def list_open(self) -> list[ChargeOrder]:
        """See `settlement.tx.orders.OrderBook.list_open`."""
        return await self._list("select_open", (*self._place, OPEN_ORDERS_MAX))

    async def list_credits(self) -> list[ChargeOrder]:
        """See `interface.ChargeOrders.list_credits`."""
        return await self._list("select_credits", (*self._place, OPEN_ORDERS_MAX))

    async def list_made(
        self, since: int, until: int, *, after: ChargeOrder | None = None
    ) -> list[ChargeOrder]:
        """See `interface.ChargeOrders.list_made`."""
        return await self._list("select_made", made_values(self._place, since, until, after))

    async def update(
        self,
        order_id: bytes,
        status: OrderStatus,
        *,
        tx_hash: TxHash | None = None,
        reason: str = "",
        gas_gwei: int | None = None,
    ) -> None:
        """See `settlement.tx.orders.OrderBook.update`."""
        values = (int(status), tx_hash, reason, gas_gwei, int(status), order_id)
        async with self._database.use() as connection:
            await connection.execute(_SQL["update_order"], *values)

    async def prune(self, before: int) -> int:
        """See `settlement.tx.orders.OrderBook.prune`."""
        async with self._database.use() as connection:
            done = await connection.execute(
                _SQL["delete_ended"], *prune_values(self._place, before)
            )
        return _count(done)

    async def close(self) -> None:
        """See `interface.ChargeOrders.close`."""
        await self._database.close()

    async def _list(self, name: str, values: Sequence[object]) -> list[ChargeOrder]:
        async with self._database.use() as connection:
            rows = await connection.fetch(_SQL[name], *values)
        return [order_from_row(row) for row in rows]


async def _find(connection: asyncpg.Connection, order_id: bytes) -> ChargeOrder | None:
    return _order(await connection.fetchrow(_SQL["select_order"], order_id))


def _order(row: asyncpg.Record | None) -> ChargeOrder | None:
    return None if row is None else order_from_row(row)


def _count(done: str) -> int:
    """Return how many rows a statement changed."""
    return int(done.rpartition(" ")[2])
