"""The sweep: the ledger hears what changed on chain, and no voucher dies in a grace period."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.errors import ChainUnavailableError, InvariantError
from channel.ledger.interface import Applied
from channel.ledger.maintenance import repair
from channel.ledger.sqlite import SqliteLedger
from channel.state.commands import (
    AbortClose,
    BeginClose,
    Command,
    CommitClose,
)
from channel.state.ladder import closing_voucher
from channel.types import ChannelKey
from settlement.alarms import AlarmKind
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc, RpcLimits
from settlement.settle.jobs import CloseResult
from settlement.settle.settler import EscrowSettler, SettleResult
from settlement.tx.manager import TxLimits, TxManager
from settlement.watch.watcher import ChannelWatcher, Sweep, WatchLimits
from tests.settlement.books import Books, request_close
from tests.settlement.channels import DEPOSIT, Channels, set_paused
from tests.settlement.flaky_node import flaky_node
from tests.waiting import PATIENCE_S, until


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    opened = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def watcher(chain: Devnet, reader: EscrowReader, ledger: SqliteLedger) -> ChannelWatcher:
    limits = WatchLimits(interval_s=0.01, channels_per_page=2)
    return ChannelWatcher(
        reader, ledger, EscrowSettler(reader, chain.sender("payee")), limits=limits
    )


@pytest.fixture
def books(reader: EscrowReader, ledger: SqliteLedger, channels: Channels) -> Books:
    return Books(reader, ledger, channels)


# -- what the ledger hears


async def test_channels_that_did_not_change_cost_no_write(
    watcher: ChannelWatcher, books: Books, chain: Devnet
) -> None:
    """Several pages, several calls, the books as they were."""
    opened = [await books.open(accepted=5) for _ in range(5)]
    before = [await books.state(channel_id) for channel_id in opened]
    await chain.mine(3)
    assert await watcher.sweep() == Sweep(read=5)
    assert [await books.state(channel_id) for channel_id in opened] == before


async def test_a_top_up_is_heard(watcher: ChannelWatcher, books: Books, channels: Channels) -> None:
    """F-50: also one that no client has announced."""
    channel_id = await books.open()
    await channels.top_up(channel_id, 77)
    assert (await watcher.sweep()).changed == 1
    assert (await books.state(channel_id)).deposit == DEPOSIT + 77


async def test_a_requested_close_with_nothing_owed_is_heard_and_left_to_the_payer(
    watcher: ChannelWatcher, books: Books, chain: Devnet, account: PayerAccount
) -> None:
    channel_id = await books.open(accepted=9)
    await request_close(chain, account, channel_id)
    assert await watcher.sweep() == Sweep(read=1, changed=1)
    state = await books.state(channel_id)
    assert state.close_requested_at == (await chain.rpc.block()).timestamp
    assert not state.is_finalized


async def test_a_cancelled_close_is_heard(
    watcher: ChannelWatcher, books: Books, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """TOPUP-05."""
    channel_id = await books.open(accepted=9)
    await request_close(chain, account, channel_id)
    await watcher.sweep()
    await channels.top_up(channel_id, 1)
    await watcher.sweep()
    assert (await books.state(channel_id)).close_requested_at == 0


async def test_a_withdrawn_channel_is_heard_with_what_it_cost(
    watcher: ChannelWatcher,
    books: Books,
    chain: Devnet,
    account: PayerAccount,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F-64: if we were down for the whole grace period, the operator must know."""
    channel_id = await books.open(accepted=9, spent=9)
    await request_close(chain, account, channel_id)
    await chain.advance(900)
    await account.withdraw(escrow=chain.values.escrow, channel_id=channel_id)
    with caplog.at_level(logging.ERROR, "settlement.watch.watcher"):
        assert await watcher.sweep() == Sweep(read=1, changed=1)
    assert "9 delivered and unpaid" in caplog.text
    assert (await books.state(channel_id)).is_finalized
    assert await watcher.sweep() == Sweep(read=0)


async def test_an_opening_that_a_reorg_took_back_freezes_and_thaws(
    watcher: ChannelWatcher, books: Books, chain: Devnet
) -> None:
    """F-70: the channel is stopped, `spent` stays, and all goes on when it is mined again."""
    before = await chain.snapshot()
    channel_id = await books.open(accepted=9, spent=4)
    opened_at = (await books.state(channel_id)).fact_block
    after = await chain.rpc.read("anvil_dumpState")
    await chain.revert(before)
    assert (await watcher.sweep()).changed == 0  # a head below what we know: a node that lags
    await chain.mine(opened_at)
    await watcher.sweep()
    gone = await books.state(channel_id)
    assert (gone.deposit, gone.accepted, gone.spent) == (0, 9, 4)
    assert gone.is_stopped
    await chain.rpc.command("anvil_loadState", after)
    await chain.mine(gone.fact_block)
    await watcher.sweep()
    back = await books.state(channel_id)
    assert (back.deposit, back.spent, back.is_stopped) == (DEPOSIT, 4, False)


