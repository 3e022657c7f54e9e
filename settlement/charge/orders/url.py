"""Opens the charge orders that belong to a ledger's URL."""

from channel.ledger.url import find_sqlite_path
from channel.types import Address
from settlement.charge.orders.interface import ChargeOrders
from settlement.charge.orders.postgres import PostgresCharges
from settlement.charge.orders.sqlite import SqliteCharges

__all__ = ["open_charges"]


async def open_charges(
    url: str, *, chain_id: int, token: Address, read_only: bool = False
) -> ChargeOrders:
    """Open the charges of one token, in the database of a ledger's URL.

    Raises:
        ConfigError: See `channel.ledger.url.find_sqlite_path`.
        LedgerUnavailableError: The database does not answer.
    """
    path = find_sqlite_path(url)
    if path is not None:
        return await SqliteCharges.open(path, chain_id=chain_id, token=token, read_only=read_only)
    return await PostgresCharges.open(url, chain_id=chain_id, token=token, read_only=read_only)
