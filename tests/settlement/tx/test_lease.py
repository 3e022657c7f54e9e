"""Waiting for a key's lease: also while the database takes nothing."""

import asyncio
from pathlib import Path
from typing import Any

from channel.errors import LedgerUnavailableError
from channel.types import Address
from settlement.alarms import AlarmKind, Alarms
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.lease import LeaseLimits, wait_for_lease
from tests.waiting import until


class Full:
    """A journal on a disk that is full until it is not."""

    def __init__(self, inner: SqliteJournal) -> None:
        self._inner = inner
        self.is_full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def take_lease(self, holder: str, *, ttl_s: float) -> int | None:
        if self.is_full:
            raise LedgerUnavailableError("SQLite: database or disk is full")
        return await self._inner.take_lease(holder, ttl_s=ttl_s)


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
