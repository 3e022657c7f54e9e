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
from tests.channel.selling import DEPOSIT, PRICE, SETTINGS, Payer, open_provider

ROOM = 2 * DEPOSIT


def gate(total_max: int = ROOM) -> ExposureGate:
    return ExposureGate(ExposureLimits(total_max=total_max))


async def test_a_payer_who_signs_much_and_buys_nothing_keeps_no_other_out(tmp_path: Path) -> None:
    """F-98, F-66: a promise costs nothing to sign, with a deposit or without."""
    admission = gate(5 * PRICE)
    async with open_provider(tmp_path, admission=admission, transaction_wait_s=0) as provider:
        provider.payer.open_on_chain()
        invented = replace(provider.payer.opening(ROOM), tx_hash=TxHash(b"\x01" * 32))
        with pytest.raises(VerificationFailedError):
            await perform(provider, invented)
        await opened(provider, DEPOSIT)
        assert (admission.total, admission.is_crowded) == (0, False)


async def test_what_is_held_takes_room_and_gives_back_what_was_not_delivered(
    tmp_path: Path,
) -> None:
    """F-66: with a request; a voucher that is refused, or covers too little, takes none."""
    admission = gate()
    async with open_provider(tmp_path, admission=admission) as provider:
        await opened(provider, PRICE)
        with pytest.raises(AmountExceedsDepositError):
            await perform(provider, provider.payer.voucher(DEPOSIT + 1), hold(provider))
        with pytest.raises(InsufficientBalanceError):
            await perform(provider, provider.payer.voucher(2 * PRICE), hold(provider, units=3))
        assert admission.total == 0
        asked, held = paid(provider, provider.payer.voucher(4 * PRICE)), hold(provider, units=3)
        outcome = await provider.engine.perform(asked, held)
        assert admission.total == 3 * PRICE
        reservation = provider.engine.reservation(asked, held, outcome)
        await reservation.cover(2 * PRICE)
        reservation.take(2)
        await reservation.finish()
        assert admission.total == 2 * PRICE == (await provider.books()).spent


async def test_a_stream_takes_room_step_by_step_and_ends_at_the_bound(tmp_path: Path) -> None:
    """F-66: also on a channel whose voucher promised more before."""
    admission = gate(10 * PRICE)
    settings = replace(SETTINGS, reservation_step_units=4)
    async with open_provider(tmp_path, settings, admission=admission) as provider:
        await opened(provider, PRICE)
        asked, held = paid(provider, provider.payer.voucher(DEPOSIT)), hold(provider)
        outcome = await provider.engine.perform(asked, held)
        reservation = provider.engine.reservation(asked, held, outcome)
        await reservation.start_stream(StreamPolicy.REJECT)

        async def emit_for_ever() -> None:
            while True:
                await reservation.cover(1 * PRICE)
                reservation.take(1)

        with pytest.raises(ExposureLimitError):
            await emit_for_ever()
        emitted = reservation.units
        await reservation.finish()
        books = await provider.books()
        assert books.spent == emitted * PRICE == admission.total
        assert 6 <= emitted <= 10, "it ends where another step would pass the bound"
        assert books.reserved == 0


async def test_what_would_pass_the_bound_is_refused_and_moves_nothing(tmp_path: Path) -> None:
    """F-66: a smaller request, which fits, is served."""
    async with open_provider(tmp_path, admission=gate(5 * PRICE)) as provider:
        await opened(provider, PRICE)
        before = await provider.books()
        with pytest.raises(ExposureLimitError):
            await perform(provider, provider.payer.voucher(6 * PRICE), hold(provider, units=6))
        assert await provider.books() == before
        await perform(provider, provider.payer.voucher(6 * PRICE), hold(provider, units=5))


async def test_while_nodes_disagree_no_deposit_is_taken_and_what_was_is_served(
    tmp_path: Path,
) -> None:
    """SEC-09, OPEN-12: neither an opening nor a top-up; before any node is asked."""
    admission = gate()
    async with open_provider(tmp_path, admission=admission) as provider:
        await opened(provider, PRICE)
        admission.is_disputed = True
        reads = provider.chain.reads
        with pytest.raises(ChainUnavailableError):
            await perform(provider, provider.payer.top_up(500))
        other = Payer(provider.chain, b"\x33" * 32)
        other.open_on_chain()
        provider.payer, known = other, provider.payer
        with pytest.raises(ChainUnavailableError):
            await perform(provider, other.opening(PRICE))
        assert provider.chain.reads == reads
        provider.payer = known
        await perform(provider, known.voucher(2 * PRICE), hold(provider))
        admission.is_disputed = False
        assert (await provider.books()).deposit == DEPOSIT
