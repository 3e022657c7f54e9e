"""Accounts with two open channels."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.state.commands import Restore
from tests.mpp_session.dashboard.books import Books
from tests.mpp_session.dashboard.served import channel_state, config_of


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(config_of(tmp_path))


@pytest.fixture
async def ledger(books: Books) -> AsyncIterator[Ledger]:
    opened = await open_ledger(books.config.ledger.url, exclusive=True, now=books.now)
    for number in (1, 2):
        state = replace(channel_state(number), accepted=10_000)
        state = replace(state, highest=replace(state.highest, cumulative_amount=10_000))
        state = replace(state, above_spent=state.highest)
        (await opened.apply(state.key, [Restore(state)])).require()
    yield opened
    await opened.close()
