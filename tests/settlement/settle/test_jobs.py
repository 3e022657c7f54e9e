"""Jobs that wait to be sent: the most urgent first, those of one kind together, each once."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.errors import SettlementPendingError
from channel.limits import WALLET_SIGNATURE_BYTES_MAX
from channel.types import ChannelFact, ChannelId
from settlement.escrow.payout_calls import build_call
from settlement.settle.jobs import Job, JobQueue, SettleResult
from settlement.tx.state import Purpose
from settlement.types import BatchEntry
from tests.settlement.settle.test_schedule import channel


def job(
    number: int,
    purpose: Purpose = Purpose.SETTLE,
    *,
    amount: int = 5,
    value: int = 0,
    deadline: int = 0,
) -> Job:
    entry = BatchEntry(ChannelId(number.to_bytes(32, "big")), amount, b"s")
    return Job(purpose, entry, value=value, deadline=deadline)


def numbers(jobs: object) -> list[int]:
    assert isinstance(jobs, list)
    return [int.from_bytes(each.entry.channel_id, "big") for each in jobs]


def result() -> SettleResult:
    state = channel()
    fact = ChannelFact(state.key, state.terms, 9, 5, 0, is_finalized=False, block_number=1)
    return SettleResult(tx_hash=None, fact=fact)


async def test_deadlines_come_first_then_value() -> None:
    """F-66."""
    queue = JobQueue(batch_max=2)
    for each in (
        job(1, value=900),
        job(2, value=1, deadline=200),
        job(3, value=9, deadline=200),
        job(4, deadline=100),
        job(5, value=950),
    ):
        queue.add(each)
    assert [numbers(queue.next_batch()) for _ in range(3)] == [[4, 3], [2, 5], [1]]
    assert not queue


async def test_closes_and_settles_go_apart_and_a_channel_goes_once() -> None:
    """F-79: and one that failed with others goes alone, or with fewer."""
    queue = JobQueue(batch_max=100)
    alone = job(6, deadline=3)
    alone.batch_max = 1
    fewer = [job(number, deadline=4) for number in (7, 8, 9)]
    for each in fewer:
        each.batch_max = 2
        queue.add(each)
    for each in (
        job(1, Purpose.CLOSE, deadline=1),
        job(2),
        job(3, Purpose.CLOSE),
        job(2, amount=9),
        alone,
    ):
        queue.add(each)
    batches = [numbers(queue.next_batch()) for _ in range(6)]
    assert batches == [[1, 3], [6], [7, 8], [9], [2], [2]]


async def test_a_lot_is_no_longer_than_what_nodes_pass_on() -> None:
    """F-66, F-79: a hundred wallets' signatures of 4 kB would be refused by every node."""
    queue = JobQueue(batch_max=100)
    for number in range(60):
        each = job(number)
        each.entry = replace(each.entry, signature=bytes(WALLET_SIGNATURE_BYTES_MAX))
        queue.add(each)
    batches = []
    while queue:
        batches.append(queue.next_batch())
    assert sum(map(len, batches)) == 60
    for batch in batches:
        call = build_call(Purpose.SETTLE, [each.entry for each in batch])
        assert len(call) < 128 * 1024 - 4096
    assert len(batches) == 3


async def test_the_same_is_joined_until_it_is_answered() -> None:
    """F-40: a close of any amount; a settle for the same amount."""
    queue = JobQueue(batch_max=100)
    close, settle = job(1, Purpose.CLOSE, amount=5), job(1, amount=5)
    queue.register(close)
    queue.register(settle)
    assert queue.joined(job(1, Purpose.CLOSE, amount=9)) is close
    assert queue.joined(job(1, amount=5)) is settle
    assert queue.joined(job(1, amount=6)) is None
    assert queue.unanswered() == [close, settle]
    settle.succeed(result())
    await settle.answer
    await asyncio.sleep(0)
    assert queue.joined(job(1, amount=5)) is None


async def test_who_waits_for_a_cancelled_settler_hears_that_it_is_pending() -> None:
    """F-75: never that it failed; and the first answer stays."""
    waiting = job(1)
    waiting.fail(asyncio.CancelledError())
    waiting.succeed(result())
    with pytest.raises(SettlementPendingError):
        await waiting.answer


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 3)), max_size=30
    ),
    st.integers(1, 5),
)
def test_everything_that_waits_is_sent_once(
    asked: list[tuple[int, bool, bool, int]], batch_max: int
) -> None:
    async def check() -> None:
        queue = JobQueue(batch_max=batch_max)
        added = []
        for number, is_close, is_alone, deadline in asked:
            each = job(number, Purpose.CLOSE if is_close else Purpose.SETTLE, deadline=deadline)
            each.batch_max = 1 if is_alone else None
            queue.add(each)
            added.append(each)
        sent: list[Job] = []
        while queue:
            batch = queue.next_batch()
            assert 1 <= len(batch) <= batch_max
            assert len({each.purpose for each in batch}) == 1
            assert len({each.entry.channel_id for each in batch}) == len(batch)
            assert len(batch) == 1 or not any(each.batch_max for each in batch)
            sent += batch
        assert sorted(map(id, sent)) == sorted(map(id, added))

    asyncio.run(check())
