"""A chain whose height falls, which needs one of its own: Anvil forgets states at a revert."""

from collections.abc import AsyncIterator

import pytest

from channel.errors import ChainUnavailableError
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from tests.settlement.books import request_close
from tests.settlement.channels import Channels
from tests.settlement.tower.test_watchtower import GRACE_S, Tower, tower
from tests.waiting import put_ahead

__all__ = ["tower"]


@pytest.fixture
async def chain() -> AsyncIterator[Devnet]:
    """A new chain, used by no other test."""
    async with Devnet.start() as started:
        yield started


async def test_the_tower_goes_on_from_a_height_that_no_node_shows_any_more(
    tower: Tower,
    chain: Devnet,
    channels: Channels,
    account: PayerAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F-72: one node with a chain of its own must not end the watch over all others."""
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 700))
    await chain.mine(9)
    await tower.look()
    await chain.rpc.command("anvil_rollback", 9)
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2)
    with pytest.raises(ChainUnavailableError):
        await tower.tower.look()
    put_ahead(100, monkeypatch)
    await tower.look()
    assert await tower.settled(channel_id) == 700
