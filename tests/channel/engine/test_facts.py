"""How old a chain fact may be: never slow per voucher, never older than a tenth of the grace."""

import asyncio
from pathlib import Path

import pytest

from channel.errors import ChainUnavailableError, ChannelFinalizedError, ChannelStoppedError
from tests.channel.engine.test_engine import opened, perform
from tests.channel.selling import Desk, open_desk


async def settle_down(desk: Desk) -> None:
    """Let what runs in the background end."""
    await desk.engine.aclose()


async def test_a_young_fact_costs_no_read(tmp_path: Path) -> None:
    """VCH-10."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        reads = desk.chain.reads
        for amount in (10, 20, 30):
            await perform(desk, desk.payer.voucher(amount))
        assert desk.chain.reads == reads


async def test_an_older_fact_is_read_again_beside_the_voucher(tmp_path: Path) -> None:
    """VCH-10, F-63: the voucher does not wait; the next one sees the requested close."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        desk.clock.advance(6)
        desk.chain.change(desk.payer.key, close_requested_at=1_800_000_000)
        desk.chain.delay_s = 0.05
        async with asyncio.timeout(0.04):
            await perform(desk, desk.payer.voucher(10))
        await settle_down(desk)
        with pytest.raises(ChannelFinalizedError):
            await perform(desk, desk.payer.voucher(20))


async def test_one_read_of_a_channel_runs_at_a_time(tmp_path: Path) -> None:
    """F-63: many vouchers, one node call."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        reads = desk.chain.reads
        desk.clock.advance(6)
        desk.chain.delay_s = 0.02
        await asyncio.gather(*[perform(desk, desk.payer.voucher(n)) for n in range(1, 9)])
        assert desk.chain.reads == reads + 1


async def test_the_first_voucher_after_a_long_pause_waits_for_the_chain(tmp_path: Path) -> None:
    """VCH-10, F-63: an hour later the channel may be gone."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        desk.clock.advance(3600)
        desk.chain.change(desk.payer.key, is_finalized=True)
        with pytest.raises(ChannelFinalizedError):
            await perform(desk, desk.payer.voucher(10))


async def test_without_a_node_service_goes_on_for_a_minute_and_no_longer(tmp_path: Path) -> None:
    """VCH-10, F-63."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        desk.chain.fail_with = ChainUnavailableError("No node answers.")
        desk.clock.advance(59)
        await perform(desk, desk.payer.voucher(10))
        desk.clock.advance(2)
        with pytest.raises(ChainUnavailableError):
            await perform(desk, desk.payer.voucher(20))
        desk.chain.fail_with = None
        await perform(desk, desk.payer.voucher(20))


async def test_a_channel_that_vanished_from_the_chain_is_not_served(tmp_path: Path) -> None:
    """F-70: its opening was reorged out."""
    async with open_desk(tmp_path) as desk:
        await opened(desk)
        desk.chain.facts.clear()
        desk.clock.advance(100)
        with pytest.raises(ChannelStoppedError):
            await perform(desk, desk.payer.voucher(10))


async def test_a_deposit_rises_when_deep_and_falls_at_once(tmp_path: Path) -> None:
    """OPEN-12, F-49, F-70: the head is believed where it says less."""
    async with open_desk(tmp_path, confirmations=3) as desk:
        desk.payer.open_on_chain()
        desk.chain.block += 2
        await perform(desk, desk.payer.opening())
        desk.clock.advance(100)
        desk.chain.change(desk.payer.key, deposit=400)
        await perform(desk, desk.payer.voucher(10))
        assert (await desk.books()).deposit == 400
