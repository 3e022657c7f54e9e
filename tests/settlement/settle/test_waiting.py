"""Decision 14: a worker without a key waits for a close, for a bounded time, and loses nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pytest_asyncio import fixture

from channel.chain import CloseResult
from channel.errors import ChannelNotFoundError, SettlementPendingError
from channel.ledger.sqlite import SqliteLedger
from channel.state.commands import AbortClose, BeginClose, Command, CommitClose, RecordClose
from channel.state.ladder import closing_voucher
from settlement.errors import ChannelQuarantinedError, ContractRevertedError
from settlement.settle.waiting import WaitingCloser
from settlement.tx.journal.interface import Quarantined
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.types import RevertReason
from tests.channel.books import ESCROW, KEY, NOW, TERMS, fact, key_of, opening, signature
from tests.waiting import PATIENCE_S

TX_HASH = b"\xc1" * 32
SHORT_S = 0.05


class Worker:
    """Books in which the close of a channel is decided, and the journal beside them."""

    def __init__(self, ledger: SqliteLedger, journal: SqliteJournal) -> None:
        self.ledger, self.journal = ledger, journal

    async def wait(self, wait_s: float, *, number: int = 1) -> CloseResult:
        closer = WaitingCloser(self.ledger, self.journal, wait_s=wait_s)
        return await closer.close_channel(key_of(number), 9, signature(9))

    async def apply(self, *commands: Command) -> None:
        (await self.ledger.apply(KEY, commands)).require()

    async def refuse(self, reason: RevertReason) -> None:
        await self.journal.quarantine(Quarantined(KEY, reason.name, 1, NOW, NOW + 60))


@fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    path = tmp_path / "ledger.db"
    ledger = await SqliteLedger.open(path, exclusive=True)
    journal = await SqliteJournal.open(path, chain_id=KEY.chain_id, account=TERMS.payee)
    await journal.take_lease("this test", ttl_s=600)
    worker = Worker(ledger, journal)
    (await ledger.apply(KEY, [opening(9)])).require()
    state = await ledger.load(KEY)
    assert state is not None
    await worker.apply(BeginClose(), CommitClose(closing_voucher(state, None)))
    yield worker
    await journal.close()
    await ledger.close()


async def test_it_answers_when_the_settler_has_recorded_the_close(worker: Worker) -> None:
    """CLOSE-04: with the transaction and what the chain said; the gas is the settler's to know."""
    waiting = asyncio.create_task(worker.wait(PATIENCE_S))
    closed = fact(settled=0, is_finalized=True, block=101)
    await worker.apply(RecordClose(closed, TX_HASH))
    result = await waiting
    assert (result.tx_hash, result.fact, result.gas_used) == (TX_HASH, closed, 0)


async def test_it_waits_for_a_bounded_time(worker: Worker) -> None:
    """F-75: the close stays decided, and is asked for again."""
    with pytest.raises(SettlementPendingError, match="is being mined"):
        await worker.wait(SHORT_S)
    state = await worker.ledger.load(KEY)
    assert state is not None
    assert state.closing_with is not None


async def test_a_refusal_that_may_pass_is_pending(worker: Worker) -> None:
    """F-79: a paused token, say; the settler tries again."""
    await worker.refuse(RevertReason.TOKEN_REFUSED)
    with pytest.raises(ChannelQuarantinedError):
        await worker.wait(SHORT_S)


async def test_a_close_that_the_contract_refused_says_why(worker: Worker) -> None:
    """CLOSE-04: the channel goes on."""
    await worker.refuse(RevertReason.INVALID_SIGNATURE)
    await worker.apply(AbortClose())
    with pytest.raises(ContractRevertedError) as refused:
        await worker.wait(PATIENCE_S)
    assert refused.value.reason is RevertReason.INVALID_SIGNATURE


async def test_a_reason_of_another_version_is_unknown(worker: Worker) -> None:
    await worker.journal.quarantine(Quarantined(KEY, "FROM_TOMORROW", 1, NOW, NOW + 60))
    await worker.apply(AbortClose())
    with pytest.raises(ContractRevertedError) as refused:
        await worker.wait(PATIENCE_S)
    assert refused.value.reason is RevertReason.UNKNOWN


async def test_a_close_that_was_withdrawn_is_pending(worker: Worker) -> None:
    await worker.apply(AbortClose())
    with pytest.raises(SettlementPendingError, match="withdrawn"):
        await worker.wait(PATIENCE_S)


async def test_a_channel_that_is_not_in_the_books_is_not_found(worker: Worker) -> None:
    assert key_of(2).escrow == ESCROW
    with pytest.raises(ChannelNotFoundError):
        await worker.wait(PATIENCE_S, number=2)
