"""One ledger for each backend: every test of the promise runs on all of them (habit 10)."""

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Protocol

import pytest

from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger as open_by_url

__all__ = ["OpenLedger", "ledger", "ledger_url", "open_ledger"]


class OpenLedger(Protocol):
    """Open one more ledger on the same database, as another process or a later start would."""

    def __call__(self, *, exclusive: bool = False) -> Awaitable[Ledger]: ...


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def open_ledger(ledger_url: str) -> AsyncIterator[OpenLedger]:
    """How to open a ledger; all that were opened are closed in the end."""
    opened: list[Ledger] = []

    async def open_one(*, exclusive: bool = False) -> Ledger:
        ledger = await open_by_url(ledger_url, exclusive=exclusive)
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        await ledger.close()


@pytest.fixture
async def ledger(open_ledger: OpenLedger) -> Ledger:
    """The gateway's ledger on an empty database."""
    return await open_ledger(exclusive=True)
