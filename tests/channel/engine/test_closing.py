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
from channel.verify.voucher import verify_voucher
from channel.wire.payload import ClosePayload
from tests.channel.books import reserving
from tests.channel.chain_model import ChainModel
from tests.channel.engine.test_engine import hold, opened, paid, perform
from tests.channel.selling import (
    DEPOSIT,
    PRICE,
    SECRET,
    SETTINGS,
    STRANGER_KEY,
    Desk,
    Payer,
    open_desk,
)
from tests.waiting import PATIENCE_S, until

SHORT_S = 0.05


async def spend(desk: Desk, units: int, amount: int) -> None:
    held = hold(desk, units)
    outcome = await perform(desk, desk.payer.voucher(amount), held)
    reservation = desk.engine.reservation(paid(desk, desk.payer.voucher(amount)), held, outcome)
    reservation.take(units)
    await reservation.finish()


def verified(desk: Desk, amount: int) -> VerifiedVoucher:
    payer = desk.payer
    return verify_voucher(payer.sign(amount), payer.key, payer.address)


async def has_begun(desk: Desk) -> bool:
    """Whether a close is in the books, which is before it waits for anything."""
    return (await desk.books()).is_closing


async def test_the_payers_amount_is_taken_when_it_covers_what_was_delivered(
    tmp_path: Path,
) -> None:
    """CLOSE-02, CLOSE-06: it may lie below the highest voucher; the delta does not apply."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        await spend(desk, 3, 10 * PRICE)
        outcome = await perform(desk, desk.payer.closing(3 * PRICE))
        assert desk.chain.closed[0][1] == outcome.state.settled == 3 * PRICE
        assert outcome.tx_hash == outcome.state.close_tx


async def test_a_close_below_what_was_delivered_uses_the_lowest_voucher_that_covers_it(
    tmp_path: Path,
) -> None:
    """CLOSE-02, F-68, AMB-08."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        await spend(desk, 3, 5 * PRICE)
        await perform(desk, desk.payer.voucher(20 * PRICE))
        await perform(desk, desk.payer.closing(PRICE))
        assert desk.chain.closed[0][1] == 5 * PRICE


async def test_a_public_voucher_closes_nothing_unless_it_equals_spent(tmp_path: Path) -> None:
    """CLOSE-02, decision 5: else a stranger could have the payer charged what it never used."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        await spend(desk, 3, 3 * PRICE)
        await spend(desk, 1, 20 * PRICE)
        await desk.ledger.apply(desk.payer.key, [Publish(3 * PRICE)])
        for amount in (0, 3 * PRICE):
            with pytest.raises(PublicVoucherError) as refused:
                await perform(desk, desk.payer.closing(amount))
            assert refused.value.required_cumulative == amount + 1
            assert (refused.value.accepted, refused.value.spent) == (amount, amount)
        assert not (await desk.books()).is_closing
        await perform(desk, desk.payer.closing(4 * PRICE))
        assert desk.chain.closed[0][1] == 4 * PRICE


async def test_a_close_whose_voucher_became_public_meanwhile_changes_nothing(
    tmp_path: Path,
) -> None:
    """CLOSE-02, F-39: it is decided again on the books, with what the settler just wrote."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        await spend(desk, 3, 3 * PRICE)
        books = await desk.books()
        refused = await desk.ledger.apply(
            desk.payer.key, [Publish(3 * PRICE), BeginClose(verified(desk, 3 * PRICE))]
        )
        assert isinstance(refused.refusal, PublicVoucherError)
        assert refused.state == replace(books, published=3 * PRICE)


