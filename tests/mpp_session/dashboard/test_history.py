"""A channel's page shows every charge, the newest first, back to the first one."""

from itertools import chain

import pytest

from channel.ledger.interface import Ledger
from mpp_session.dashboard import history as module
from mpp_session.dashboard.history import History
from tests.mpp_session.dashboard.books import Books
from tests.mpp_session.dashboard.served import channel_state

DAY_S = 86_400


async def _walk(history: History, number: int) -> list[list[int]]:
    """Return the amounts of each page of a channel."""
    pages: list[list[int]] = []
    before = None
    while not pages or before is not None:
        page = await history.read(channel_state(number).key, before)
        pages.append([row.amount for row in page.charges])
        assert before is None or page.older is None or page.older < before, "no page repeats"
        before = page.older
    return pages


async def test_charges_of_months_ago_are_shown(books: Books, ledger: Ledger) -> None:
    for amount in (1, 2, 3):
        await books.sell(ledger, amount)
        books.at += 40 * DAY_S
    pages = await _walk(History(ledger, now=books.now), 1)
    assert pages == [[3, 2, 1]]


async def test_other_channels_charges_are_left_out(books: Books, ledger: Ledger) -> None:
    for amount in (1, 2, 3, 4):
        await books.sell(ledger, amount, to=1 + amount % 2)
        books.at += 60
    history = History(ledger, now=books.now)
    assert await _walk(history, 1) == [[4, 2]]
    assert await _walk(history, 2) == [[3, 1]]


async def test_a_long_history_comes_in_pages_without_gap_or_repetition(
    books: Books, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when one second holds more rows than are read together."""
    monkeypatch.setattr(module, "CHARGES_SHOWN", 4)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 3)
    for number in range(1, 31):
        await books.sell(ledger, number, to=1 + (number % 10 == 0))
        books.at += 0 if number < 12 else 100 * number
    pages = await _walk(History(ledger, now=books.now), 1)
    assert len(pages) > 3
    assert list(chain.from_iterable(pages)) == [n for n in range(30, 0, -1) if n % 10]


async def test_one_page_reads_a_bounded_number_of_rows(
    books: Books, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy seller's books do not hold up a page: it ends, and says where to go on."""
    monkeypatch.setattr(module, "_ROWS_READ_MAX", 5)
    await books.sell(ledger, 1)
    for number in range(2, 22):
        books.at += 3600
        await books.sell(ledger, number, to=2)
    pages = await _walk(History(ledger, now=books.now), 1)
    assert len(pages) > 1
    assert list(chain.from_iterable(pages)) == [1]


async def test_an_empty_ledger_has_one_empty_page(ledger: Ledger) -> None:
    page = await History(ledger).read(channel_state(1).key)
    assert page.charges == ()
    assert page.older is None
