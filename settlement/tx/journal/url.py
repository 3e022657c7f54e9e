"""Opens the journal that belongs to a ledger's URL."""

from channel.ledger.url import find_sqlite_path
from channel.types import Address
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.postgres import PostgresJournal
from settlement.tx.journal.sqlite import SqliteJournal

__all__ = ["open_journal"]


async def open_journal(
    url: str, *, chain_id: int, account: Address, read_only: bool = False
) -> SettlerJournal:
    """Open the journal of one key on one chain, in the database of a ledger's URL.

    Raises:
        ConfigError: See `channel.ledger.url.find_sqlite_path`.
        LedgerUnavailableError: The database does not answer.
    """
    path = find_sqlite_path(url)
    if path is not None:
        return await SqliteJournal.open(
            path, chain_id=chain_id, account=account, read_only=read_only
        )
    return await PostgresJournal.open(url, chain_id=chain_id, account=account, read_only=read_only)