async def test_what_was_settled_already_is_closed_at_spent(tmp_path: Path) -> None:
    """CLOSE-02, CLOSE-07: an amount that is public closes the channel when it equals `spent`."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        await spend(desk, 3, 10 * PRICE)
        await desk.ledger.apply(desk.payer.key, [Publish(10 * PRICE)])
        await perform(desk, desk.payer.closing(3 * PRICE))
        assert desk.chain.closed[0][1] == 3 * PRICE


async def test_a_channel_that_was_never_used_is_closed_for_nothing(tmp_path: Path) -> None:
    """CLOSE-07, F-33."""
    async with open_desk(tmp_path) as desk:
        await opened(desk, 50)
        await perform(desk, desk.payer.closing(0))
        assert desk.chain.closed == [(desk.payer.key.channel_id, 0, b"")]


async def test_a_close_needs_its_payers_signature_and_a_deposit_that_covers_it(
    tmp_path: Path,
) -> None:
    """CLOSE-03, F-14, F-67."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        forged = ClosePayload(Payer(desk.chain, STRANGER_KEY).sign(0, desk.payer.key))
        with pytest.raises(SignerMismatchError):
            await perform(desk, forged)
        with pytest.raises(AmountExceedsDepositError):
            await perform(desk, desk.payer.closing(DEPOSIT + 1))
        assert not (await desk.books()).is_closing


async def test_a_close_waits_for_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    """F-39: the request that was running is answered and counted."""
    async with open_desk(tmp_path, close_wait_s=PATIENCE_S) as desk:
        await opened(desk)
        held = hold(desk)
        outcome = await perform(desk, desk.payer.voucher(50), held)
        reservation = desk.engine.reservation(paid(desk, desk.payer.voucher(50)), held, outcome)
        closing = asyncio.create_task(perform(desk, desk.payer.closing(PRICE)))
        await until(lambda: has_begun(desk))
        assert not closing.done()
        with pytest.raises(ChannelFinalizedError):
            await perform(desk, desk.payer.voucher(60))
        reservation.take(1)
        await reservation.finish()
        await closing
        assert desk.chain.closed[0][1] == PRICE


@pytest.mark.parametrize("has_node", [True, False])
async def test_a_close_that_the_deposit_no_longer_covers_leaves_the_channel_open(
    tmp_path: Path, *, has_node: bool
) -> None:
    """CLOSE-04, F-70: a reorg while it waited; what was begun is taken back, not left closing.

    O-98: also while no node answers.
    """
    async with open_desk(tmp_path, close_wait_s=PATIENCE_S) as desk:
        await opened(desk)
        held = hold(desk)
        outcome = await perform(desk, desk.payer.voucher(500), held)
        reservation = desk.engine.reservation(paid(desk, desk.payer.voucher(500)), held, outcome)
        closing = asyncio.create_task(perform(desk, desk.payer.closing(500)))
        await until(lambda: has_begun(desk))
        desk.chain.change(desk.payer.key, deposit=400)
        fact = await desk.chain.read_channel(desk.payer.key.channel_id)
        assert fact is not None
        await desk.ledger.apply(desk.payer.key, [Observe(fact, is_rollback=True)])
        desk.chain.fail_with = None if has_node else ChainUnavailableError("No node answers.")
        await reservation.finish()
        with pytest.raises(AmountExceedsDepositError):
            await closing
        books = await desk.books()
        assert (books.is_closing, books.closing_with) == (False, None)
        desk.chain.fail_with = None
        desk.chain.change(desk.payer.key, deposit=DEPOSIT)
        desk.clock.advance(100)
        await perform(desk, desk.payer.closing(PRICE))
        assert desk.chain.closed[0][1] == PRICE


async def test_a_request_that_outlives_the_wait_is_ended_unpaid(tmp_path: Path) -> None:
    """CLOSE-02, decision 8: its money is released, and it may not be answered any more."""
    async with open_desk(tmp_path, close_wait_s=0.05) as desk:
        await opened(desk)
        held = hold(desk)
        outcome = await perform(desk, desk.payer.voucher(50), held)
        reservation = desk.engine.reservation(paid(desk, desk.payer.voucher(50)), held, outcome)
        await perform(desk, desk.payer.closing(0))
        reservation.take(1)
        with pytest.raises(ReservationEndedError):
            await reservation.finish()
        assert (await desk.books()).spent == 0