async def test_a_deposit_counts_when_it_is_deep_and_an_exit_immediately(
    chain: Devnet,
    reader: EscrowReader,
    ledger: SqliteLedger,
    books: Books,
    channels: Channels,
    *,
    account: PayerAccount,
) -> None:
    """OPEN-12: three confirmations for what speaks for the payer, none for what speaks against."""
    settler = EscrowSettler(reader, chain.sender("payee"))
    watcher = ChannelWatcher(reader, ledger, settler, limits=WatchLimits(confirmations=3))
    channel_id = await books.open()
    await channels.top_up(channel_id, 50)
    assert (await watcher.sweep()).changed == 0
    await chain.mine(1)
    assert (await watcher.sweep()).changed == 0, "O-96: one block too early"
    await chain.mine(1)
    assert (await watcher.sweep()).changed == 1
    assert (await books.state(channel_id)).deposit == DEPOSIT + 50
    await request_close(chain, account, channel_id)
    assert (await watcher.sweep()).changed == 1
    state = await books.state(channel_id)
    assert state.close_requested_at != 0
    assert state.deposit == DEPOSIT + 50


async def test_books_that_are_behind_ring_in_every_process_until_they_are_repaired(
    chain: Devnet, reader: EscrowReader, ledger: SqliteLedger, books: Books
) -> None:
    """SETTLE-05: who starts later hears nothing new of the channel, and it is stopped still."""
    channel_id = await books.open(accepted=9, spent=9)
    elsewhere = EscrowSettler(reader, chain.sender("payee"))
    await elsewhere.settle_channel(books.key(channel_id), 50, books.sign(channel_id, 50))
    for _ in range(2):
        watcher = ChannelWatcher(reader, ledger, None)
        await watcher.sweep()
        assert [each.kind for each in watcher.alarms.ringing] == [AlarmKind.BOOKS_BEHIND]
    await repair(ledger, books.key(channel_id), accepted=50, spent=50)
    await watcher.sweep()
    assert watcher.alarms.ringing == []


# -- the defence (F-63, F-64, F-66, CLOSE-08)


