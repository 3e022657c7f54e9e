"""Which deposit orders, by the ledger's URL."""

from channel.ledger.url import sqlite_path
from channel.types import Address
from settlement.sponsor.orders.interface import DepositOrders
from settlement.sponsor.orders.postgres import PostgresOrders
from settlement.sponsor.orders.sqlite import SqliteOrders

__all__ = ["open_orders"]


async def open_orders(
    url: str, *, chain_id: int, escrow: Address, read_only: bool = False
) -> DepositOrders:
    """Open the deposit orders of one escrow, in the database a ledger's URL names.

    Raises:
        ConfigError: See `channel.ledger.url.open_ledger`.
        LedgerUnavailableError: The database does not answer.
    """
    if url.startswith("sqlite:"):
        return await SqliteOrders.open(
            sqlite_path(url), chain_id=chain_id, escrow=escrow, read_only=read_only
        )
    return await PostgresOrders.open(url, chain_id=chain_id, escrow=escrow, read_only=read_only)