async def test_a_stream_that_outlives_the_wait_is_spent_whole(tmp_path: Path) -> None:
    """Decision 8: another worker's stream may have emitted all it held, one step at most."""
    async with open_desk(tmp_path, close_wait_s=0.05, reservation_step_units=4) as desk:
        await opened(desk)
        held = Hold(reservation_id=b"r" * 16, amount_min=PRICE, amount_max=4 * PRICE)
        outcome = await perform(desk, desk.payer.voucher(500), held)
        reservation = desk.engine.reservation(paid(desk, desk.payer.voucher(500)), held, outcome)
        await reservation.start_stream(StreamPolicy.ALLOW)
        reservation.take(1)
        await perform(desk, desk.payer.closing(0))
        assert (await desk.books()).spent == 4 * PRICE
        assert (await reservation.finish()).spent == 4 * PRICE


async def test_closes_at_the_same_time_are_one(tmp_path: Path) -> None:
    """F-40: every caller gets the same transaction."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        desk.chain.delay_s = 0.02
        outcomes = await asyncio.gather(
            *[perform(desk, desk.payer.closing(amount)) for amount in (10, 20, 30)]
        )
        assert len({outcome.tx_hash for outcome in outcomes}) == 1
        assert len(desk.chain.closed) == 1


async def test_a_close_goes_on_when_its_client_leaves(tmp_path: Path) -> None:
    """F-42: the payer's repeat finds it done."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        desk.chain.answers.clear()
        closing = asyncio.create_task(perform(desk, desk.payer.closing(10)))
        await until(lambda: has_begun(desk))
        closing.cancel()
        await asyncio.wait({closing})
        assert closing.cancelled()
        desk.chain.answers.set()
        await desk.engine.aclose()
        assert (await desk.books()).is_finalized
        again = await perform(desk, desk.payer.closing(10))
        assert again.tx_hash == again.state.close_tx


