"""Charge orders in the ledger's SQLite file."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from channel.ledger.queries import load_queries, load_schema
from channel.ledger.sqlite_connection import SqliteConnection, connect
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

__all__ = ["SqliteCharges"]

_SQL: Final = load_queries("sqlite", __package__)
_SCHEMA: Final = load_schema("charges", "sqlite", __package__)


class SqliteCharges:
    """See `interface.ChargeOrders`. Make one with `open`."""

    def __init__(self, connection: SqliteConnection, place: tuple[int, Address]) -> None:
        self._connection = connection
        self._place = place

    @classmethod
    async def open(
        cls, path: Path, *, chain_id: int, token: Address, read_only: bool = False
    ) -> "SqliteCharges":
        """Open the charges of one token.

        Raises:
            ConfigError: The file cannot be opened or made durable, or a newer version wrote it.
        """
        connection = await connect(path, read_only=read_only, schema=_SCHEMA)
        return cls(connection, (chain_id, token))

    async def claim(self, wanted: ChargeOrder, *, now: int, is_private: bool) -> ChargeClaim:
        """See `interface.ChargeOrders.claim`."""

        def claim(db: sqlite3.Connection) -> ChargeClaim:
            known = _find(db, wanted.order_id)
            if known is None:
                asked = credit_values(wanted, self._place, now)
                credit = _first(db.execute(_SQL["select_credit"], asked))
            else:
                credit = None if known.paid_by is None else _find(db, known.paid_by)
            made = decide_claim(known, credit, wanted, now=now, is_private=is_private)
            if made.stored is not None:
                db.execute(_SQL["upsert_order"], order_values(made.stored, self._place))
            if made.claim.is_owner and made.claim.order is not made.stored:
                db.execute(_SQL["own_order"], owner_values(made.claim.order))
            return made.claim

        return await self._connection.run_transaction(claim)

    async def place(self, order: ChargeOrder, limit: GasLimit) -> bool:
        """See `interface.ChargeOrders.place`."""

        def place(db: sqlite3.Connection) -> bool:
            since = (*self._place, order.wanted_at - limit.period_s)
            require_gas_left(order, limit, db.execute(_SQL["select_gas"], since).fetchone()[0])
            return db.execute(_SQL["place_order"], place_values(order)).rowcount > 0

        return await self._connection.run_transaction(place)

    async def adopt(self, order_id: bytes, tx_hash: TxHash) -> None:
        """See `interface.ChargeOrders.adopt`."""
        await self._write("adopt_order", (tx_hash, order_id))

    async def release(self, order_id: bytes, owner: bytes) -> None:
        """See `interface.ChargeOrders.release`."""

        def release(db: sqlite3.Connection) -> None:
            if not db.execute(_SQL["delete_claim"], (order_id, owner)).rowcount:
                db.execute(_SQL["release_order"], (order_id, owner))

        await self._connection.run_transaction(release)

    async def serve(self, order_id: bytes, owner: bytes) -> None:
        """See `interface.ChargeOrders.serve`."""
        await self._write("serve_order", (order_id, owner))

    async def find(self, order_id: bytes) -> ChargeOrder | None:
        """See `interface.ChargeOrders.find`."""
        return await self._connection.run(_find, order_id)

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
        await self._write("update_order", values)

    async def prune(self, before: int) -> int:
        """See `settlement.tx.orders.OrderBook.prune`."""
        return await self._write("delete_ended", prune_values(self._place, before))

    async def close(self) -> None:
        """See `interface.ChargeOrders.close`."""
        await self._connection.close()

    async def _list(self, name: str, values: Sequence[object]) -> list[ChargeOrder]:
        def select(db: sqlite3.Connection) -> list[ChargeOrder]:
            return [order_from_row(row) for row in db.execute(_SQL[name], values)]

        return await self._connection.run(select)

    async def _write(self, name: str, values: Sequence[object]) -> int:
        """Run one statement, durably; return how many rows it changed."""
        return await self._connection.run_transaction(
            lambda db: db.execute(_SQL[name], values).rowcount
        )


def _find(db: sqlite3.Connection, order_id: bytes) -> ChargeOrder | None:
    return _first(db.execute(_SQL["select_order"], (order_id,)))


def _first(rows: sqlite3.Cursor) -> ChargeOrder | None:
    row = rows.fetchone()
    return None if row is None else order_from_row(row)
