"""What is carried out of a plan: once, in order, durable first; a refusal is not the end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from channel.errors import InvariantError
from channel.ledger.sqlite import SqliteLedger
from channel.state.channel_state import LadderVoucher
from channel.state.commands import Command, Release, Spend
from channel.types import ChannelId, ChannelKey
from settlement import abi
from settlement.alarms import AlarmKind, Alarms
from settlement.dev.devnet import Devnet
from settlement.errors import contract_reverted
from settlement.escrow.payer import PayerAccount
from settlement.escrow.payout_calls import OwnCalls
from settlement.escrow.reader import EscrowReader
from settlement.settle.executor import CloseExecutor, Done
from settlement.settle.jobs import CloseResult
from settlement.settle.quarantine import Quarantine
from settlement.settle.schedule import Action, Due, Moment, Reason, SettlePolicy, Watched
from settlement.settle.settler import EscrowSettler, SettleResult
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.state import Purpose
from settlement.types import BatchEntry, RevertReason
from tests.settlement.books import NOW, Books, request_close
from tests.settlement.channels import Channels
from tests.settlement.planning import plan
from tests.waiting import put_ahead, until


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    opened = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def books(reader: EscrowReader, ledger: SqliteLedger, channels: Channels) -> Books:
    return Books(reader, ledger, channels)


class Stubborn:
    """A settler whose closes are refused, as the escrow never does; its settles are real."""

    def __init__(self, settler: EscrowSettler) -> None:
        self._settler = settler
        self.closes = 0

    async def close_channel(
        self,
        key: ChannelKey,  # noqa: ARG002
        cumulative_amount: int,  # noqa: ARG002
        signature: bytes,  # noqa: ARG002
        *,
        value: int = 0,  # noqa: ARG002
        deadline: int = 0,  # noqa: ARG002
    ) -> CloseResult:
        self.closes += 1
        raise contract_reverted(RevertReason.UNKNOWN)

    async def settle_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,
        deadline: int = 0,
    ) -> SettleResult:
        return await self._settler.settle_channel(
            key, cumulative_amount, signature, value=value, deadline=deadline
        )


@pytest.fixture
def settler(chain: Devnet, reader: EscrowReader) -> EscrowSettler:
    return EscrowSettler(reader, chain.sender("payee"))


def due(
    books: Books, channel_id: ChannelId, action: Action, *, is_late: bool = False, amount: int = 0
) -> Due:
    return Due(
        key=books.key(channel_id),
        action=action,
        reason=Reason.FORCED_CLOSE if action is Action.CLOSE else Reason.VALUE,
        value=amount,
        voucher=LadderVoucher(amount, books.sign(channel_id, amount)) if amount else None,
        is_late=is_late,
    )


async def test_a_settle_is_public_before_it_is_sent_and_the_channel_goes_on(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler
) -> None:
    """Decision 5, SETTLE-02, SETTLE-04."""
    channel_id = await books.open(accepted=400, spent=400)
    executor = CloseExecutor(ledger, settler, Alarms())
    settle = due(books, channel_id, Action.SETTLE, amount=400)
    assert await executor.carry_out([settle]) == Done(settled=1)
    state = await books.state(channel_id)
    assert (state.settled, state.published, state.is_finalized) == (400, 400, False)
    assert await executor.carry_out([settle]) == Done(settled=1)  # F-80: nothing is sent again


async def test_a_close_that_is_refused_late_is_followed_by_a_settle(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler, chain: Devnet, account: PayerAccount
) -> None:
    """F-86: for all that was delivered, as little above as the kept vouchers allow."""
    channel_id = await books.open(accepted=400, spent=390)
    await request_close(chain, account, channel_id)
    stubborn = Stubborn(settler)
    executor = CloseExecutor(ledger, stubborn, Alarms())
    early = due(books, channel_id, Action.CLOSE)
    assert await executor.carry_out([early]) == Done(waiting=1)
    assert (await books.state(channel_id)).settled == 0
    late = due(books, channel_id, Action.CLOSE, is_late=True)
    assert await executor.carry_out([late]) == Done(waiting=1)
    state = await books.state(channel_id)
    assert (state.settled, state.is_closing, state.is_finalized) == (400, False, False)
    assert stubborn.closes == 2


class NoClose(OwnCalls):
    """Closes that the escrow refuses, for a reason that may pass; settles as they are."""

    async def build(self, purpose: Purpose, entries: Sequence[BatchEntry]) -> bytes:
        if purpose is Purpose.CLOSE:
            return abi.withdraw.encode(entries[0].channel_id)
        return await super().build(purpose, entries)


async def test_a_close_in_quarantine_is_followed_by_a_settle_too(
    books: Books,
    ledger: SqliteLedger,
    reader: EscrowReader,
    chain: Devnet,
    account: PayerAccount,
    *,
    tmp_path: Path,
) -> None:
    """F-86, F-87: what may pass is waited for, but not beyond the grace period."""
    payee = chain.account("payee").address
    journal = await SqliteJournal.open(
        tmp_path / "journal.db", chain_id=chain.values.chain_id, account=payee
    )
    await journal.take_lease("this test", ttl_s=600)
    settler = EscrowSettler(
        reader, chain.sender("payee"), calls=NoClose(payee), quarantine=Quarantine(journal)
    )
    channel_id = await books.open(accepted=400, spent=390)
    await request_close(chain, account, channel_id)
    executor = CloseExecutor(ledger, settler, Alarms())
    for is_late in (False, True):
        close = due(books, channel_id, Action.CLOSE, is_late=is_late)
        assert await executor.carry_out([close]) == Done(waiting=1)
        state = await books.state(channel_id)
        assert state.settled == (400 if is_late else 0)
        assert state.closing_with is not None
    await journal.close()


async def test_what_is_bought_between_plan_and_close_keeps_the_channel_open(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler
) -> None:
    """F-101: a close for idleness is of a channel that is idle still, not of one that was."""
    executor = CloseExecutor(ledger, settler, Alarms())
    policy = SettlePolicy(close_idle_s=3600)
    moment = Moment(now=NOW + 3600, grace_period_s=900)

    async def planned(channel_id: ChannelId) -> Due:
        watched = Watched(state=await books.state(channel_id))
        (found,) = plan([watched], moment, policy)
        assert found.reason is Reason.IDLE
        return found

    used, paid, running, idle = [await books.open(accepted=400) for _ in range(4)]
    plans = [await planned(each) for each in (used, paid, running, idle)]
    await books.reserve(used, 10)
    spend: list[Command] = [Spend(b"r" * 16, 10), Release(b"r" * 16)]
    (await ledger.apply(books.key(used), spend)).require()
    await books.accept(paid, 500, at=NOW + 3599)
    await books.reserve(running, 10)
    assert await executor.carry_out(plans) == Done(closed=1, waiting=3)
    for each in (used, paid, running):
        state = await books.state(each)
        assert (state.is_closing, state.is_finalized) == (False, False)
    assert (await books.state(idle)).is_finalized


async def test_who_is_refused_is_left_alone_for_a_while(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-79: longer each time; a request for that channel is tried immediately."""
    channel_id = await books.open(accepted=400, spent=400)
    stubborn = Stubborn(settler)
    executor = CloseExecutor(ledger, stubborn, Alarms(), retry_s=20)
    close = due(books, channel_id, Action.CLOSE)
    await executor.carry_out([close])
    for _ in range(5):
        executor.submit([close])
        await asyncio.sleep(0.01)
    assert stubborn.closes == 1
    await executor.carry_out([close])
    assert stubborn.closes == 2
    put_ahead(30, monkeypatch)  # it waits for 20 s, then for 40
    executor.submit([close])
    await asyncio.sleep(0.05)
    assert stubborn.closes == 2
    put_ahead(50, monkeypatch)
    executor.submit([close])
    await until(lambda: stubborn.closes == 3)
    await executor.tasks.aclose()


