"""A reorg deeper than we walk, on a chain of its own: Anvil forgets states at a revert."""

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from channel.types import TxHash
from settlement.dev.devnet import Devnet
from settlement.watch.follower import FollowLimits
from tests.faults.chain_world import WATCH, World
from tests.faults.test_chain_reorg import take_back


@pytest.fixture
async def chain() -> AsyncIterator[Devnet]:
    """A new chain, used by no other test."""
    async with Devnet.start() as started:
        yield started


async def test_a_close_taken_back_deeper_than_we_walk_is_made_again(
    world: World, chain: Devnet
) -> None:
    """F-70, F-71: the place of the fork is unknown then; all that we knew may be gone."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    await world.leave(channel_id)
    limits = replace(WATCH, follow=FollowLimits(tail_blocks_max=64, walk_blocks_max=4))
    watcher = world.watcher(limits=limits)
    await watcher.sweep()
    closed = await world.books.state(channel_id)
    for _ in range(4):  # the tail grows by blocks that are followed one by one
        await chain.mine(3)
        await watcher.look()
    await take_back(chain, TxHash(closed.close_tx))
    assert await world.paid() == before
    await watcher.sweep()
    assert (await world.books.state(channel_id)).is_finalized
    assert await world.paid() == before + 400
