"""Reorgs of everything that moves money: chain facts go back and forward, `spent` never moves.

Anvil's own reorg takes blocks back and mines empty ones in their place; the test sends their
transactions again, or not.
"""

import pytest

from channel.errors import ChainUnavailableError
from channel.types import TxHash
from settlement.dev.devnet import Devnet
from settlement.settle.schedule import SettlePolicy
from tests.faults.chain_world import World
from tests.settlement.channels import DEPOSIT


async def raw(chain: Devnet, tx_hash: TxHash) -> str:
    return str(await chain.rpc.read("eth_getRawTransactionByHash", "0x" + tx_hash.hex()))


async def take_back(chain: Devnet, tx_hash: TxHash, *, longer_by: int = 1) -> None:
    """Reorg the block of a transaction, and all on top of it, into empty ones."""
    receipt = await chain.rpc.receipt(tx_hash)
    assert receipt is not None
    depth = await chain.rpc.block_number() - receipt.block_number + 1
    await chain.rpc.command("anvil_reorg", depth, [])
    if longer_by:
        await chain.mine(longer_by)
    assert await chain.rpc.receipt(tx_hash) is None


async def put_again(chain: Devnet, signed: str) -> None:
    await chain.rpc.command("eth_sendRawTransaction", signed)
    await chain.mine()


async def test_an_open_that_is_taken_back_freezes_the_channel_until_it_is_mined_again(
    world: World, chain: Devnet
) -> None:
    """F-70, SEC-07: service stops, vouchers stay, all goes on without resetting `spent`."""
    channel_id = await world.books.open(accepted=900, spent=400)
    opening = await world.account.find_opening(escrow=chain.values.escrow, channel_id=channel_id)
    assert opening is not None
    signed = await raw(chain, opening)
    async with world.watching():
        await take_back(chain, opening)
        gone = await world.until(channel_id, deposit=0)
        assert (gone.spent, gone.accepted, gone.is_stopped) == (400, 900, True)
        assert gone.highest.cumulative_amount == 900
        await put_again(chain, signed)
        back = await world.until(channel_id, deposit=DEPOSIT)
    assert (back.spent, back.accepted, back.is_stopped) == (400, 900, False)


async def test_a_reorg_to_a_lower_head_is_no_lagging_node(world: World, chain: Devnet) -> None:
    """F-70, F-71: facts do not outlive their blocks, though the new head has a lower number."""
    await chain.mine(2)
    async with world.watching():
        channel_id = await world.books.open(accepted=9, spent=4)
        await world.channels.top_up(channel_id, 5)
        state = await world.until(channel_id, deposit=DEPOSIT + 5)
        await chain.mine(3)
        opening = await world.account.find_opening(
            escrow=chain.values.escrow, channel_id=channel_id
        )
        assert opening is not None
        opened = await chain.rpc.receipt(opening)
        assert opened is not None
        depth = await chain.rpc.block_number() - opened.block_number + 1
        await chain.rpc.command("anvil_rollback", depth)
        await chain.mine()
        assert await chain.rpc.block_number() < state.fact_block
        gone = await world.until(channel_id, deposit=0)
    assert (gone.spent, gone.accepted) == (4, 9)


async def test_a_top_up_that_is_taken_back_lowers_the_deposit_and_nothing_else(
    world: World, chain: Devnet
) -> None:
    """F-70: vouchers above the deposit that is left stop the channel, as long as it is."""
    channel_id = await world.books.open(accepted=9, spent=4)
    async with world.watching():
        top_up = await world.channels.top_up(channel_id, 1_000)
        await world.until(channel_id, deposit=DEPOSIT + 1_000)
        await world.books.accept(channel_id, DEPOSIT + 500)
        signed = await raw(chain, top_up)
        await take_back(chain, top_up)
        gone = await world.until(channel_id, deposit=DEPOSIT)
        assert (gone.accepted, gone.spent, gone.is_stopped) == (DEPOSIT + 500, 4, True)
        await put_again(chain, signed)
        back = await world.until(channel_id, deposit=DEPOSIT + 1_000)
    assert not back.is_stopped


async def test_a_settle_that_is_taken_back_is_made_again_and_paid_once(
    world: World, chain: Devnet
) -> None:
    """SETTLE-02, F-80: `settled` is what the chain says, forward and back."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.watching(policy=SettlePolicy(settle_value=100)):
        state = await world.until(channel_id, settled=400)
        assert await world.paid() == before + 400
        depth = await chain.rpc.block_number() - state.fact_block + 1
        async with chain.mining_paused():  # else it is made again before we have looked
            await chain.rpc.command("anvil_reorg", depth, [])
            assert await world.paid() == before
            gone = await world.until(channel_id, settled=0)
        assert (gone.spent, gone.published) == (400, 400)
        await world.until(channel_id, settled=400)
    assert await world.paid() == before + 400


async def test_a_close_that_is_taken_back_is_made_again_and_paid_once(
    world: World, chain: Devnet
) -> None:
    """F-40, F-70: an ended channel that is open again is owed its close."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    await world.leave(channel_id)
    async with world.watching():
        closed = await world.until(channel_id, is_finalized=True)
        assert await world.paid() == before + 400
        async with chain.mining_paused():
            await take_back(chain, TxHash(closed.close_tx), longer_by=0)
            assert await world.paid() == before
            await world.until(channel_id, is_finalized=False)
        again = await world.until(channel_id, is_finalized=True)
    assert (again.settled, again.spent) == (400, 400)
    assert await world.paid() == before + 400


async def test_a_close_taken_back_while_no_settler_ran_is_made_again(
    world: World, chain: Devnet
) -> None:
    """F-52: a starting settler checks also the channels that ended lately, not only open ones."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    await world.leave(channel_id)
    async with world.watching():
        closed = await world.until(channel_id, is_finalized=True)
    await take_back(chain, TxHash(closed.close_tx), longer_by=2)
    assert await world.paid() == before
    await world.watcher().sweep()
    assert (await world.books.state(channel_id)).is_finalized
    assert await world.paid() == before + 400


@pytest.mark.parametrize("seen", ["nothing", "its block"])
async def test_a_close_taken_back_before_the_watch_has_read_it_is_made_again(
    world: World, chain: Devnet, seen: str
) -> None:
    """F-40, F-70: who made it wrote it down; the watch had not seen that block, or could not read
    the channel in it.
    """
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    await world.leave(channel_id)
    watcher = world.watcher()
    assert (await watcher.sweep()).closed == 1  # looks first, and closes then
    closed = await world.books.state(channel_id)
    assert (closed.is_finalized, await world.paid()) == (True, before + 400)
    if seen == "its block":
        world.node.lies["eth_call"] = lambda _, __: "not bytes"
        with pytest.raises(ChainUnavailableError):
            await watcher.look()
        world.node.heal()
    await take_back(chain, TxHash(closed.close_tx), longer_by=0)
    assert await world.paid() == before
    assert (await watcher.sweep()).closed == 1
    assert (await world.books.state(channel_id)).is_finalized
    assert await world.paid() == before + 400


async def test_an_exit_that_is_taken_back_lets_the_channel_go_on(
    world: World, chain: Devnet
) -> None:
    """F-63, TOPUP-05: nothing was owed, so nothing was closed; service goes on."""
    channel_id = await world.books.open(accepted=400)
    async with world.watching():
        tx_hash = await world.account.request_close(
            escrow=chain.values.escrow, channel_id=channel_id
        )
        await world.until(channel_id, asked=True)
        await take_back(chain, tx_hash)
        state = await world.until(channel_id, asked=False)
    assert not state.is_closing
