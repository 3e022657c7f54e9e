"""Revenue is what the ledger's accounts say: of every process, and after a restart."""

from pathlib import Path

from channel.ledger.interface import Ledger
from mpp_session.dashboard.revenue import HOUR_S, Revenue
from tests.mpp_session.dashboard.books import Books
from tests.mpp_session.dashboard.served import config_of


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
