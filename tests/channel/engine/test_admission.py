"""What may be owed to us in all: what is held and delivered takes room, promises take none."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.errors import (
    AmountExceedsDepositError,
    ChainUnavailableError,
    ExposureLimitError,
    InsufficientBalanceError,
    VerificationFailedError,
)
from channel.state.commands import StreamPolicy
from channel.types import TxHash
from settlement.settle.exposure import ExposureGate, ExposureLimits
from tests.channel.engine.test_engine import hold, opened, paid, perform
from tests.channel.selling import DEPOSIT, PRICE, SETTINGS, Payer, open_desk

ROOM = 2 * DEPOSIT


def gate(total_max: int = ROOM) -> ExposureGate:
    return ExposureGate(ExposureLimits(total_max=total_max))


async def test_a_payer_who_signs_much_and_buys_nothing_keeps_no_other_out(tmp_path: Path) -> None:
    """F-98, F-66: a promise costs nothing to sign, with a deposit or without."""
    admission = gate(5 * PRICE)
    async with open_desk(tmp_path, admission=admission, transaction_wait_s=0) as desk:
        desk.payer.open_on_chain()
        invented = replace(desk.payer.opening(ROOM), tx_hash=TxHash(b"\x01" * 32))
        with pytest.raises(VerificationFailedError):
            await perform(desk, invented)
        await opened(desk, DEPOSIT)
        assert (admission.total, admission.is_crowded) == (0, False)


async def test_what_is_held_takes_room_and_gives_back_what_was_not_delivered(
    tmp_path: Path,
) -> None:
    """F-66: with a request; a voucher that is refused, or covers too little, takes none."""
    admission = gate()
    async with open_desk(tmp_path, admission=admission) as desk:
        await opened(desk, PRICE)
        with pytest.raises(AmountExceedsDepositError):
            await perform(desk, desk.payer.voucher(DEPOSIT + 1), hold(desk))
        with pytest.raises(InsufficientBalanceError):
            await perform(desk, desk.payer.voucher(2 * PRICE), hold(desk, units=3))
        assert admission.total == 0
        asked, held = paid(desk, desk.payer.voucher(4 * PRICE)), hold(desk, units=3)
        outcome = await desk.engine.perform(asked, held)
        assert admission.total == 3 * PRICE
        reservation = desk.engine.reservation(asked, held, outcome)
        await reservation.cover(2 * PRICE)
        reservation.take(2)
        await reservation.finish()
        assert admission.total == 2 * PRICE == (await desk.books()).spent


async def test_a_stream_takes_room_step_by_step_and_ends_at_the_bound(tmp_path: Path) -> None:
    """F-66: also on a channel whose voucher promised more before."""
    admission = gate(10 * PRICE)
    settings = replace(SETTINGS, reservation_step_units=4)
    async with open_desk(tmp_path, settings, admission=admission) as desk:
        await opened(desk, PRICE)
        asked, held = paid(desk, desk.payer.voucher(DEPOSIT)), hold(desk)
        outcome = await desk.engine.perform(asked, held)
        reservation = desk.engine.reservation(asked, held, outcome)
        await reservation.start_stream(StreamPolicy.REJECT)

        async def emit_for_ever() -> None:
            while True:
                await reservation.cover(1 * PRICE)
                reservation.take(1)

        with pytest.raises(ExposureLimitError):
            await emit_for_ever()
        emitted = reservation.units
        await reservation.finish()
        books = await desk.books()
        assert books.spent == emitted * PRICE == admission.total
        assert 6 <= emitted <= 10, "it ends where another step would pass the bound"
        assert books.reserved == 0


async def test_what_would_pass_the_bound_is_refused_and_moves_nothing(tmp_path: Path) -> None:
    """F-66: a smaller request, which fits, is served."""
    async with open_desk(tmp_path, admission=gate(5 * PRICE)) as desk:
        await opened(desk, PRICE)
        before = await desk.books()
        with pytest.raises(ExposureLimitError):
            await perform(desk, desk.payer.voucher(6 * PRICE), hold(desk, units=6))
        assert await desk.books() == before
        await perform(desk, desk.payer.voucher(6 * PRICE), hold(desk, units=5))


async def test_while_nodes_disagree_no_deposit_is_taken_and_what_was_is_served(
    tmp_path: Path,
) -> None:
    """SEC-09, OPEN-12: neither an opening nor a top-up; before any node is asked."""
    admission = gate()
    async with open_desk(tmp_path, admission=admission) as desk:
        await opened(desk, PRICE)
        admission.is_disputed = True
        reads = desk.chain.reads
        with pytest.raises(ChainUnavailableError):
            await perform(desk, desk.payer.top_up(500))
        other = Payer(desk.chain, b"\x33" * 32)
        other.open_on_chain()
        desk.payer, known = other, desk.payer
        with pytest.raises(ChainUnavailableError):
            await perform(desk, other.opening(PRICE))
        assert desk.chain.reads == reads
        desk.payer = known
        await perform(desk, known.voucher(2 * PRICE), hold(desk))
        admission.is_disputed = False
        assert (await desk.books()).deposit == DEPOSIT
