"""Closing by consent: every step is durable before the next, and repeats without harm."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextlib import closing as closing_file
from pathlib import Path
from sqlite3 import Connection, connect
from typing import Any

import pytest
from msgspec.structs import replace

from channel.engine import Engine, Hold
from channel.engine.outcome import Outcome
from channel.errors import (
    AmountExceedsDepositError,
    ChainUnavailableError,
    ChannelFinalizedError,
    ChannelNotFoundError,
    PublicVoucherError,
    ReservationEndedError,
    SettlementPendingError,
    SignerMismatchError,
    TransactionRevertedError,
)
from channel.ledger.batch import Job
from channel.ledger.interface import Applied
from channel.ledger.sqlite_books import SqliteBooks, Written
from channel.methods.evm.method import EVM
from channel.state.commands import (
    AbortClose,
    BeginClose,
    Command,
    CommitClose,
    Observe,
    Publish,
    RecordClose,
    Release,
    Spend,
    StreamPolicy,
)
from channel.types import ChannelKey, TxHash, VerifiedVoucher
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.payload import (
    ClosePayload,
)
from tests.channel.books import reserving
from tests.channel.chain_model import ChainModel
from tests.channel.engine.test_engine import hold, opened, paid, perform
from tests.channel.selling import (
    DEPOSIT,
    PRICE,
    SECRET,
    SETTINGS,
    STRANGER_KEY,
    Payer,
    Provider,
    open_provider,
)
from tests.waiting import PATIENCE_S, until

SHORT_S = 0.05


async def spend(provider: Provider, units: int, amount: int) -> None:
    held = hold(provider, units)
    outcome = await perform(provider, provider.payer.voucher(amount), held)
    reservation = provider.engine.reservation(
        paid(provider, provider.payer.voucher(amount)), held, outcome
    )
    reservation.take(units)
    await reservation.finish()


def verified(provider: Provider, amount: int) -> VerifiedVoucher:
    payer = provider.payer
    return EVM.verify_voucher(payer.sign(amount), payer.key, payer.address)


async def has_begun(provider: Provider) -> bool:
    """Whether a close is in the books, which is before it waits for anything."""
    return (await provider.books()).is_closing


async def test_the_payers_amount_is_taken_when_it_covers_what_was_delivered(
    tmp_path: Path,
) -> None:
    """CLOSE-02, CLOSE-06: it may lie below the highest voucher; the delta does not apply."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await spend(provider, 3, 10 * PRICE)
        outcome = await perform(provider, provider.payer.closing(3 * PRICE))
        assert provider.chain.closed[0][1] == outcome.state.settled == 3 * PRICE
        assert outcome.tx_hash == outcome.state.close_tx


async def test_a_close_below_what_was_delivered_uses_the_lowest_voucher_that_covers_it(
    tmp_path: Path,
) -> None:
    """CLOSE-02, F-68, AMB-08."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await spend(provider, 3, 5 * PRICE)
        await perform(provider, provider.payer.voucher(20 * PRICE))
        await perform(provider, provider.payer.closing(PRICE))
        assert provider.chain.closed[0][1] == 5 * PRICE


async def test_a_public_voucher_closes_nothing_unless_it_equals_spent(tmp_path: Path) -> None:
    """CLOSE-02, decision 5: else a stranger could have the payer charged what it never used."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await spend(provider, 3, 3 * PRICE)
        await spend(provider, 1, 20 * PRICE)
        await provider.ledger.apply(provider.payer.key, [Publish(3 * PRICE)])
        for amount in (0, 3 * PRICE):
            with pytest.raises(PublicVoucherError) as refused:
                await perform(provider, provider.payer.closing(amount))
            assert refused.value.required_cumulative == amount + 1
            assert (refused.value.accepted, refused.value.spent) == (amount, amount)
        assert not (await provider.books()).is_closing
        await perform(provider, provider.payer.closing(4 * PRICE))
        assert provider.chain.closed[0][1] == 4 * PRICE


async def test_a_close_whose_voucher_became_public_meanwhile_changes_nothing(
    tmp_path: Path,
) -> None:
    """CLOSE-02, F-39: it is decided again on the books, with what the settler just wrote."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await spend(provider, 3, 3 * PRICE)
        books = await provider.books()
        refused = await provider.ledger.apply(
            provider.payer.key, [Publish(3 * PRICE), BeginClose(verified(provider, 3 * PRICE))]
        )
        assert isinstance(refused.refusal, PublicVoucherError)
        assert refused.state == replace(books, published=3 * PRICE)


async def test_what_was_settled_already_is_closed_at_spent(tmp_path: Path) -> None:
    """CLOSE-02, CLOSE-07: an amount that is public closes the channel when it equals `spent`."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await spend(provider, 3, 10 * PRICE)
        await provider.ledger.apply(provider.payer.key, [Publish(10 * PRICE)])
        await perform(provider, provider.payer.closing(3 * PRICE))
        assert provider.chain.closed[0][1] == 3 * PRICE


