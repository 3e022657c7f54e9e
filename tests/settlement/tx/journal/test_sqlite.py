"""The lease of a SQLite journal: its holder locks a file, so that a killed one is replaced."""

import asyncio
from pathlib import Path

from settlement.tx.journal.sqlite import SqliteJournal
from tests.settlement.tx.journal.conftest import ACCOUNT, CHAIN_ID


async def open_one(folder: Path) -> SqliteJournal:
    return await SqliteJournal.open(folder / "ledger.db", chain_id=CHAIN_ID, account=ACCOUNT)


async def test_a_lock_without_the_lease_is_given_back(tmp_path: Path) -> None:
    """O-98, F-110: a settler that is refused the lease keeps nothing that the holder needs.

    The second takes over from one that hangs and has the lock still: it holds the lease alone.
    """
    hanging, second, third = [await open_one(tmp_path) for _ in range(3)]
    assert await hanging.take_lease("hanging", ttl_s=0.001) == 1
    await asyncio.sleep(0.01)
    assert await second.take_lease("second", ttl_s=600) == 2
    await hanging.close()
    assert await third.take_lease("third", ttl_s=600) is None
    assert await third.lease_holder() == "second"
    await second.release_lease()
    assert await second.take_lease("second", ttl_s=600) == 3  # with the lock: the third let go
    await second.close()  # as if it was killed: the lease has 600 s left
    assert await third.take_lease("third", ttl_s=600) == 4
    await third.close()
