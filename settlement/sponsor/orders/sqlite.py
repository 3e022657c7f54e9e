"""Deposit orders in the ledger's SQLite file."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from channel.ledger.queries import load_queries, load_schema
from channel.ledger.sqlite_connection import SqliteConnection, connect
from channel.limits import OPEN_ORDERS_MAX
from channel.types import Address, TxHash
from settlement.sponsor.orders.interface import DepositOrder
from settlement.sponsor.orders.rows import order_from_row, order_values, require_room
from settlement.tx.orders import OrderLimits, OrderStatus

__all__ = ["SqliteOrders"]

_SQL: Final = load_queries("sqlite", __package__)
_NO_FUNDER: Final = b""
_SCHEMA: Final = load_schema("orders", "sqlite", __package__)


class SqliteOrders:
    """See `interface.DepositOrders`. Make one with `open`."""

    def __init__(self, connection: SqliteConnection, place: tuple[int, Address]) -> None:
        self._connection = connection
        self._place = place

    @classmethod
    async def open(
        cls, path: Path, *, chain_id: int, escrow: Address, read_only: bool = False
    ) -> "SqliteOrders":
        """Open the orders of one escrow.

        Raises:
            ConfigError: The file cannot be opened or made durable, or a newer version wrote it.
        """
        connection = await connect(path, read_only=read_only, schema=_SCHEMA)
        return cls(connection, (chain_id, escrow))

    async def place(self, order: DepositOrder, limits: OrderLimits) -> DepositOrder:
        """See `interface.DepositOrders.place`."""

        def place(db: sqlite3.Connection) -> DepositOrder:
            known = _find(db, order.order_id)
            if known is not None and known.status is not OrderStatus.REFUSED:
                return known
            since = order.wanted_at - limits.period_s
            usage = db.execute(_SQL["select_usage"], (order.funder, *self._place, since))
            require_room(order, limits, usage.fetchone())
            db.execute(_SQL["upsert_order"], order_values(order))
            return order

        return await self._connection.run_transaction(place)

    async def adopt(self, order: DepositOrder) -> None:
        """See `interface.DepositOrders.adopt`."""
        values = order_values(order)
        await self._write("upsert_order", values)

    async def find(self, order_id: bytes) -> DepositOrder | None:
        """See `interface.DepositOrders.find`."""
        return await self._connection.run(_find, order_id)

    async def gas_gwei_since(self, since: int) -> int:
        """See `interface.DepositOrders.gas_gwei_since`."""

        def select(db: sqlite3.Connection) -> int:
            row = db.execute(_SQL["select_usage"], (_NO_FUNDER, *self._place, since)).fetchone()
            return int(row[0])

        return await self._connection.run(select)

    async def list_open(self) -> list[DepositOrder]:
        """See `interface.DepositOrders.list_open`."""

        def select(db: sqlite3.Connection) -> list[DepositOrder]:
            rows = db.execute(_SQL["select_open"], (*self._place, OPEN_ORDERS_MAX))
            return [order_from_row(row) for row in rows]

        return await self._connection.run(select)

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
        await self._write("update_order", values)

    async def list_unknown(self, before: int) -> list[DepositOrder]:
        """See `interface.DepositOrders.list_unknown`."""

        def select(db: sqlite3.Connection) -> list[DepositOrder]:
            values = (*self._place, before, OPEN_ORDERS_MAX)
            return [order_from_row(row) for row in db.execute(_SQL["select_unknown"], values)]

        return await self._connection.run(select)

    async def mark_known(self, order_id: bytes) -> None:
        """See `interface.DepositOrders.mark_known`."""
        await self._write("update_known", (order_id,))

    async def prune(self, before: int) -> int:
        """See `interface.DepositOrders.prune`."""
        return await self._write("delete_ended", (*self._place, before))

    async def close(self) -> None:
        """See `interface.DepositOrders.close`."""
        await self._connection.close()

    async def _write(self, name: str, values: Sequence[object]) -> int:
        """Run one statement, durably; return how many rows it changed."""
        return await self._connection.run_transaction(
            lambda db: db.execute(_SQL[name], values).rowcount
        )


def _find(db: sqlite3.Connection, order_id: bytes) -> DepositOrder | None:
    row = db.execute(_SQL["select_order"], (order_id,)).fetchone()
    return None if row is None else order_from_row(row)
