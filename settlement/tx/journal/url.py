"""Which journal, by the ledger's URL."""

from channel.ledger.url import sqlite_path
from channel.types import Address
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.postgres import PostgresJournal
from settlement.tx.journal.sqlite import SqliteJournal

__all__ = ["open_journal"]


async def open_journal(
    url: str, *, chain_id: int, account: Address, read_only: bool = False
) -> SettlerJournal:
    """Open the journal of one key on one chain, in the database a ledger's URL names.

    Raises:
        ConfigError: See `channel.ledger.url.open_ledger`.
        LedgerUnavailableError: The database does not answer.
    """
    if url.startswith("sqlite:"):
        return await SqliteJournal.open(
            sqlite_path(url), chain_id=chain_id, account=account, read_only=read_only
        )
    return await PostgresJournal.open(url, chain_id=chain_id, account=account, read_only=read_only)
