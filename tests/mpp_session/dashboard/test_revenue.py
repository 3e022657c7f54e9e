"""Revenue is what the ledger's accounts say: of every process, and after a restart."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.state.charges import ChargeEnd, ChargeOutcome, encode_note
from channel.state.commands import Release, Restore, Spend
from mpp_session.dashboard.revenue import HOUR_S, Revenue
from mpp_session.settings import Config
from tests.channel.books import reserving
from tests.mpp_session.dashboard.served import channel_state, config_of

STARTED = 1_800_000_000.0


class Books:
    """A ledger with one channel and a clock."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.at = STARTED
        self.key = channel_state(1).key
        self._sold = 0

    @property
    def hour(self) -> int:
        return int(self.at // HOUR_S)

    def now(self) -> float:
        return self.at

    def revenue(self, ledger: Ledger) -> Revenue:
        return Revenue(self.config, ledger, now=self.now)

    async def sell(self, ledger: Ledger, amount: int) -> None:
        self._sold += 1
        name = bytes([self._sold])
        held = replace(reserving(name, amount), note=encode_note("POST /paid", "tiny"))
        (await ledger.apply(self.key, [held])).require()
        end = ChargeEnd(ChargeOutcome.DONE, {"output_token": amount}, "")
        (await ledger.apply(self.key, [Spend(name, amount), Release(name, end)])).require()


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(config_of(tmp_path))


@pytest.fixture
async def ledger(books: Books) -> AsyncIterator[Ledger]:
    opened = await open_ledger(books.config.ledger.url, exclusive=True, now=books.now)
    state = replace(channel_state(1), accepted=10_000)
    state = replace(state, highest=replace(state.highest, cumulative_amount=10_000))
    state = replace(state, above_spent=state.highest)
    (await opened.apply(state.key, [Restore(state)])).require()
    yield opened
    await opened.close()


async def test_it_adds_up_by_hour_and_each_look_reads_what_was_added(
    books: Books, ledger: Ledger
) -> None:
    revenue = books.revenue(ledger)
    await books.sell(ledger, 30)
    await revenue.look()
    await revenue.look()
    assert dict(revenue.by_hour) == {books.hour: 30}
    books.at += HOUR_S
    await books.sell(ledger, 5)
    await books.sell(ledger, 6)
    await revenue.look()
    assert dict(revenue.by_hour) == {books.hour - 1: 30, books.hour: 11}
    assert [row.amount for row in revenue.of_channel(books.key.channel_id)] == [6, 5, 30]


async def test_the_next_start_knows_of_it_and_old_hours_are_forgotten(
    books: Books, ledger: Ledger
) -> None:
    await books.sell(ledger, 30)
    books.at += HOUR_S
    await books.sell(ledger, 7)
    again = books.revenue(ledger)
    await again.look()
    assert sum(again.by_hour.values()) == 37
    books.at += 48 * HOUR_S
    await again.look()
    assert sum(again.by_hour.values()) == 7


async def test_what_another_payee_earned_is_not_counted(
    books: Books, ledger: Ledger, tmp_path: Path
) -> None:
    await books.sell(ledger, 30)
    other = config_of(tmp_path, PAYEE_ADDRESS="0x" + "dd" * 20)
    revenue = Revenue(other, ledger, now=books.now)
    await revenue.look()
    assert not revenue.by_hour


async def test_without_accounts_nothing_is_read(
    books: Books, ledger: Ledger, tmp_path: Path
) -> None:
    await books.sell(ledger, 30)
    revenue = Revenue(config_of(tmp_path, LEDGER_CHARGES="false"), ledger, now=books.now)
    await revenue.look()
    assert not revenue.is_kept
    assert not revenue.by_hour
