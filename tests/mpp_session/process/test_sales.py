"""A pause of sales is an order in the journal: every process knows it, also after a restart."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.errors import SalesPausedError
from channel.types import Address
from channel.wire.problem import format_problem
from mpp_session.process.sales import Sales
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SettlerJournal]:
    opened = await open_journal(
        f"sqlite:///{tmp_path / 'ledger.db'}", chain_id=1, account=Address(b"a" * 20)
    )
    yield opened
    await opened.close()


async def test_a_gateway_sells_until_sales_are_paused_and_after_they_go_on(
    journal: SettlerJournal,
) -> None:
    sales = Sales(journal)
    await sales.look()
    sales.require()
    await sales.pause()
    with pytest.raises(SalesPausedError) as refused:
        sales.require()
    assert (refused.value.status, refused.value.retry_after_s) == (503, 60)
    assert b"sales-paused" in format_problem(refused.value)
    await sales.resume()
    sales.require()


async def test_another_process_and_the_next_start_know_of_the_pause(
    journal: SettlerJournal,
) -> None:
    await Sales(journal).pause()
    other = Sales(journal)
    assert other.paused_at is None
    await other.look()
    assert other.paused_at is not None