async def test_a_close_that_reverted_leaves_a_channel_that_goes_on(tmp_path: Path) -> None:
    """CLOSE-04, F-39."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        desk.chain.close_fails_with = TransactionRevertedError("The contract refused.")
        with pytest.raises(TransactionRevertedError):
            await perform(desk, desk.payer.closing(10))
        state = await desk.books()
        assert (state.is_closing, state.closing_with) == (False, None)
        await perform(desk, desk.payer.voucher(50), hold(desk))


def is_waiting() -> bool:
    """Whether a close runs that waits for the settler."""
    return any("Closing._close" in repr(task) for task in asyncio.all_tasks())


async def test_a_pending_close_is_found_by_its_repeat(tmp_path: Path) -> None:
    """F-75: pending is neither success nor failure, and the first decision stands."""
    async with open_desk(tmp_path, close_timeout_s=SHORT_S) as desk:
        await opened(desk)
        desk.chain.close_fails_with = SettlementPendingError("Not mined yet.")
        for amount in (10, 10, 20):  # a repeat while it is pending is pending as well
            with pytest.raises(SettlementPendingError, match="Not mined yet"):
                await perform(desk, desk.payer.closing(amount))
            state = await desk.books()
            assert state.closing_with is not None
            assert (state.closing_with.cumulative_amount, state.published) == (10, 10)
        patient = worker_beside(desk)
        closing = paid(desk, desk.payer.closing(20))
        repeats = [asyncio.create_task(patient.perform(closing)) for _ in range(2)]
        await until(is_waiting)
        assert desk.chain.closed == []
        desk.chain.close_fails_with = None
        outcomes = await asyncio.gather(*repeats)
        assert [amount for _, amount, _ in desk.chain.closed] == [10]
        assert {outcome.tx_hash for outcome in outcomes} == {(await desk.books()).close_tx}
        await patient.aclose()


def worker_beside(desk: Desk) -> Engine:
    """Another worker on the same books, which waits longer for a close."""
    return Engine(
        ledger=desk.ledger,
        chain=desk.chain,
        binder=ChallengeBinder([SECRET]),
        settings=SETTINGS,
        now=desk.clock,
    )


@asynccontextmanager
async def decided(path: Path, **changes: Any) -> AsyncIterator[tuple[Desk, asyncio.Task[Outcome]]]:
    """A close at 10 that a worker waits for, on books that no settler writes to."""
    async with open_desk(path, has_settler=False, **changes) as desk:
        await opened(desk)
        closing = asyncio.create_task(perform(desk, desk.payer.closing(10)))
        await until(lambda: is_decided(desk))
        yield desk, closing


async def is_decided(desk: Desk) -> bool:
    return (await desk.books()).closing_with is not None


async def record(desk: Desk) -> TxHash:
    """Write what a settler writes once the close is mined."""
    tx_hash, fact = await desk.chain.close(desk.payer.key, 10, b"")
    (await desk.ledger.apply(desk.payer.key, [RecordClose(fact, tx_hash)])).require()
    return tx_hash


async def test_a_close_is_answered_with_what_the_settler_records(tmp_path: Path) -> None:
    """CLOSE-05: its transaction, and what the chain says."""
    async with decided(tmp_path) as (desk, closing):
        assert not closing.done()
        tx_hash = await record(desk)
        outcome = await closing
        assert outcome.tx_hash == tx_hash
        assert outcome.state == await desk.books()
        assert (outcome.state.settled, outcome.state.is_finalized) == (10, True)
        assert outcome.state.fact_block == desk.chain.block


async def test_a_close_waits_for_the_settler_for_a_bounded_time(tmp_path: Path) -> None:
    """F-75: the close stays decided."""
    async with decided(tmp_path, close_timeout_s=SHORT_S) as (desk, closing):
        with pytest.raises(SettlementPendingError, match="is being mined"):
            await closing
        assert await is_decided(desk)


async def test_a_close_that_the_settler_withdraws_is_pending(tmp_path: Path) -> None:
    """F-75: for a reason that is not known; the channel continues."""
    async with decided(tmp_path) as (desk, closing):
        await desk.ledger.apply(desk.payer.key, [AbortClose()])
        with pytest.raises(SettlementPendingError, match="withdrawn"):
            await closing
        await perform(desk, desk.payer.voucher(50), hold(desk))


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
    async with decided(tmp_path) as (desk, closing):
        desk.chain.change(desk.payer.key, settled=10, is_finalized=True)  # mined
        desk.clock.advance(100)  # the repeat reads the chain
        reads = desk.chain.reads
        other = worker_beside(desk)
        repeat = asyncio.create_task(other.perform(paid(desk, desk.payer.closing(10))))
        await until(lambda: desk.chain.reads > reads)
        await asyncio.sleep(SHORT_S)
        assert not repeat.done()
        (owed,) = await desk.ledger.list_pending_closes()
        assert owed.key == desk.payer.key
        tx_hash = await record(desk)
        assert [(await each).tx_hash for each in (closing, repeat)] == [tx_hash] * 2
        await other.aclose()


async def test_a_close_begun_by_a_dead_process_is_taken_up(tmp_path: Path) -> None:
    """CLOSE-05: BeginClose was durable, nothing else was."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        await desk.ledger.apply(desk.payer.key, [BeginClose()])
        await perform(desk, desk.payer.closing(10))
        assert desk.chain.closed[0][1] == 10


class OtherWorker:
    """One that takes a close back and sells, whenever this one is about to decide its own."""

    def __init__(self, desk: Desk) -> None:
        self._apply = desk.ledger.apply
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
    async with open_desk(tmp_path) as desk:
        await opened(desk, 5 * PRICE)
        other = OtherWorker(desk)
        monkeypatch.setattr(desk.ledger, "apply", other.apply)
        other.comes = 2
        outcome = await perform(desk, desk.payer.closing(2 * PRICE))
        assert outcome.state.spent == 2 * PRICE
        assert [amount for _, amount, _ in desk.chain.closed] == [2 * PRICE]


