"""Waiting for a key's lease, and keeping it: also while the database takes nothing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from channel.errors import LedgerUnavailableError
from channel.types import Address
from settlement.alarms import AlarmKind, Alarms
from settlement.errors import LeaseLostError
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.lease import LeaseLimits, keep_lease, wait_for_lease
from tests.waiting import until


class Full:
    """A journal on a disk that is full until it is not."""

    def __init__(self, inner: SqliteJournal) -> None:
        self._inner = inner
        self.is_full = True
        self.refusals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def take_lease(self, holder: str, *, ttl_s: float) -> int | None:
        if self.is_full:
            raise LedgerUnavailableError("SQLite: database or disk is full")
        return await self._inner.take_lease(holder, ttl_s=ttl_s)

    async def renew_lease(self, *, ttl_s: float) -> None:
        if self.is_full:
            self.refusals += 1
            raise LedgerUnavailableError("SQLite: database or disk is full")
        await self._inner.renew_lease(ttl_s=ttl_s)


async def test_a_database_that_takes_nothing_rings_until_it_does(tmp_path: Path) -> None:
    """F-64: no settler can work then, and only this alarm says so."""
    inner = await SqliteJournal.open(
        tmp_path / "ledger.db", chain_id=1, account=Address(b"\x01" * 20)
    )
    journal, alarms = Full(inner), Alarms()
    limits = LeaseLimits(poll_s=0.01, away_s_max=0.05)
    waiting = asyncio.create_task(wait_for_lease(journal, "me", limits=limits, alarms=alarms))
    await until(lambda: bool(alarms.ringing))
    assert [alarm.kind for alarm in alarms.ringing] == [AlarmKind.BOOKS_AWAY]
    journal.is_full = False
    assert await waiting == 1
    assert alarms.ringing == []
    await inner.close()


async def test_a_holder_rides_out_a_short_refusal_and_stops_after_a_long_one(
    tmp_path: Path,
) -> None:
    """F-110: beyond its time another settler may hold the key, so this one must end."""
    inner = await SqliteJournal.open(
        tmp_path / "ledger.db", chain_id=1, account=Address(b"\x01" * 20)
    )
    journal = Full(inner)
    journal.is_full = False
    limits = LeaseLimits(ttl_s=30.0, renew_s=0.01)
    assert await wait_for_lease(journal, "me", limits=limits) == 1
    journal.is_full = True
    keeping = asyncio.create_task(keep_lease(journal, limits=limits))
    await until(lambda: journal.refusals >= 2)
    journal.is_full = False
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    journal.is_full = True
    with pytest.raises(LeaseLostError, match="ran out while the database was away"):
        await keep_lease(journal, limits=LeaseLimits(ttl_s=0.05, renew_s=0.01))
    await inner.close()
