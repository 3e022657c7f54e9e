"""The owner's count and the ledger's: never apart, never more than a step."""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from channel.engine import RunningReservation
from channel.errors import (
    ExposureLimitError,
    InsufficientBalanceError,
    LedgerUnavailableError,
    ReservationEndedError,
    StreamReplacedError,
)
from channel.ledger.interface import Applied, Ledger
from channel.state.commands import Command, EndReservations, StreamPolicy
from channel.types import ChannelKey
from settlement.settle.exposure import ExposureGate, ExposureLimits
from tests.channel.engine.test_engine import hold, opened, paid, perform
from tests.channel.selling import PRICE, Provider, open_provider
from tests.waiting import until


async def running(
    provider: Provider, amount: int, *, units: int = 1, is_stream: bool = True
) -> RunningReservation:
    held = hold(provider, units)
    outcome = await perform(provider, provider.payer.voucher(amount), held)
    reservation = provider.engine.reservation(
        paid(provider, provider.payer.voucher(amount)), held, outcome
    )
    if is_stream:
        await reservation.start_stream(StreamPolicy.REPLACE)
    return reservation


async def test_what_was_taken_is_spent_and_the_rest_given_back(tmp_path: Path) -> None:
    """ACC-05, SSE-07."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reservation = await running(provider, 50 * PRICE)
        reservation.take(7)
        state = await reservation.finish()
        assert (state.spent, state.reserved) == (7 * PRICE, 0)


async def test_a_sale_is_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """O-63: what was delivered, on which channel; nothing where nothing was."""
    with caplog.at_level("INFO", logger="channel.engine.reservation"):
        async with open_provider(tmp_path) as provider:
            await opened(provider)
            reservation = await running(provider, 50 * PRICE)
            reservation.take(7)
            for _ in range(2):
                await reservation.finish()
            await (await running(provider, 60 * PRICE)).finish()
    channel_id = reservation.key.channel_id[:4].hex()
    assert [record.getMessage() for record in caplog.records] == [
        f"sold on channel 0x{channel_id}...: request=7, {7 * PRICE} base units"
    ]


async def test_finishing_twice_spends_once(tmp_path: Path) -> None:
    """F-42."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reservation = await running(provider, 50 * PRICE)
        reservation.take(7)
        await asyncio.gather(*[reservation.finish() for _ in range(5)])
        assert (await provider.books()).spent == 7 * PRICE


async def test_what_is_given_back_is_not_spent(tmp_path: Path) -> None:
    """F-48."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reservation = await running(provider, 50 * PRICE, is_stream=False)
        reservation.take(1)
        reservation.give_back()
        assert reservation.units == 0
        assert (await reservation.finish()).spent == 0


async def test_a_stream_that_was_stopped_is_covered_no_further(tmp_path: Path) -> None:
    """F-42: the books would go on; the process that ends must not."""
    async with open_provider(tmp_path, reservation_step_units=2) as provider:
        await opened(provider)
        reservation = await running(provider, 50 * PRICE)
        reservation.stop(StreamReplacedError("the reason"))
        with pytest.raises(StreamReplacedError, match="the reason"):
            await reservation.cover(3 * PRICE)


async def test_a_stream_that_begins_twice_is_one(tmp_path: Path) -> None:
    """O-98, ACC-06: it holds once, and does not take over again from one that is newer."""
    async with open_provider(tmp_path, reservation_step_units=2) as provider:
        await opened(provider)
        older = await running(provider, 50 * PRICE)
        await older.start_stream(StreamPolicy.REPLACE)
        assert (await provider.books()).reserved == 2 * PRICE
        newer = await running(provider, 60 * PRICE)
        await older.start_stream(StreamPolicy.REPLACE)
        await newer.cover(3 * PRICE)
        newer.take(3)
        with pytest.raises(StreamReplacedError):
            await older.cover(3 * PRICE)
        await older.finish()
        state = await newer.finish()
        assert (state.spent, state.reserved) == (3 * PRICE, 0)


async def test_what_is_no_longer_held_cannot_be_flushed(tmp_path: Path) -> None:
    """O-94: nothing may be sent for it."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reservation = await running(provider, 50 * PRICE, is_stream=False)
        reservation.take(1)
        await provider.ledger.apply(provider.payer.key, [EndReservations()])
        with pytest.raises(ReservationEndedError):
            await reservation.flush()


async def test_a_stream_that_finds_no_room_holds_nothing(tmp_path: Path) -> None:
    """F-66, O-94: its request's money goes back with the refusal, not with the lease."""
    admission = ExposureGate(ExposureLimits(total_max=2 * PRICE))
    async with open_provider(tmp_path, admission=admission, reservation_step_units=4) as provider:
        await opened(provider)
        reservation = await running(provider, 50 * PRICE, is_stream=False)
        with pytest.raises(ExposureLimitError):
            await reservation.start_stream(StreamPolicy.REPLACE)
        assert (await provider.books()).reserved == 0


async def test_the_count_survives_cancellation_wherever_it_comes(tmp_path: Path) -> None:
    """F-42: after any interruption, what was taken is what is spent, to the unit."""
    chance = random.Random(7)  # noqa: S311 - a repeatable history, not a secret
    async with open_provider(tmp_path, reservation_step_units=4) as provider:
        await opened(provider)
        taken = 0
        for round_number in range(1, 25):
            reservation = await running(provider, voucher_amount(round_number))

            async def emit(reservation: RunningReservation = reservation) -> None:
                nonlocal taken
                while True:
                    await reservation.cover(1 * PRICE)
                    reservation.take(1)
                    taken += 1

            emitting = asyncio.create_task(emit())
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            await asyncio.sleep(chance.random() / 500)
            emitting.cancel()
            await asyncio.wait({emitting})
            finishing = asyncio.create_task(reservation.finish())
            await asyncio.sleep(0)
            finishing.cancel()
            await asyncio.wait({finishing})
            await provider.engine.aclose()
            state = await provider.books()
            assert (state.spent, state.reserved) == (taken * PRICE, 0)


