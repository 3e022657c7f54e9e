"""A thief of the payee's key, and two books for one payee, ring an alarm (O-05, O-89)."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from channel.errors import OpeningsPausedError
from channel.state.commands import Repair, Restore
from channel.types import ChannelId
from settlement.alarms import AlarmKind
from settlement.dev.devnet import Devnet
from settlement.escrow.payout_calls import RelayedCalls
from settlement.presigned.cover import CoverPolicy
from settlement.presigned.export import TowerExport
from settlement.presigned.file import TowerFile
from settlement.settle.schedule import SettlePolicy
from settlement.settle.settler import EscrowSettler
from settlement.tx.manager import TxManager
from tests.faults.chain_world import World, chain_world
from tests.waiting import until

Theft = Callable[[World, EscrowSettler, ChannelId], Awaitable[object]]


async def close_for_nothing(world: World, thief: EscrowSettler, channel_id: ChannelId) -> object:
    return await thief.close_channel(world.channels.key(channel_id), 0, b"")


async def settle_a_voucher(world: World, thief: EscrowSettler, channel_id: ChannelId) -> object:
    key, signature = world.channels.key(channel_id), world.channels.sign(channel_id, 300)
    return await thief.settle_channel(key, 300, signature)


async def close_before_the_grace_is_over(
    world: World, thief: EscrowSettler, channel_id: ChannelId
) -> object:
    await world.leave(channel_id)
    return await thief.close_channel(world.channels.key(channel_id), 0, b"")


@pytest.mark.parametrize("relayed", [False, True], ids=["by itself", "relayed by a stranger"])
@pytest.mark.parametrize(
    "steal", [close_for_nothing, settle_a_voucher, close_before_the_grace_is_over]
)
async def test_foreign_use_of_the_payees_key_is_reported_and_stops_openings(
    world: World, chain: Devnet, steal: Theft, *, relayed: bool
) -> None:
    """O-89: immediately, until the operator accounts for it; not for our own settles."""
    payee = chain.signer("payee")
    thief = EscrowSettler(world.reader, TxManager(chain.rpc, payee))
    if relayed:
        calls = RelayedCalls(world.reader, payee)
        thief = EscrowSettler(
            world.reader, TxManager(chain.rpc, chain.signer("stranger")), calls=calls
        )
    ours = await world.books.open(accepted=400, spent=400)
    other = await world.books.open(accepted=400, spent=400)
    watcher = world.watcher(settles=False)
    await watcher.look()
    world.gate.require_openings()
    await steal(world, thief, ours)
    await watcher.look()
    await watcher.look()
    assert AlarmKind.FOREIGN_PAYOUT in {alarm.kind for alarm in world.alarms.ringing}
    with pytest.raises(OpeningsPausedError):
        world.gate.require_openings()
    assert world.gate.is_crowded, "what is owed is settled immediately"
    restarted = world.watcher()
    await restarted.sweep()  # with the settler: all that is left is collected
    assert world.gate.is_key_shared, "a restart forgets nothing"
    await world.until(other, settled=400)
    state = await world.books.state(ours)
    await world.ledger.apply(state.key, [Repair(state.settled, state.settled)])
    await restarted.sweep()
    assert not world.gate.is_key_shared
    world.gate.require_openings()


async def test_our_own_settles_closes_and_withdrawals_ring_nothing(
    world: World, chain: Devnet
) -> None:
    """O-89: no false alarm, whether the payer or we send them."""
    async with world.watching():
        settled = await world.books.open(accepted=400, spent=400)
        leaving = await world.books.open(accepted=400, spent=400)
        idle = await world.books.open(accepted=0, spent=0)
        await world.leave(leaving)
        await world.leave(idle)
        await world.until(leaving, is_finalized=True)
        await chain.advance(901)
        await world.account.withdraw(escrow=chain.values.escrow, channel_id=idle)
        await world.until(idle, is_finalized=True)
        for channel_id in (settled, leaving, idle):
            assert (await world.books.state(channel_id)).foreign_block == 0
    assert AlarmKind.FOREIGN_PAYOUT not in {alarm.kind for alarm in world.alarms.ringing}


async def test_two_books_of_one_payee_tell_of_each_other(
    world: World, chain: Devnet, tmp_path: Path
) -> None:
    """O-05: one voucher was shown to both; the chain says so when either is paid."""
    channel_id = await world.books.open(accepted=400, spent=400)
    (tmp_path / "second").mkdir()
    async with chain_world(chain, tmp_path / "second") as second:
        state = await world.books.state(channel_id)
        await second.ledger.apply(state.key, [Restore(state)])
        watcher = second.watcher(settles=False)
        await watcher.sweep()
        assert not second.gate.is_key_shared
        await world.watcher(policy=SettlePolicy(settle_value=1)).sweep()
        await watcher.sweep()
        assert second.rings(AlarmKind.FOREIGN_PAYOUT)
        assert second.gate.is_key_shared
    assert not world.rings(AlarmKind.FOREIGN_PAYOUT)


@pytest.mark.parametrize("leaves", [False, True], ids=["still open", "withdrawn"])
async def test_what_a_tower_has_settled_meanwhile_is_no_theft(
    world: World, chain: Devnet, tmp_path: Path, *, leaves: bool
) -> None:
    """O-89: of a voucher above what was delivered, as it is handed out for large steps."""
    channel_id = await world.books.open(accepted=400, spent=300)
    path = tmp_path / "settles.jsonl"
    policy = CoverPolicy(uncovered_max=50)

    async def export() -> TowerExport:
        file = await TowerFile.open(path)
        return TowerExport(file, chain.signer("payee"), world.ledger, policy=policy)

    handing = await export()
    task = asyncio.create_task(handing.run())
    await world.watcher(settles=False, export=handing).sweep()
    await until(lambda: b"0x" in path.read_bytes())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.leave(channel_id)
    (settle,) = (await TowerFile.open(path)).newest.values()
    await chain.sender("stranger").send(chain.values.escrow, settle.calldata())
    if leaves:
        await chain.advance(901)
        await world.account.withdraw(escrow=chain.values.escrow, channel_id=channel_id)
    restarted = world.watcher(settles=False, export=await export())
    await restarted.sweep()
    assert (await world.books.state(channel_id)).settled == 400
    assert not world.rings(AlarmKind.FOREIGN_PAYOUT)
    world.gate.require_openings()
    assert (await world.books.state(channel_id)).foreign_block == 0