async def test_a_channel_that_was_never_used_is_closed_for_nothing(tmp_path: Path) -> None:
    """CLOSE-07, F-33."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 50)
        await perform(provider, provider.payer.closing(0))
        assert provider.chain.closed == [(provider.payer.key.channel_id, 0, b"")]


async def test_a_close_needs_its_payers_signature_and_a_deposit_that_covers_it(
    tmp_path: Path,
) -> None:
    """CLOSE-03, F-14, F-67."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        forged = ClosePayload(Payer(provider.chain, STRANGER_KEY).sign(0, provider.payer.key))
        with pytest.raises(SignerMismatchError):
            await perform(provider, forged)
        with pytest.raises(AmountExceedsDepositError):
            await perform(provider, provider.payer.closing(DEPOSIT + 1))
        assert not (await provider.books()).is_closing


async def test_a_close_waits_for_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    """F-39: the request that was running is answered and counted."""
    async with open_provider(tmp_path, close_wait_s=PATIENCE_S) as provider:
        await opened(provider)
        held = hold(provider)
        outcome = await perform(provider, provider.payer.voucher(50), held)
        reservation = provider.engine.reservation(
            paid(provider, provider.payer.voucher(50)), held, outcome
        )
        closing = asyncio.create_task(perform(provider, provider.payer.closing(PRICE)))
        await until(lambda: has_begun(provider))
        assert not closing.done()
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.voucher(60))
        reservation.take(1)
        await reservation.finish()
        await closing
        assert provider.chain.closed[0][1] == PRICE


@pytest.mark.parametrize("has_node", [True, False])
async def test_a_close_that_the_deposit_no_longer_covers_leaves_the_channel_open(
    tmp_path: Path, *, has_node: bool
) -> None:
    """CLOSE-04, F-70: a reorg while it waited; what was begun is taken back, not left closing.

    O-98: also while no node answers.
    """
    async with open_provider(tmp_path, close_wait_s=PATIENCE_S) as provider:
        await opened(provider)
        held = hold(provider)
        outcome = await perform(provider, provider.payer.voucher(500), held)
        reservation = provider.engine.reservation(
            paid(provider, provider.payer.voucher(500)), held, outcome
        )
        closing = asyncio.create_task(perform(provider, provider.payer.closing(500)))
        await until(lambda: has_begun(provider))
        provider.chain.change(provider.payer.key, deposit=400)
        fact = await provider.chain.read_channel(provider.payer.key.channel_id)
        assert fact is not None
        await provider.ledger.apply(provider.payer.key, [Observe(fact, is_rollback=True)])
        provider.chain.fail_with = None if has_node else ChainUnavailableError("No node answers.")
        await reservation.finish()
        with pytest.raises(AmountExceedsDepositError):
            await closing
        books = await provider.books()
        assert (books.is_closing, books.closing_with) == (False, None)
        provider.chain.fail_with = None
        provider.chain.change(provider.payer.key, deposit=DEPOSIT)
        provider.clock.advance(100)
        await perform(provider, provider.payer.closing(PRICE))
        assert provider.chain.closed[0][1] == PRICE


async def test_a_request_that_outlives_the_wait_is_ended_unpaid(tmp_path: Path) -> None:
    """CLOSE-02, decision 8: its money is released, and it may not be answered any more."""
    async with open_provider(tmp_path, close_wait_s=0.05) as provider:
        await opened(provider)
        held = hold(provider)
        outcome = await perform(provider, provider.payer.voucher(50), held)
        reservation = provider.engine.reservation(
            paid(provider, provider.payer.voucher(50)), held, outcome
        )
        await perform(provider, provider.payer.closing(0))
        reservation.take(1)
        with pytest.raises(ReservationEndedError):
            await reservation.finish()
        assert (await provider.books()).spent == 0


