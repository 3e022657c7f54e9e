"""One ledger for each backend: every test of the promise runs on all of them (habit 10)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest

from channel.ledger.interface import Ledger
from channel.ledger.sqlite import SqliteLedger


class OpenLedger(Protocol):
    """Open one more ledger on the same database, as another process or a later start would."""

    def __call__(self, *, exclusive: bool = False) -> Awaitable[Ledger]: ...


def sqlite_opener(folder: Path) -> Callable[..., Awaitable[Ledger]]:
    async def open_one(*, exclusive: bool = False) -> Ledger:
        return await SqliteLedger.open(folder / "ledger.db", exclusive=exclusive)

    return open_one


@pytest.fixture(params=["sqlite"])
async def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenLedger]:
    """How to open a ledger; all that were opened are closed in the end."""
    opener = {"sqlite": sqlite_opener}[request.param](tmp_path)
    opened: list[Ledger] = []

    async def open_one(*, exclusive: bool = False) -> Ledger:
        ledger = await opener(exclusive=exclusive)
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        await ledger.close()


@pytest.fixture
async def ledger(open_ledger: OpenLedger) -> Ledger:
    """The gateway's ledger on an empty database."""
    return await open_ledger(exclusive=True)