async def test_a_requested_close_is_answered_with_what_was_delivered(
    watcher: ChannelWatcher, books: Books, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """AMB-08: the lowest kept voucher at or above `spent`, not the highest."""
    payee = channels.terms.payee
    before = await chain.token_balance(payee)
    channel_id = await books.open(accepted=500, spent=300)
    await books.accept(channel_id, 9_000)
    await request_close(chain, account, channel_id)
    assert await watcher.sweep() == Sweep(read=1, changed=1, closed=1)
    state = await books.state(channel_id)
    assert state.is_finalized
    assert (state.settled, state.published) == (500, 500)
    assert len(state.close_tx) == 32
    assert await chain.token_balance(payee) == before + 500
    assert await watcher.sweep() == Sweep(read=1)  # whether the chain has it, too
    assert await watcher.sweep() == Sweep(read=0)


async def test_another_payees_channel_in_the_same_books_is_left_to_its_own_settler(
    chain: Devnet,
    reader: EscrowReader,
    ledger: SqliteLedger,
    books: Books,
    channels: Channels,
    *,
    account: PayerAccount,
) -> None:
    """F-81, F-110: to try would be refused, and to be refused takes back the close it is owed."""
    payee = channels.terms.payee
    channels.terms = replace(channels.terms, payee=chain.account("stranger").address)
    theirs = await books.open(accepted=500, spent=300)
    await request_close(chain, account, theirs)
    commit = CommitClose(closing_voucher(await books.state(theirs), None))
    (await ledger.apply(books.key(theirs), [BeginClose(), commit])).require()
    settler = EscrowSettler(reader, chain.sender("payee"))
    watcher = ChannelWatcher(reader, ledger, settler, payee=payee)
    assert await watcher.sweep() == Sweep()
    assert (await books.state(theirs)).closing_with is not None
    own = ChannelWatcher(
        reader,
        ledger,
        EscrowSettler(reader, chain.sender("stranger")),
        payee=chain.account("stranger").address,
    )
    assert (await own.sweep()).closed == 1


async def test_many_requested_closes_are_all_answered(
    watcher: ChannelWatcher, books: Books, chain: Devnet, account: PayerAccount
) -> None:
    """F-66."""
    opened = [await books.open(accepted=100 + i, spent=100 + i) for i in range(5)]
    for channel_id in opened:
        await request_close(chain, account, channel_id)
    assert await watcher.sweep() == Sweep(read=5, changed=5, closed=5)
    for i, channel_id in enumerate(opened):
        assert (await books.state(channel_id)).settled == 100 + i


async def test_what_runs_may_end_first_but_not_for_ever(
    watcher: ChannelWatcher, books: Books, chain: Devnet, account: PayerAccount
) -> None:
    """Decision 8: a close waits for reservations, then ends them; a stream's becomes `spent`.

    F-111: the blocks show how long it waits, not this machine's clock.
    """
    channel_id = await books.open(accepted=50, spent=20)
    await books.reserve(channel_id, 30, name=b"s")
    await request_close(chain, account, channel_id)
    assert await watcher.sweep() == Sweep(read=1, changed=1, waiting=1)
    state = await books.state(channel_id)
    assert (state.is_closing, state.reserved, state.closing_with) == (True, 30, None)
    await chain.advance(121)
    assert await watcher.sweep() == Sweep(read=1, closed=1)
    state = await books.state(channel_id)
    assert (state.spent, state.settled) == (50, 50)


async def test_a_close_decided_before_a_crash_is_carried_out(
    watcher: ChannelWatcher, books: Books, ledger: SqliteLedger
) -> None:
    """SETTLE-04: the intent is durable; the next process owes the channel its close."""
    channel_id = await books.open(accepted=10, spent=10)
    state = await books.state(channel_id)
    commit = CommitClose(closing_voucher(state, None))
    (await ledger.apply(state.key, [BeginClose(), commit])).require()
    assert await watcher.sweep() == Sweep(read=1, closed=1)
    assert (await books.state(channel_id)).settled == 10


async def test_a_close_that_was_begun_and_never_decided_is_taken_back(
    chain: Devnet, reader: EscrowReader, ledger: SqliteLedger, books: Books
) -> None:
    """SETTLE-05: its process died; nothing was promised, and the payer may close again."""
    settler = EscrowSettler(reader, chain.sender("payee"))
    channel_id = await books.open(accepted=10, spent=10)
    (await ledger.apply(books.key(channel_id), [BeginClose()])).require()
    patient = ChannelWatcher(reader, ledger, settler)
    await patient.sweep()
    await patient.sweep()
    assert (await books.state(channel_id)).is_closing
    limits = WatchLimits(half_closed_s_max=0)
    await ChannelWatcher(reader, ledger, settler, limits=limits).sweep()
    assert not (await books.state(channel_id)).is_closing


class Deciding:
    """A ledger in which a worker decides its close just before that is to be taken back."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def apply(self, key: ChannelKey, commands: Sequence[Command]) -> Applied:
        if isinstance(commands[0], AbortClose):
            state = await self._ledger.load(key)
            assert state is not None
            commit = CommitClose(closing_voucher(state, None))
            (await self._ledger.apply(key, [commit])).require()
        return await self._ledger.apply(key, commands)


async def test_a_close_that_is_decided_at_the_last_moment_is_owed(
    reader: EscrowReader, ledger: SqliteLedger, books: Books
) -> None:
    """SETTLE-04: its voucher is public and its payer answered; only an undecided one is undone."""
    channel_id = await books.open(accepted=10, spent=10)
    (await ledger.apply(books.key(channel_id), [BeginClose()])).require()
    limits = WatchLimits(half_closed_s_max=0)
    racing: Any = Deciding(ledger)
    await ChannelWatcher(reader, racing, None, limits=limits).sweep()
    assert (await books.state(channel_id)).closing_with is not None


async def test_a_refused_close_is_taken_back_and_tried_again(
    watcher: ChannelWatcher, books: Books, chain: Devnet, account: PayerAccount
) -> None:
    """F-87: a paused token refuses; when it moves again, so do we."""
    channel_id = await books.open(accepted=10, spent=10)
    await request_close(chain, account, channel_id)
    await set_paused(chain, on=True)
    assert await watcher.sweep() == Sweep(read=1, changed=1, waiting=1)
    state = await books.state(channel_id)
    assert (state.is_closing, state.closing_with, state.is_finalized) == (False, None, False)
    await set_paused(chain, on=False)
    assert await watcher.sweep() == Sweep(read=1, closed=1)
    assert (await books.state(channel_id)).settled == 10


async def test_one_close_that_fails_does_not_stop_the_others(
    watcher: ChannelWatcher, books: Books, chain: Devnet, account: PayerAccount
) -> None:
    """F-79: a voucher the escrow refuses, first in line by value."""
    good = await books.open(accepted=10, spent=10)
    bad = await books.open(accepted=900, spent=900, signed_by="stranger")
    for channel_id in (good, bad):
        await request_close(chain, account, channel_id)
    assert await watcher.sweep() == Sweep(read=2, changed=2, closed=1, waiting=1)
    assert (await books.state(good)).settled == 10
    assert not (await books.state(bad)).is_finalized


class BuggySettler:
    """A settler with a bug."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def close_channel(
        self,
        key: ChannelKey,  # noqa: ARG002
        cumulative_amount: int,  # noqa: ARG002
        signature: bytes,  # noqa: ARG002
        *,
        value: int = 0,  # noqa: ARG002
        deadline: int = 0,  # noqa: ARG002
    ) -> CloseResult:
        raise self._error

    async def settle_channel(
        self,
        key: ChannelKey,  # noqa: ARG002
        cumulative_amount: int,  # noqa: ARG002
        signature: bytes,  # noqa: ARG002
        *,
        value: int = 0,  # noqa: ARG002
        deadline: int = 0,  # noqa: ARG002
    ) -> SettleResult:
        raise self._error


