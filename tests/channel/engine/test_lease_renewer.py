"""Leases: renewed while their owner lives, ended after that."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.engine.lease_renewer import LeaseRenewer
from channel.errors import (
    LedgerUnavailableError,
    ProblemError,
    ReservationEndedError,
    StoppingError,
    StreamReplacedError,
)
from channel.state.channel_state import ReservationKind
from channel.state.commands import EndReservations, Reserve
from channel.types import ChannelId, ChannelKey
from tests.channel.engine.test_engine import opened
from tests.channel.selling import PRICE, Provider, open_provider
from tests.waiting import PATIENCE_S, until


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with open_provider(tmp_path) as running:
        await opened(running, 50 * PRICE)
        yield running


@pytest.fixture
async def renewer(provider: Provider) -> AsyncIterator[LeaseRenewer]:
    keeping = LeaseRenewer(ledger=provider.ledger, now=provider.clock, lease_s=60)
    yield keeping
    await keeping.close()


async def reserve(
    provider: Provider, renewer: LeaseRenewer, name: bytes, kind: ReservationKind
) -> bytes:
    reservation_id = name.ljust(16, b"\0")
    command = Reserve(
        reservation_id=reservation_id,
        kind=kind,
        amount_min=PRICE,
        amount_max=4 * PRICE,
        presented=50 * PRICE,
        min_voucher_delta=0,
        lease_expires_at=renewer.lease(),
    )
    (await provider.ledger.apply(provider.payer.key, [command])).require()
    return reservation_id


async def test_what_is_kept_outlives_its_lease_and_what_is_not_ends(
    provider: Provider, renewer: LeaseRenewer
) -> None:
    """F-43, decision 8: a dead stream's is spent, a dead request's released."""
    kept = await reserve(provider, renewer, b"kept", ReservationKind.REQUEST)
    await reserve(provider, renewer, b"dead request", ReservationKind.REQUEST)
    await reserve(provider, renewer, b"dead stream", ReservationKind.STREAM)
    renewer.keep(provider.payer.key, kept, renewer.lease())
    for _ in range(3):
        provider.clock.advance(40)
        await renewer.sweep()
    state = await provider.books()
    assert [held.reservation_id for held in state.reservations] == [kept]
    assert state.spent == 4 * PRICE


async def test_a_lease_that_is_young_is_not_written_again(
    provider: Provider, renewer: LeaseRenewer
) -> None:
    """A sweep costs no commit for a request that has just begun."""
    kept = await reserve(provider, renewer, b"kept", ReservationKind.REQUEST)
    renewer.keep(provider.payer.key, kept, renewer.lease())
    before = await provider.books()
    provider.clock.advance(10)
    await renewer.sweep()
    assert await provider.books() is before
    provider.clock.advance(10)
    await renewer.sweep()
    assert (await provider.books()).reservations[0].lease_expires_at > (
        before.reservations[0].lease_expires_at
    )


async def test_a_clock_that_jumps_ends_nothing_that_is_kept(
    provider: Provider, renewer: LeaseRenewer
) -> None:
    """F-43: after an hour's sleep of the machine what runs here is due, not dead."""
    kept = await reserve(provider, renewer, b"kept", ReservationKind.STREAM)
    renewer.keep(provider.payer.key, kept, renewer.lease())
    provider.clock.advance(3600)
    assert await renewer.sweep() == 0
    assert [held.reservation_id for held in (await provider.books()).reservations] == [kept]


async def test_no_lease_is_given_that_the_books_may_bear_already(
    provider: Provider, renewer: LeaseRenewer
) -> None:
    """F-42: a lease tells which change was made; without a doubt they do not run ahead."""
    renewer.keep(provider.payer.key, b"one", renewer.lease())
    given = [renewer.lease(b"one") for _ in range(3)]
    assert len({renewer.lease(), *given}) == 4
    for _ in range(100):
        renewer.renewed(b"one", renewer.lease(b"one"))
    assert renewer.lease(b"one") <= renewer.lease() + 1


async def test_a_stream_learns_that_its_reservation_has_ended(
    provider: Provider, renewer: LeaseRenewer
) -> None:
    """F-43: after a pause of the whole process, say."""
    reasons: list[ProblemError] = []
    kept = await reserve(provider, renewer, b"kept", ReservationKind.STREAM)
    renewer.keep_stream(provider.payer.key, kept, renewer.lease(), reasons.append)
    await provider.ledger.apply(provider.payer.key, [EndReservations()])
    provider.clock.advance(40)
    await renewer.sweep()
    await renewer.sweep()
    assert [type(reason) for reason in reasons] == [ReservationEndedError]


async def test_a_channels_streams_are_stopped_and_no_others(
    provider: Provider, renewer: LeaseRenewer
) -> None:
    """ACC-06."""
    older: list[ProblemError] = []
    newer: list[ProblemError] = []
    for name, reasons in ((b"older", older), (b"newer", newer)):
        renewer.keep_stream(provider.payer.key, name, renewer.lease(), reasons.append)
    reason = StreamReplacedError("A newer stream took over.")
    renewer.stop_streams(provider.payer.key, reason, spare=b"newer")
    assert (older, newer) == ([reason], [])
    for name in (b"older", b"newer", b"newer"):
        renewer.drop(name)
    renewer.stop_streams(provider.payer.key, reason)
    assert (older, newer) == ([reason], [])


async def test_the_loop_goes_on_after_the_books_were_away(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-51: a lease that could not be renewed is tried again in the next round."""
    renewer = LeaseRenewer(ledger=provider.ledger, now=provider.clock, lease_s=1)
    dead = await reserve(provider, renewer, b"dead", ReservationKind.REQUEST)
    tried: list[int] = []

    async def unavailable(now: int) -> int:
        tried.append(now)
        raise LedgerUnavailableError("The disk is full.")

    monkeypatch.setattr(provider.ledger, "expire_reservations", unavailable)
    renewer.keep(provider.payer.key, b"another", renewer.lease())
    await until(lambda: bool(tried))
    monkeypatch.undo()
    provider.clock.advance(100)
    async with asyncio.timeout(PATIENCE_S), provider.ledger.watch(provider.payer.key) as watch:
        while any(held.reservation_id == dead for held in (await provider.books()).reservations):
            await watch.changed(1)
    await renewer.close()


async def test_when_a_program_stops_every_stream_ends_and_each_later_one(
    provider: Provider, renewer: LeaseRenewer
) -> None:
    """O-32: a stream may be about to begin while the server is asked to stop."""
    reason = StoppingError("The server is stopping.")
    stopped: list[ProblemError] = []
    other = ChannelKey(provider.payer.key.chain_id, provider.payer.key.escrow, ChannelId(bytes(32)))
    renewer.keep_stream(provider.payer.key, b"one", renewer.lease(), stopped.append)
    renewer.keep_stream(other, b"two", renewer.lease(), stopped.append)
    renewer.end_streams(reason)
    assert stopped == [reason] * 2
    renewer.keep_stream(other, b"three", renewer.lease(), stopped.append)
    assert stopped == [reason] * 3
