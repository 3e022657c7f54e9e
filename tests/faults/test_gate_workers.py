"""Two workers on one PostgreSQL: what comes to one is seen by the other (F-36, F-109)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from channel.engine import Outcome
from channel.errors import InsufficientBalanceError
from channel.http import PaymentGate
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from tests.channel.chain_model import ChainModel
from tests.channel.engine.test_engine import hold, opened, perform
from tests.channel.http.test_events import (
    METERED,
    Tokens,
    events,
    final_receipt,
    has,
    pay,
    started,
    streaming,
)
from tests.channel.selling import PRICE, SETTINGS, Clock, Provider
from tests.channel.settling import settling


class Worker:
    """An engine and a ledger connection of its own; the chain and the payer are shared."""

    def __init__(self, ledger: Ledger, chain: ChainModel, clock: Clock) -> None:
        self.provider = Provider(ledger, chain, clock, SETTINGS)

    def gate(self, *tokens: Tokens) -> PaymentGate:
        return PaymentGate(streaming(*tokens), engine=self.provider.engine, routes=[METERED])


@pytest.fixture
async def workers(postgres_url: str) -> AsyncIterator[tuple[Worker, Worker]]:
    chain, clock = ChainModel(), Clock()
    ledgers = [await open_ledger(postgres_url, exclusive=False) for _ in range(2)]
    first, second = (Worker(ledger, chain, clock) for ledger in ledgers)
    second.provider.payer = first.provider.payer
    async with settling(ledgers[0], chain, SETTINGS.payee):
        yield first, second
        for worker in (first, second):
            await worker.provider.engine.aclose()
    for ledger in ledgers:
        await ledger.close()


async def test_a_voucher_to_one_worker_wakes_the_stream_of_the_other(
    workers: tuple[Worker, Worker],
) -> None:
    """F-109, VCH-08, SSE-03: and a challenge of one is good for the other."""
    first, second = workers
    tokens = Tokens(*"abcdef")
    visit = await started(first.provider, first.gate(tokens), 4 * PRICE)
    await visit.until(has(visit, "payment-need-voucher"))
    await pay(second.provider, second.gate(), 8 * PRICE)
    await visit.until(has(visit, "message", 6))
    tokens.end()
    await visit.answer()
    assert final_receipt(visit).spent == 6 * PRICE


async def test_a_newer_stream_in_one_worker_ends_the_older_in_the_other(
    workers: tuple[Worker, Worker],
) -> None:
    """ACC-06: at its next step, by the books alone."""
    first, second = workers
    older, newer = Tokens("a"), Tokens("b")
    visit = await started(first.provider, first.gate(older), 80 * PRICE)
    await visit.until(has(visit, "message"))
    later = await started(second.provider, second.gate(newer), 90 * PRICE)
    await later.until(has(later, "message"))
    for _ in range(60):
        older.queue.put_nowait("x")
    await visit.answer()
    emitted = [name for name, _ in events(visit)].count("message")
    assert emitted <= 32
    newer.end()
    await later.answer()
    state = await first.provider.books()
    assert (state.spent, state.reserved) == ((emitted + 1) * PRICE, 0)


async def test_copies_of_a_voucher_to_both_workers_pay_once(
    workers: tuple[Worker, Worker],
) -> None:
    """F-24, F-36, ACC-02, CORE-16: the row decides, not the process."""
    first, second = workers
    await opened(first.provider)
    payload = first.provider.payer.voucher(3 * PRICE)
    results = await asyncio.gather(
        *[
            perform(worker.provider, payload, hold(worker.provider))
            for worker in (first, second)
            for _ in range(20)
        ],
        return_exceptions=True,
    )
    served = [one for one in results if isinstance(one, Outcome)]
    refused = [one for one in results if isinstance(one, InsufficientBalanceError)]
    assert (len(served), len(refused)) == (3, 37)
    assert (await first.provider.books()).reserved == 3 * PRICE


async def test_a_close_in_one_worker_ends_what_runs_in_the_other(
    workers: tuple[Worker, Worker],
) -> None:
    """CLOSE-02, F-39: it waits for the stream's next step, and counts what that emitted."""
    first, second = workers
    tokens = Tokens("a")
    visit = await started(first.provider, first.gate(tokens), 80 * PRICE)
    await visit.until(has(visit, "message"))
    closing = asyncio.create_task(perform(second.provider, first.provider.payer.closing(PRICE)))
    async with first.provider.ledger.watch(first.provider.payer.key) as watch:
        while not (await first.provider.books()).is_closing:
            await watch.changed(1)
    for _ in range(60):
        tokens.queue.put_nowait("x")
    await visit.answer()
    outcome = await closing
    emitted = [name for name, _ in events(visit)].count("message")
    assert outcome.state.is_finalized
    assert emitted * PRICE <= outcome.state.spent <= 32 * PRICE
    assert first.provider.chain.closed[0][1] >= outcome.state.spent