async def test_a_close_that_is_not_mined_in_time_is_owed_still(
    chain: Devnet, reader: EscrowReader, ledger: SqliteLedger, books: Books, account: PayerAccount
) -> None:
    """F-75: the decision stays, and the next sweep finds the same transaction."""
    limits = TxLimits(mined_within_s=0.05, poll_max_s=0.01)
    sender = TxManager(chain.rpc, chain.signer("payee"), limits=limits)
    watcher = ChannelWatcher(reader, ledger, EscrowSettler(reader, sender))
    channel_id = await books.open(accepted=10, spent=10)
    await request_close(chain, account, channel_id)
    async with chain.mining_paused():
        assert await watcher.sweep() == Sweep(read=1, changed=1, waiting=1)
        state = await books.state(channel_id)
        assert state.closing_with is not None
        assert state.published == 10

    async def closes() -> bool:
        return (await watcher.sweep()).closed == 1

    await until(closes)
    state = await books.state(channel_id)
    assert state.settled == 10
    assert len(state.close_tx) == 32  # for the payer's own retry (CLOSE-05)


async def test_a_bug_is_not_caught(
    chain: Devnet, reader: EscrowReader, ledger: SqliteLedger, books: Books, account: PayerAccount
) -> None:
    """An `InvariantError` stops the worker, from within many closes too."""
    for _ in range(2):
        await request_close(chain, account, await books.open(accepted=10, spent=10))
    limits = WatchLimits(interval_s=600, poll_interval_s=600)  # the next look would be too late
    buggy = ChannelWatcher(reader, ledger, BuggySettler(InvariantError("a bug")), limits=limits)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(InvariantError, match="a bug"):
            await buggy.run()


# -- the loop


async def test_the_loop_goes_on_when_the_node_was_away(
    chain: Devnet, ledger: SqliteLedger, books: Books, account: PayerAccount
) -> None:
    """A node that fails costs one sweep, not the watcher."""
    channel_id = await books.open(accepted=10, spent=10)
    await request_close(chain, account, channel_id)
    async with (
        flaky_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url, limits=RpcLimits(read_attempts_max=1)) as rpc,
    ):
        reader = EscrowReader(rpc, chain.values.escrow)
        settler = EscrowSettler(reader, chain.sender("payee"))
        limits = WatchLimits(interval_s=0.01, poll_interval_s=0.01)
        node.fail("error", method="eth_getBlockByNumber")
        loop = asyncio.create_task(ChannelWatcher(reader, ledger, settler, limits=limits).run())
        try:
            await until(lambda: node.seen.count("eth_getBlockByNumber") > 1)
            assert not (await books.state(channel_id)).is_finalized
            node.fail("none")
            async with asyncio.timeout(PATIENCE_S), ledger.watch(books.key(channel_id)) as watch:
                while not (await books.state(channel_id)).is_finalized:
                    await watch.changed(1)
            await asyncio.sleep(0.05)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
    assert (await books.state(channel_id)).settled == 10


# -- on an operator's order


async def test_everything_is_settled_however_little_it_is(
    watcher: ChannelWatcher, books: Books
) -> None:
    """O-68: what a sweep leaves until it is worth its gas."""
    paid, nothing = await books.open(accepted=5, spent=5), await books.open()
    assert (await watcher.sweep()).settled == 0
    assert await watcher.settle_all() == Sweep(read=2, settled=1)
    assert (await books.state(paid)).settled == 5
    assert (await books.state(nothing)).settled == 0
    assert (await watcher.settle_all()).settled == 0


async def test_without_a_settler_nothing_is_settled_on_an_order(
    reader: EscrowReader, ledger: SqliteLedger
) -> None:
    with pytest.raises(ChainUnavailableError):
        await ChannelWatcher(reader, ledger, None).settle_all()
