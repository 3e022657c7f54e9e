"""What may be owed to us in all: only what was accepted takes room."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.errors import (
    AmountExceedsDepositError,
    ExposureLimitError,
    InsufficientBalanceError,
    VerificationFailedError,
)
from channel.types import TxHash
from settlement.exposure import ExposureGate, ExposureLimits
from tests.channel.engine.test_engine import hold, opened, perform
from tests.channel.selling import DEPOSIT, PRICE, open_desk

ROOM = 2 * DEPOSIT


def gate(total_max: int = ROOM) -> ExposureGate:
    return ExposureGate(ExposureLimits(total_max=total_max))


async def test_a_stranger_without_a_deposit_takes_no_room(tmp_path: Path) -> None:
    """F-98, F-66: a promise costs nothing to sign; with it anybody could keep every payer out."""
    admission = gate()
    async with open_desk(tmp_path, admission=admission, transaction_wait_s=0) as desk:
        desk.payer.open_on_chain()
        invented = replace(desk.payer.opening(ROOM), tx_hash=TxHash(b"\x01" * 32))
        with pytest.raises(VerificationFailedError):
            await perform(desk, invented)
        assert (admission.total, admission.is_crowded) == (0, False)
        with pytest.raises(AmountExceedsDepositError):
            await perform(desk, desk.payer.opening(ROOM))
        assert admission.total == 0


async def test_a_voucher_that_is_refused_takes_no_room(tmp_path: Path) -> None:
    """F-98, VCH-02: and one that is accepted takes its rise, once, covered or not."""
    admission = gate()
    async with open_desk(tmp_path, admission=admission) as desk:
        await opened(desk, PRICE)
        with pytest.raises(AmountExceedsDepositError):
            await perform(desk, desk.payer.voucher(DEPOSIT + 1))
        assert admission.total == PRICE
        with pytest.raises(InsufficientBalanceError):
            await perform(desk, desk.payer.voucher(2 * PRICE), hold(desk, units=3))
        await perform(desk, desk.payer.voucher(2 * PRICE))
        assert admission.total == 2 * PRICE


async def test_what_would_pass_the_bound_is_refused_and_moves_nothing(tmp_path: Path) -> None:
    """F-66: a lower voucher is taken at once."""
    async with open_desk(tmp_path, admission=gate(5 * PRICE)) as desk:
        await opened(desk, PRICE)
        before = await desk.books()
        with pytest.raises(ExposureLimitError):
            await perform(desk, desk.payer.voucher(6 * PRICE), hold(desk))
        assert await desk.books() == before
        await perform(desk, desk.payer.voucher(5 * PRICE), hold(desk))
