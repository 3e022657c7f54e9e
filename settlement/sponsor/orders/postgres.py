"""Deposit orders in the ledger's PostgreSQL database."""

from typing import Final
from zlib import crc32

import asyncpg

from channel.ledger import postgres_connection as pg
from channel.ledger.queries import load_queries, load_schema
from channel.limits import OPEN_ORDERS_MAX
from channel.types import Address, TxHash
from settlement.sponsor.orders.interface import DepositOrder
from settlement.sponsor.orders.rows import order_from_row, order_values, require_room
from settlement.tx.orders import OrderLimits, OrderStatus

__all__ = ["PostgresOrders"]

_SQL: Final = load_queries("postgres", __package__)
_NO_FUNDER: Final = b""
_SCHEMA: Final = load_schema("orders", "postgres", __package__)
_PLACE_LOCK: Final = crc32(b"mpp-session deposit orders")


class PostgresOrders:
    """See `interface.DepositOrders`. Make one with `open`. One connection, opened on demand."""

    def __init__(self, dsn: str, place: tuple[int, Address], *, read_only: bool = False) -> None:
        self._database = pg.OneConnection(dsn, "list of deposit orders", read_only=read_only)
        self._place = place

    @classmethod
    async def open(
        cls, dsn: str, *, chain_id: int, escrow: Address, read_only: bool = False
    ) -> "PostgresOrders":
        """Open the orders of one escrow.

        Raises:
            ConfigError: The server does not make commits durable, or a newer version wrote it.
            LedgerUnavailableError: The server does not answer.
        """
        orders = cls(dsn, (chain_id, escrow), read_only=read_only)
        await orders._database.prepare(_SCHEMA)
        return orders

    async def place(self, order: DepositOrder, limits: OrderLimits) -> DepositOrder:
        """See `interface.DepositOrders.place`. Locked: two could share the last of the gas."""
        async with self._database.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _PLACE_LOCK)
            known = await _find(connection, order.order_id)
            if known is not None and known.status is not OrderStatus.REFUSED:
                return known
            since = order.wanted_at - limits.period_s
            usage = await connection.fetchrow(
                _SQL["select_usage"], order.funder, *self._place, since
            )
            require_room(order, limits, tuple(usage))
            await connection.execute(_SQL["upsert_order"], *order_values(order))
        return order

    async def adopt(self, order: DepositOrder) -> None:
        """See `interface.DepositOrders.adopt`."""
        async with self._database.use() as connection:
            await connection.execute(_SQL["upsert_order"], *order_values(order))

    async def find(self, order_id: bytes) -> DepositOrder | None:
        """See `interface.DepositOrders.find`."""
        async with self._database.use() as connection:
            return await _find(connection, order_id)

    async def gas_gwei_since(self, since: int) -> int:
        """See `interface.DepositOrders.gas_gwei_since`."""
        async with self._database.use() as connection:
            return int(
                await connection.fetchval(_SQL["select_usage"], _NO_FUNDER, *self._place, since)
            )

    async def list_open(self) -> list[DepositOrder]:
        """See `interface.DepositOrders.list_open`."""
        async with self._database.use() as connection:
            rows = await connection.fetch(_SQL["select_open"], *self._place, OPEN_ORDERS_MAX)
        return [order_from_row(row) for row in rows]

    async def update(
        self,
        order_id: bytes,
        status: OrderStatus,
        *,
        tx_hash: TxHash | None = None,
        reason: str = "",
        gas_gwei: int | None = None,
    ) -> None:
        """See `interface.DepositOrders.update`."""
        values = (int(status), tx_hash, reason, gas_gwei, order_id)
        async with self._database.use() as connection:
            await connection.execute(_SQL["update_order"], *values)

    async def list_unknown(self, before: int) -> list[DepositOrder]:
        """See `interface.DepositOrders.list_unknown`."""
        async with self._database.use() as connection:
            values = (*self._place, before, OPEN_ORDERS_MAX)
            rows = await connection.fetch(_SQL["select_unknown"], *values)
        return [order_from_row(row) for row in rows]

    async def mark_known(self, order_id: bytes) -> None:
        """See `interface.DepositOrders.mark_known`."""
        async with self._database.use() as connection:
            await connection.execute(_SQL["update_known"], order_id)

    async def prune(self, before: int) -> int:
        """See `interface.DepositOrders.prune`."""
        async with self._database.use() as connection:
            done = await connection.execute(_SQL["delete_ended"], *self._place, before)
        return int(done.rpartition(" ")[2])

    async def close(self) -> None:
        """See `interface.DepositOrders.close`."""
        await self._database.close()


async def _find(connection: asyncpg.Connection, order_id: bytes) -> DepositOrder | None:
    row = await connection.fetchrow(_SQL["select_order"], order_id)
    return None if row is None else order_from_row(row)