async def test_a_stream_that_outlives_the_wait_is_spent_whole(tmp_path: Path) -> None:
    """Decision 8: another worker's stream may have emitted all it held, one step at most."""
    async with open_provider(tmp_path, close_wait_s=0.05, reservation_step_units=4) as provider:
        await opened(provider)
        held = Hold(reservation_id=b"r" * 16, amount_min=PRICE, amount_max=4 * PRICE)
        outcome = await perform(provider, provider.payer.voucher(500), held)
        reservation = provider.engine.reservation(
            paid(provider, provider.payer.voucher(500)), held, outcome
        )
        await reservation.start_stream(StreamPolicy.ALLOW)
        reservation.take(1)
        await perform(provider, provider.payer.closing(0))
        assert (await provider.books()).spent == 4 * PRICE
        assert (await reservation.finish()).spent == 4 * PRICE


async def test_closes_at_the_same_time_are_one(tmp_path: Path) -> None:
    """F-40: every caller gets the same transaction."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.chain.delay_s = 0.02
        outcomes = await asyncio.gather(
            *[perform(provider, provider.payer.closing(amount)) for amount in (10, 20, 30)]
        )
        assert len({outcome.tx_hash for outcome in outcomes}) == 1
        assert len(provider.chain.closed) == 1


async def test_a_close_goes_on_when_its_client_leaves(tmp_path: Path) -> None:
    """F-42: the payer's repeat finds it done."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.chain.answers.clear()
        closing = asyncio.create_task(perform(provider, provider.payer.closing(10)))
        await until(lambda: has_begun(provider))
        closing.cancel()
        await asyncio.wait({closing})
        assert closing.cancelled()
        provider.chain.answers.set()
        await provider.engine.aclose()
        assert (await provider.books()).is_finalized
        again = await perform(provider, provider.payer.closing(10))
        assert again.tx_hash == again.state.close_tx


