"""Following the head on a real chain: events by block hash, reorgs, gaps, nodes that lie."""

import pytest

from channel.errors import ChainUnavailableError
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.watch.follower import ChainFollower, FollowLimits
from tests.settlement.channels import Channels
from tests.settlement.flaky_node import flaky_node

LIMITS = FollowLimits(tail_blocks_max=32, walk_blocks_max=8, overlap_blocks=2)


@pytest.fixture
def follower(reader: EscrowReader, channels: Channels) -> ChainFollower:
    return ChainFollower(reader, payee=channels.terms.payee, limits=LIMITS)


async def test_the_first_look_knows_nothing_of_what_was(
    follower: ChainFollower, channels: Channels
) -> None:
    await channels.open()
    step = await follower.step()
    assert (step.is_new, step.has_gap, step.touched) == (True, True, frozenset())


async def test_every_event_names_its_channel_once(
    follower: ChainFollower, channels: Channels, chain: Devnet, account: PayerAccount
) -> None:
    """Open, top-up, an exit: in blocks between two looks, and not again by the overlap."""
    await follower.step()
    opened = await channels.open()
    other = await channels.open()
    assert (await follower.step()).touched == {opened, other}
    assert not (await follower.step()).is_new
    await channels.top_up(other, 5)
    assert (await follower.step()).touched == {other}
    await account.request_close(escrow=chain.values.escrow, channel_id=opened)
    step = await follower.step()
    assert step.touched == {opened}
    assert step.forked_at is None
    await chain.mine()
    assert (await follower.step()).touched == frozenset()


async def test_other_payees_channels_are_not_asked_for(
    reader: EscrowReader, channels: Channels, chain: Devnet
) -> None:
    theirs = ChainFollower(reader, payee=chain.account("stranger").address, limits=LIMITS)
    everyone = ChainFollower(reader, limits=LIMITS)
    await theirs.step()
    await everyone.step()
    channel_id = await channels.open()
    assert (await theirs.step()).touched == frozenset()
    assert (await everyone.step()).touched == {channel_id}


async def test_a_reorg_names_what_it_took_back(
    follower: ChainFollower, channels: Channels, chain: Devnet
) -> None:
    """F-70, F-71: the channel whose opening is gone was named by a block that is gone."""
    await chain.mine(3)
    await follower.step()
    forked_at = await chain.rpc.block_number()
    channel_id = await channels.open()
    assert (await follower.step()).touched == {channel_id}
    depth = await chain.rpc.block_number() - forked_at
    await chain.rpc.command("anvil_reorg", depth, [])
    step = await follower.step()
    assert step.forked_at == forked_at
    assert step.touched == {channel_id}
    assert not step.has_gap


async def test_a_long_absence_is_a_gap(follower: ChainFollower, chain: Devnet) -> None:
    await follower.step()
    await chain.mine(20)
    step = await follower.step()
    assert (step.has_gap, step.forked_at) == (True, None)
    await chain.mine(3)
    assert not (await follower.step()).has_gap


async def test_a_gap_that_is_another_chain_is_not_followed(chain: Devnet) -> None:
    """SEC-09: no block leads to what we know, and the escrow may have the same address there."""
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        follower = ChainFollower(EscrowReader(rpc, chain.values.escrow), limits=LIMITS)
        await follower.step()
        known = follower.head
        node.lies["eth_chainId"] = "0x1"
        await chain.mine(20)
        with pytest.raises(ChainUnavailableError, match="serves chain 1"):
            await follower.step()
        assert follower.head == known
        del node.lies["eth_chainId"]
        assert (await follower.step()).has_gap


async def test_an_answer_that_was_empty_by_mistake_is_made_good(
    chain: Devnet, channels: Channels
) -> None:
    """F-73: the overlap asks the next time again, by hash."""
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        follower = ChainFollower(EscrowReader(rpc, chain.values.escrow), limits=LIMITS)
        await follower.step()
        channel_id = await channels.open()
        node.lies["eth_getLogs"] = []
        assert (await follower.step()).touched == frozenset()
        del node.lies["eth_getLogs"]
        await chain.mine()
        assert (await follower.step()).touched == {channel_id}


async def test_a_step_that_fails_is_taken_again(chain: Devnet, channels: Channels) -> None:
    """F-73: nothing is remembered of it, so no event is lost."""
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        follower = ChainFollower(EscrowReader(rpc, chain.values.escrow), limits=LIMITS)
        await follower.step()
        channel_id = await channels.open()
        node.fail("refuse", method="eth_getLogs")
        with pytest.raises(ChainUnavailableError):
            await follower.step()
        node.fail("none")
        assert (await follower.step()).touched == {channel_id}


async def test_a_node_that_lags_is_no_reorg(chain: Devnet) -> None:
    """F-72: an old head is our own past."""
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        follower = ChainFollower(EscrowReader(rpc, chain.values.escrow), limits=LIMITS)
        await chain.mine(3)
        old = await chain.rpc.read("eth_getBlockByNumber", "latest", False)  # noqa: FBT003
        await follower.step()
        await chain.mine(2)
        head = (await follower.step()).head
        node.lies["eth_getBlockByNumber"] = old
        step = await follower.step()
        assert (step.is_behind, step.forked_at, step.head) == (True, None, head)


async def test_a_node_that_gives_another_block_for_a_hash_is_not_believed(chain: Devnet) -> None:
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        follower = ChainFollower(EscrowReader(rpc, chain.values.escrow), limits=LIMITS)
        await chain.mine(3)
        await follower.step()
        other = await chain.rpc.read("eth_getBlockByNumber", "0x1", False)  # noqa: FBT003
        await chain.mine(3)
        node.lies["eth_getBlockByHash"] = other
        with pytest.raises(ChainUnavailableError, match="another block than the parent"):
            await follower.step()
