"""Opens the deposit orders that belong to a ledger's URL."""

from channel.ledger.url import find_sqlite_path
from channel.types import Address
from settlement.sponsor.orders.interface import DepositOrders
from settlement.sponsor.orders.postgres import PostgresOrders
from settlement.sponsor.orders.sqlite import SqliteOrders

__all__ = ["open_orders"]


async def open_orders(
    url: str, *, chain_id: int, escrow: Address, read_only: bool = False
) -> DepositOrders:
    """Open the deposit orders of one escrow, in the database of a ledger's URL.

    Raises:
        ConfigError: See `channel.ledger.url.find_sqlite_path`.
        LedgerUnavailableError: The database does not answer.
    """
    path = find_sqlite_path(url)
    if path is not None:
        return await SqliteOrders.open(path, chain_id=chain_id, escrow=escrow, read_only=read_only)
    return await PostgresOrders.open(url, chain_id=chain_id, escrow=escrow, read_only=read_only)