async def test_a_close_that_reverted_leaves_a_channel_that_goes_on(tmp_path: Path) -> None:
    """CLOSE-04, F-39."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.chain.close_fails_with = TransactionRevertedError("The contract refused.")
        with pytest.raises(TransactionRevertedError):
            await perform(provider, provider.payer.closing(10))
        state = await provider.books()
        assert (state.is_closing, state.closing_with) == (False, None)
        await perform(provider, provider.payer.voucher(50), hold(provider))


def is_waiting() -> bool:
    """Whether a close runs that waits for the settler."""
    return any("Closing._close" in repr(task) for task in asyncio.all_tasks())


async def test_a_pending_close_is_found_by_its_repeat(tmp_path: Path) -> None:
    """F-75: pending is neither success nor failure, and the first decision stands."""
    async with open_provider(tmp_path, close_timeout_s=SHORT_S) as provider:
        await opened(provider)
        provider.chain.close_fails_with = SettlementPendingError("Not mined yet.")
        for amount in (10, 10, 20):  # a repeat while it is pending is pending as well
            with pytest.raises(SettlementPendingError, match="Not mined yet"):
                await perform(provider, provider.payer.closing(amount))
            state = await provider.books()
            assert state.closing_with is not None
            assert (state.closing_with.cumulative_amount, state.published) == (10, 10)
        patient = worker_beside(provider)
        closing = paid(provider, provider.payer.closing(20))
        repeats = [asyncio.create_task(patient.perform(closing)) for _ in range(2)]
        await until(is_waiting)
        assert provider.chain.closed == []
        provider.chain.close_fails_with = None
        outcomes = await asyncio.gather(*repeats)
        assert [amount for _, amount, _ in provider.chain.closed] == [10]
        assert {outcome.tx_hash for outcome in outcomes} == {(await provider.books()).close_tx}
        await patient.aclose()


def worker_beside(provider: Provider) -> Engine:
    """Another worker on the same books, which waits longer for a close."""
    return Engine(
        ledger=provider.ledger,
        chain=provider.chain,
        binder=ChallengeBinder([SECRET]),
        settings=SETTINGS,
        now=provider.clock,
    )


@asynccontextmanager
async def decided(
    path: Path, **changes: Any
) -> AsyncIterator[tuple[Provider, asyncio.Task[Outcome]]]:
    """A close at 10 that a worker waits for, on books that no settler writes to."""
    async with open_provider(path, has_settler=False, **changes) as provider:
        await opened(provider)
        closing = asyncio.create_task(perform(provider, provider.payer.closing(10)))
        await until(lambda: is_decided(provider))
        yield provider, closing


async def is_decided(provider: Provider) -> bool:
    return (await provider.books()).closing_with is not None


async def record(provider: Provider) -> TxHash:
    """Write what a settler writes once the close is mined."""
    tx_hash, fact = await provider.chain.close(provider.payer.key, 10, b"")
    (await provider.ledger.apply(provider.payer.key, [RecordClose(fact, tx_hash)])).require()
    return tx_hash


async def test_a_close_is_answered_with_what_the_settler_records(tmp_path: Path) -> None:
    """CLOSE-05: its transaction, and what the chain says."""
    async with decided(tmp_path) as (provider, closing):
        assert not closing.done()
        tx_hash = await record(provider)
        outcome = await closing
        assert outcome.tx_hash == tx_hash
        assert outcome.state == await provider.books()
        assert (outcome.state.settled, outcome.state.is_finalized) == (10, True)
        assert outcome.state.fact_block == provider.chain.block


async def test_a_close_waits_for_the_settler_for_a_bounded_time(tmp_path: Path) -> None:
    """F-75: the close stays decided."""
    async with decided(tmp_path, close_timeout_s=SHORT_S) as (provider, closing):
        with pytest.raises(SettlementPendingError, match="is being mined"):
            await closing
        assert await is_decided(provider)


async def test_a_close_that_the_settler_withdraws_is_pending(tmp_path: Path) -> None:
    """F-75: for a reason that is not known; the channel continues."""
    async with decided(tmp_path) as (provider, closing):
        await provider.ledger.apply(provider.payer.key, [AbortClose()])
        with pytest.raises(SettlementPendingError, match="withdrawn"):
            await closing
        await perform(provider, provider.payer.voucher(50), hold(provider))


async def test_a_close_of_a_channel_that_leaves_the_books_is_not_found(tmp_path: Path) -> None:
    """An older copy of the ledger was put in its place, say."""
    async with decided(tmp_path) as (_, closing):
        with closing_file(connect(tmp_path / "ledger.sqlite")) as other, other:
            other.execute("DELETE FROM channel")
        with pytest.raises(ChannelNotFoundError):
            await closing


async def test_a_repeat_between_the_block_and_its_record_gets_the_transaction(
    tmp_path: Path,
) -> None:
    """CLOSE-05, F-75: what it reads of the chain does not hide the close from the settler."""
    async with decided(tmp_path) as (provider, closing):
        provider.chain.change(provider.payer.key, settled=10, is_finalized=True)  # mined
        provider.clock.advance(100)  # the repeat reads the chain
        reads = provider.chain.reads
        other = worker_beside(provider)
        repeat = asyncio.create_task(other.perform(paid(provider, provider.payer.closing(10))))
        await until(lambda: provider.chain.reads > reads)
        await asyncio.sleep(SHORT_S)
        assert not repeat.done()
        (owed,) = await provider.ledger.list_pending_closes()
        assert owed.key == provider.payer.key
        tx_hash = await record(provider)
        assert [(await each).tx_hash for each in (closing, repeat)] == [tx_hash] * 2
        await other.aclose()


async def test_a_close_begun_by_a_dead_process_is_taken_up(tmp_path: Path) -> None:
    """CLOSE-05: BeginClose was durable, nothing else was."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await provider.ledger.apply(provider.payer.key, [BeginClose()])
        await perform(provider, provider.payer.closing(10))
        assert provider.chain.closed[0][1] == 10


class OtherWorker:
    """One that takes a close back and sells, whenever this one is about to decide its own."""

    def __init__(self, provider: Provider) -> None:
        self._apply = provider.ledger.apply
        self.comes = 0
        """So many more times."""

    async def apply(self, key: ChannelKey, commands: Sequence[Command], **options: Any) -> Applied:
        if self.comes and any(isinstance(command, CommitClose) for command in commands):
            self.comes -= 1
            name = b"%016d" % self.comes
            held = reserving(name, PRICE)
            (await self._apply(key, [AbortClose(), held, BeginClose()])).require()
            applied = await self._apply(key, commands, **options)
            await self._apply(key, [Spend(name, PRICE), Release(name)])
            return applied
        return await self._apply(key, commands, **options)


async def test_a_close_that_another_worker_overtakes_is_decided_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98, CLOSE-02: at what is spent by then, to the unit."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 5 * PRICE)
        other = OtherWorker(provider)
        monkeypatch.setattr(provider.ledger, "apply", other.apply)
        other.comes = 2
        outcome = await perform(provider, provider.payer.closing(2 * PRICE))
        assert outcome.state.spent == 2 * PRICE
        assert [amount for _, amount, _ in provider.chain.closed] == [2 * PRICE]


