"""Each acknowledgement follows PostgreSQL's sync of its log, as the server accounts for it."""

import asyncpg
import pytest

from channel.ledger.postgres import PostgresLedger
from tests.channel.books import KEY, accepting, opening

VOUCHERS = 60
RECORD_BYTES_MIN = 100
"""Less than one commit of the ledger writes: what the server itself may add meanwhile."""


async def unflushed(url: str, synchronous_commit: str) -> int:
    """Return after how many acknowledgements the log was not on disk to its end."""
    ledger = await PostgresLedger.open(url, exclusive=True)
    admin = await asyncpg.connect(url)
    await ledger.apply(KEY, [opening(0)])
    await ledger._writer.execute(f"SET synchronous_commit = {synchronous_commit}")  # type: ignore[union-attr]  # noqa: SLF001
    count = 0
    for amount in range(1, VOUCHERS + 1):
        await ledger.apply(KEY, [accepting(amount)])
        behind = await admin.fetchval(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn())"
        )
        count += behind >= RECORD_BYTES_MIN
    await admin.close()
    await ledger.close()
    return count


async def test_the_log_is_on_disk_at_each_acknowledgement(postgres_url: str) -> None:
    """ACC-04, F-51. The server's own work may be on its way at a few of them."""
    assert await unflushed(postgres_url, "on") <= VOUCHERS // 10


async def test_the_account_shows_it_when_the_sync_is_left_out(postgres_url: str) -> None:
    assert await unflushed(postgres_url, "off") > VOUCHERS // 2


@pytest.mark.parametrize("name", ["fsync", "synchronous_commit", "full_page_writes"])
async def test_the_server_under_test_syncs(postgres_url: str, name: str) -> None:
    admin = await asyncpg.connect(postgres_url)
    assert await admin.fetchval("SELECT current_setting($1)", name) == "on"
    await admin.close()