def voucher_amount(round_number: int) -> int:
    return min(1_000, round_number * 40)


async def test_a_shortfall_says_which_voucher_would_do(tmp_path: Path) -> None:
    """SSE-02: for all the units that were asked, not for one."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reservation = await running(provider, 5 * PRICE)
        reservation.take(2)
        with pytest.raises(InsufficientBalanceError) as refusal:
            await reservation.cover(10 * PRICE)
        assert refusal.value.required_cumulative == 12 * PRICE
        await perform(provider, provider.payer.voucher(12 * PRICE))
        await reservation.cover(10 * PRICE)
        assert reservation.covered_units >= 10


async def test_a_reservation_that_ended_covers_nothing(tmp_path: Path) -> None:
    """Decision 8, F-43: its lease ran out, or a close ended it."""
    async with open_provider(tmp_path, reservation_step_units=2) as provider:
        await opened(provider)
        reservation = await running(provider, 50 * PRICE)
        reservation.take(1)
        await provider.ledger.apply(provider.payer.key, [EndReservations()])
        with pytest.raises(ReservationEndedError):
            await reservation.cover(3 * PRICE)
        assert (await reservation.finish()).spent == 2 * PRICE


async def test_a_replaced_stream_gets_no_further_step(tmp_path: Path) -> None:
    """ACC-06: this process stops it immediately, and the books refuse it in any process."""
    async with open_provider(tmp_path, reservation_step_units=2) as provider:
        await opened(provider)
        older = await running(provider, 40 * PRICE)
        newer = await running(provider, 80 * PRICE)
        assert older.stopped.is_set()
        with pytest.raises(StreamReplacedError):
            await older.cover(3 * PRICE)
        await newer.cover(3 * PRICE)
        await older.finish()
        assert older.state.spent == 0


class Outage:
    """A database that is lost during a commit; the caller cannot know whether it was made."""

    def __init__(self, ledger: Ledger) -> None:
        self._apply = ledger.apply
        self.is_made = True
        self.lasts = 0
        """So many more changes meet it."""

    async def apply(self, key: ChannelKey, commands: Sequence[Command], **options: Any) -> Applied:
        if not self.lasts or not commands:
            return await self._apply(key, commands, **options)
        self.lasts -= 1
        if self.is_made:
            await self._apply(key, commands, **options)
        raise LedgerUnavailableError("The connection was lost during the commit.")


@pytest.mark.parametrize("is_made", [True, False])
@pytest.mark.parametrize("change", ["fill", "flush"])
async def test_what_was_perhaps_spent_is_spent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, *, is_made: bool
) -> None:
    """F-42, F-51: after a lost answer it reads before it goes on; the count stays right."""
    async with open_provider(tmp_path, reservation_step_units=4) as provider:
        await opened(provider)
        outage = Outage(provider.ledger)
        monkeypatch.setattr(provider.ledger, "apply", outage.apply)
        reservation = await running(provider, 50 * PRICE)
        outage.is_made = is_made
        reservation.take(2)
        outage.lasts = 1
        with pytest.raises(LedgerUnavailableError):
            await (reservation.flush() if change == "flush" else reservation.cover(4 * PRICE))
        await reservation.cover(4 * PRICE)
        reservation.take(4)
        state = await reservation.finish()
        assert (state.spent, state.reserved) == (6 * PRICE, 0)


async def test_a_stream_over_a_database_that_is_lost_again_and_again_pays_for_what_it_emits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-42, F-51."""
    chance = random.Random(11)  # noqa: S311 - a repeatable history, not a secret
    async with open_provider(tmp_path, reservation_step_units=4) as provider:
        await opened(provider)
        outage = Outage(provider.ledger)
        monkeypatch.setattr(provider.ledger, "apply", outage.apply)
        reservation = await running(provider, 90 * PRICE)
        emitted = 0
        while emitted < 80:
            outage.lasts, outage.is_made = chance.randrange(3), chance.random() < 0.5
            with contextlib.suppress(LedgerUnavailableError):
                await reservation.cover(1 * PRICE)
                units = min(chance.randrange(1, 4), reservation.covered_units)
                reservation.take(units)
                emitted += units
            await asyncio.sleep(0)
        outage.lasts = 0
        state = await reservation.finish()
        assert (state.spent, state.reserved) == (emitted * PRICE, 0)


@pytest.mark.parametrize("is_made", [True, False])
@pytest.mark.parametrize("lasts", [1, 3])
async def test_a_request_whose_end_was_lost_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasts: int, *, is_made: bool
) -> None:
    """O-91: when the books answer, not when its lease expires; what was made stays."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        outage = Outage(provider.ledger)
        monkeypatch.setattr(provider.ledger, "apply", outage.apply)
        reservation = await running(provider, 50 * PRICE, is_stream=False)
        reservation.take(1)
        outage.is_made, outage.lasts = is_made, lasts
        with pytest.raises(LedgerUnavailableError):
            await reservation.finish()

        async def is_free() -> bool:
            return not (await provider.books()).reserved

        await until(is_free)
        assert (await provider.books()).spent == (PRICE if is_made else 0)
