"""A journal on each database: every test of the promise runs on both (habit 10)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from channel.types import Address
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal

__all__ = ["ACCOUNT", "CHAIN_ID", "OpenJournal", "journal", "journal_url", "open_one"]

CHAIN_ID = 31337
ACCOUNT = Address(b"\xb2" * 20)

OpenJournal = Callable[..., Awaitable[SettlerJournal]]


@pytest.fixture(params=["sqlite", "postgres"])
def journal_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def open_one(journal_url: str) -> AsyncIterator[OpenJournal]:
    """How to open a journal, as another process or a later start would."""
    opened: list[SettlerJournal] = []

    async def open_journal_of(account: Address = ACCOUNT) -> SettlerJournal:
        one = await open_journal(journal_url, chain_id=CHAIN_ID, account=account)
        opened.append(one)
        return one

    yield open_journal_of
    for one in opened:
        await one.close()


@pytest.fixture
async def journal(open_one: OpenJournal) -> SettlerJournal:
    """A journal whose lease is ours."""
    one = await open_one()
    assert await one.take_lease("this test", ttl_s=600) == 1
    return one