async def test_a_close_that_is_overtaken_again_and_again_is_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98, F-75: nothing was sent; the repeat closes for all that was sold meanwhile."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 5 * PRICE)
        other = OtherWorker(provider)
        monkeypatch.setattr(provider.ledger, "apply", other.apply)
        other.comes = 3
        with pytest.raises(SettlementPendingError):
            await perform(provider, provider.payer.closing(PRICE))
        books = await provider.books()
        assert (books.is_closing, books.closing_with, books.spent) == (True, None, 3 * PRICE)
        assert provider.chain.closed == []
        await perform(provider, provider.payer.closing(3 * PRICE))
        assert [amount for _, amount, _ in provider.chain.closed] == [3 * PRICE]


class Slow:
    """A second worker on the same books, whose node is slow."""

    def __init__(self, provider: Provider) -> None:
        self.chain = ChainModel()
        self.chain.facts = provider.chain.facts
        self.chain.block = provider.chain.block + 10
        self.chain.answers.clear()
        self.engine = Engine(
            ledger=provider.ledger,
            chain=self.chain,
            binder=ChallengeBinder([SECRET]),
            settings=SETTINGS,
            now=provider.clock,
        )


async def test_a_close_that_another_worker_has_made_answers_with_its_transaction(
    tmp_path: Path,
) -> None:
    """O-98, F-40: one close, one transaction, whichever worker is asked."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 5 * PRICE)
        slow = Slow(provider)
        closing = asyncio.create_task(
            slow.engine.perform(paid(provider, provider.payer.closing(PRICE)))
        )
        await until(lambda: slow.chain.reads == 1)  # it has looked at the books before
        made = await perform(provider, provider.payer.closing(2 * PRICE))
        slow.chain.answers.set()
        assert (await closing).tx_hash == made.tx_hash
        assert [amount for _, amount, _ in provider.chain.closed] == [2 * PRICE]
        await slow.engine.aclose()


async def test_a_close_that_the_end_of_the_process_cuts_off_stays_owed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, F-42: it is no error to log, and the repeat closes for what was decided."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 5 * PRICE)
        provider.chain.answers.clear()
        closing = asyncio.create_task(perform(provider, provider.payer.closing(2 * PRICE)))
        await until(lambda: is_decided(provider))
        (cut_off,) = [task for task in asyncio.all_tasks() if "Closing._close" in repr(task)]
        cut_off.cancel()  # as `asyncio.run` does at its end
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not caplog.records
        provider.chain.answers.set()
        await perform(provider, provider.payer.closing(3 * PRICE))
        assert [amount for _, amount, _ in provider.chain.closed] == [2 * PRICE]


async def test_a_channel_that_ended_without_our_close_is_not_closed(tmp_path: Path) -> None:
    """O-98, CLOSE-05: its payer has withdrawn, so there is no transaction to answer with."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 5 * PRICE)
        provider.chain.change(provider.payer.key, is_finalized=True)
        provider.clock.advance(100)
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.closing(PRICE))
        assert provider.chain.closed == []


async def test_a_close_takes_three_synced_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine begins and decides it, the settler records it; no process writes it again."""
    written: list[Command] = []
    write_batch = SqliteBooks.write_batch

    def counted(books: SqliteBooks, connection: Connection, jobs: Sequence[Job]) -> Written:
        before = connection.total_changes
        done = write_batch(books, connection, jobs)
        if connection.total_changes > before:
            written.extend(command for job in jobs for command in job.commands)
        return done

    async with open_provider(tmp_path) as provider:
        await opened(provider)
        monkeypatch.setattr(SqliteBooks, "write_batch", counted)
        await perform(provider, provider.payer.closing(10))
        await provider.engine.aclose()
    assert [type(command) for command in written] == [BeginClose, CommitClose, RecordClose]


# -- by the payee alone


async def test_the_payee_closes_what_is_spent_and_the_payer_gets_the_rest(tmp_path: Path) -> None:
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await spend(provider, 3, 3 * PRICE)
        await provider.engine.decide_close(provider.payer.key)
        await until(lambda: _is_finalized(provider))
        books = await provider.books()
    assert (books.settled, books.spent, books.deposit) == (3 * PRICE, 3 * PRICE, DEPOSIT)


async def test_the_payee_closes_a_channel_once_and_only_one_that_is_known(tmp_path: Path) -> None:
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        with pytest.raises(ChannelNotFoundError):
            await provider.engine.decide_close(provider.payer.key)
        await opened(provider)
        await provider.engine.decide_close(provider.payer.key)
        await until(lambda: _is_finalized(provider))
        with pytest.raises(ChannelFinalizedError):
            await provider.engine.decide_close(provider.payer.key)


async def _is_finalized(provider: Provider) -> bool:
    return (await provider.books()).is_finalized