async def test_a_close_that_is_overtaken_again_and_again_is_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98, F-75: nothing was sent; the repeat closes for all that was sold meanwhile."""
    async with open_desk(tmp_path) as desk:
        await opened(desk, 5 * PRICE)
        other = OtherWorker(desk)
        monkeypatch.setattr(desk.ledger, "apply", other.apply)
        other.comes = 3
        with pytest.raises(SettlementPendingError):
            await perform(desk, desk.payer.closing(PRICE))
        books = await desk.books()
        assert (books.is_closing, books.closing_with, books.spent) == (True, None, 3 * PRICE)
        assert desk.chain.closed == []
        await perform(desk, desk.payer.closing(3 * PRICE))
        assert [amount for _, amount, _ in desk.chain.closed] == [3 * PRICE]


class Slow:
    """A second worker on the same books, whose node is slow."""

    def __init__(self, desk: Desk) -> None:
        self.chain = ChainModel()
        self.chain.facts = desk.chain.facts
        self.chain.block = desk.chain.block + 10
        self.chain.answers.clear()
        self.engine = Engine(
            ledger=desk.ledger,
            chain=self.chain,
            binder=ChallengeBinder([SECRET]),
            settings=SETTINGS,
            now=desk.clock,
        )


async def test_a_close_that_another_worker_has_made_answers_with_its_transaction(
    tmp_path: Path,
) -> None:
    """O-98, F-40: one close, one transaction, whichever worker is asked."""
    async with open_desk(tmp_path) as desk:
        await opened(desk, 5 * PRICE)
        slow = Slow(desk)
        closing = asyncio.create_task(slow.engine.perform(paid(desk, desk.payer.closing(PRICE))))
        await until(lambda: slow.chain.reads == 1)  # it has looked at the books before
        made = await perform(desk, desk.payer.closing(2 * PRICE))
        slow.chain.answers.set()
        assert (await closing).tx_hash == made.tx_hash
        assert [amount for _, amount, _ in desk.chain.closed] == [2 * PRICE]
        await slow.engine.aclose()


async def test_a_close_that_the_end_of_the_process_cuts_off_stays_owed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, F-42: it is no error to log, and the repeat closes for what was decided."""
    async with open_desk(tmp_path) as desk:
        await opened(desk, 5 * PRICE)
        desk.chain.answers.clear()
        closing = asyncio.create_task(perform(desk, desk.payer.closing(2 * PRICE)))
        await until(lambda: is_decided(desk))
        (cut_off,) = [task for task in asyncio.all_tasks() if "Closing._close" in repr(task)]
        cut_off.cancel()  # as `asyncio.run` does at its end
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not caplog.records
        desk.chain.answers.set()
        await perform(desk, desk.payer.closing(3 * PRICE))
        assert [amount for _, amount, _ in desk.chain.closed] == [2 * PRICE]


async def test_a_channel_that_ended_without_our_close_is_not_closed(tmp_path: Path) -> None:
    """O-98, CLOSE-05: its payer has withdrawn, so there is no transaction to answer with."""
    async with open_desk(tmp_path) as desk:
        await opened(desk, 5 * PRICE)
        desk.chain.change(desk.payer.key, is_finalized=True)
        desk.clock.advance(100)
        with pytest.raises(ChannelFinalizedError):
            await perform(desk, desk.payer.closing(PRICE))
        assert desk.chain.closed == []


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

    async with open_desk(tmp_path) as desk:
        await opened(desk)
        monkeypatch.setattr(SqliteBooks, "write_batch", counted)
        await perform(desk, desk.payer.closing(10))
        await desk.engine.aclose()
    assert [type(command) for command in written] == [BeginClose, CommitClose, RecordClose]


# -- by the payee alone


async def test_the_payee_closes_what_is_spent_and_the_payer_gets_the_rest(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        await spend(desk, 3, 3 * PRICE)
        await desk.engine.decide_close(desk.payer.key)
        await until(lambda: _is_finalized(desk))
        books = await desk.books()
    assert (books.settled, books.spent, books.deposit) == (3 * PRICE, 3 * PRICE, DEPOSIT)


async def test_the_payee_closes_a_channel_once_and_only_one_that_is_known(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.payer.open_on_chain()
        with pytest.raises(ChannelNotFoundError):
            await desk.engine.decide_close(desk.payer.key)
        await opened(desk)
        await desk.engine.decide_close(desk.payer.key)
        await until(lambda: _is_finalized(desk))
        with pytest.raises(ChannelFinalizedError):
            await desk.engine.decide_close(desk.payer.key)


async def _is_finalized(desk: Desk) -> bool:
    return (await desk.books()).is_finalized