async def test_a_channel_has_one_thing_done_at_a_time(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler, chain: Devnet, account: PayerAccount
) -> None:
    """F-40: a caller that asks meanwhile gets the same close."""
    channel_id = await books.open(accepted=400, spent=400)
    await request_close(chain, account, channel_id)
    executor = CloseExecutor(ledger, settler, Alarms())
    close = due(books, channel_id, Action.CLOSE)
    executor.submit([close, close])
    assert await executor.carry_out([close, close]) == Done(closed=2)
    assert (await books.state(channel_id)).settled == 400


async def test_a_close_that_another_settler_has_recorded_is_not_sent_again(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler
) -> None:
    """O-98, F-40: one close, one transaction, whichever process finds it due."""
    channel_id = await books.open(accepted=400, spent=400)
    close = due(books, channel_id, Action.CLOSE)
    assert await CloseExecutor(ledger, settler, Alarms()).carry_out([close]) == Done(closed=1)
    other = Stubborn(settler)
    assert await CloseExecutor(ledger, other, Alarms()).carry_out([close]) == Done(closed=1)
    assert other.closes == 0


async def test_a_close_that_ends_for_less_than_was_delivered_is_reported(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler, chain: Devnet, account: PayerAccount
) -> None:
    """F-64: its payer withdrew between the plan and the close."""
    channel_id = await books.open(accepted=400, spent=400)
    await request_close(chain, account, channel_id)
    await chain.advance(900)
    await account.withdraw(escrow=chain.values.escrow, channel_id=channel_id)
    alarms = Alarms()
    await CloseExecutor(ledger, settler, alarms).carry_out([due(books, channel_id, Action.CLOSE)])
    assert [alarm.kind for alarm in alarms.ringing] == [AlarmKind.CHANNEL_LOST]
    assert (await books.state(channel_id)).is_finalized


async def test_a_plan_without_a_voucher_is_a_bug(
    books: Books, ledger: SqliteLedger, settler: EscrowSettler
) -> None:
    """An `InvariantError` stops the worker."""
    channel_id = await books.open(accepted=400, spent=400)
    executor = CloseExecutor(ledger, settler, Alarms())
    with pytest.raises(InvariantError):
        await executor.carry_out([due(books, channel_id, Action.SETTLE)])
    with pytest.raises(InvariantError):
        executor.tasks.require_sound()
