"""A payer leaves, and everything goes wrong meanwhile: the provider is paid what it delivered."""

import asyncio

import pytest
from msgspec.structs import replace

from channel.types import ChannelId, TxHash
from settlement import abi
from settlement.alarms import AlarmKind
from settlement.dev.devnet import Devnet
from settlement.node.chain_clock import ChainClock
from settlement.settle.exposure import ExposureGate, ExposureLimits
from settlement.settle.schedule import SettlePolicy
from tests.faults.chain_world import World
from tests.settlement.channels import set_paused
from tests.settlement.wallets import deploy_wallet

GRACE_S = 900
TWO_THIRDS_S = 600


class Passing:
    """Monotonic time that a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


async def clock_of(chain: Devnet, clock: ChainClock) -> ChainClock:
    """Return a clock that has seen the head, to take the place of a watcher's own."""
    clock.saw(await chain.rpc.block())
    return clock


async def test_a_node_that_is_away_for_two_thirds_of_the_grace_costs_nothing(
    world: World, chain: Devnet
) -> None:
    """F-64: alarms ring while it is away, and the close is mined when it is back."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=390)
    await world.books.reserve(channel_id, 10, name=b"s")  # a stream still runs
    time = Passing()
    async with world.watching() as watcher:
        watcher.clock = await clock_of(chain, ChainClock(monotonic=time))
        await chain.mine()
        await world.leave(channel_id)
        await world.until(channel_id, asked=True)
        world.node.is_down = True
        for stage in (25, 50):
            time.now_s += GRACE_S / 4 + 1
            await world.until_rings(AlarmKind.GRACE_RUNS, level=stage)
        await world.until_rings(AlarmKind.CHAIN_AWAY)
        assert not world.rings(AlarmKind.CHANNEL_LOST)
        await chain.advance(TWO_THIRDS_S)
        world.node.is_down = False
        state = await world.until(channel_id, is_finalized=True)
        await world.until_rings(AlarmKind.GRACE_RUNS, is_ringing=False)
    assert state.settled == 400  # what the stream held may have been emitted (decision 8)
    assert await world.paid() == before + 400


async def test_an_alarm_ends_with_the_exit_that_its_payer_takes_back(
    world: World, chain: Devnet
) -> None:
    """F-64, TOPUP-05: also where this process only watches and another one settles."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.watching(settles=False):
        await world.leave(channel_id)
        await world.until(channel_id, asked=True)
        await chain.advance(GRACE_S // 2)
        await world.until_rings(AlarmKind.GRACE_RUNS, level=50)
        await world.channels.top_up(channel_id, 1)
        await world.until(channel_id, asked=False)
        await world.until_rings(AlarmKind.GRACE_RUNS, is_ringing=False)
    assert not (await world.books.state(channel_id)).is_closing


async def test_who_was_down_for_the_whole_grace_closes_as_long_as_the_payer_waits(
    world: World, chain: Devnet
) -> None:
    """F-64: keep trying after the deadline, until the channel has ended."""
    channel_id = await world.books.open(accepted=400, spent=400)
    await world.leave(channel_id)
    await chain.advance(2 * GRACE_S)
    async with world.watching():
        state = await world.until(channel_id, is_finalized=True)
    assert state.settled == 400
    assert not world.rings(AlarmKind.CHANNEL_LOST)


async def test_a_loss_is_reported(world: World, chain: Devnet) -> None:
    """F-64: the payer was faster."""
    channel_id = await world.books.open(accepted=400, spent=400)
    await world.leave(channel_id)
    await chain.advance(GRACE_S)
    await world.account.withdraw(escrow=chain.values.escrow, channel_id=channel_id)
    async with world.watching():
        await world.until_rings(AlarmKind.CHANNEL_LOST)
    assert "400 delivered and unpaid" in world.alarms.ringing[0].text


async def test_an_account_without_gas_closes_once_it_has_some(world: World, chain: Devnet) -> None:
    """F-65: the node refuses, nothing is given up, a deposit of ether heals it."""
    channel_id = await world.books.open(accepted=400, spent=400)
    payee = "0x" + world.channels.terms.payee.hex()
    await chain.rpc.command("anvil_setBalance", payee, "0x0")
    async with world.watching():
        await world.leave(channel_id)
        await world.until(channel_id, asked=True)
        await asyncio.sleep(0.3)
        assert not (await world.books.state(channel_id)).is_finalized
        await chain.rpc.command("anvil_setBalance", payee, hex(10**18))
        state = await world.until(channel_id, is_finalized=True)
    assert state.settled == 400


async def test_a_token_paused_into_the_last_quarter_is_retried_until_it_moves(
    world: World, chain: Devnet
) -> None:
    """F-87: every close is refused in the simulation, and costs nothing."""
    channel_id = await world.books.open(accepted=400, spent=400)
    await set_paused(chain, on=True)
    ether = await chain.rpc.balance_wei(world.channels.terms.payee)
    async with world.watching():
        await world.leave(channel_id)
        await world.until(channel_id, asked=True)
        await chain.advance(GRACE_S * 4 // 5)
        await world.until_rings(AlarmKind.GRACE_RUNS, level=75)
        assert await chain.rpc.balance_wei(world.channels.terms.payee) == ether
        await set_paused(chain, on=False)
        await world.until(channel_id, settled=400)  # by a close, or by the settle that follows one


async def test_a_blacklisted_payer_cannot_hold_up_what_is_owed(world: World, chain: Devnet) -> None:
    """F-86: the escrow keeps the refund; the payee is paid."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.watching():
        await world.leave(channel_id)
        function = abi.Function("blacklist(address)")
        payer = world.channels.terms.payer
        await world.until(channel_id, asked=True)
        await chain.deployer.send(chain.values.token, function.encode(payer))
        await world.until(channel_id, is_finalized=True)
    assert await world.paid() == before + 400


async def test_a_wallet_that_changes_its_mind_is_reported_and_retried(
    world: World, chain: Devnet
) -> None:
    """F-19, F-20: the escrow takes the voucher only as long as the wallet does."""
    wallet = await deploy_wallet(chain.sender("stranger"), "agrees")
    world.channels.terms = replace(world.channels.terms, authorized_signer=wallet)
    channel_id = await world.books.open(accepted=400, spent=400)
    code = "0x" + (await chain.rpc.code(wallet)).hex()
    where = "0x" + wallet.hex()
    await chain.rpc.command("anvil_setCode", where, "0x5f5ffd")
    async with world.watching():
        await world.until_rings(AlarmKind.SIGNER_CHANGED)
        await world.leave(channel_id)
        await world.until(channel_id, asked=True)
        await asyncio.sleep(0.3)
        assert not (await world.books.state(channel_id)).is_finalized
        await chain.rpc.command("anvil_setCode", where, code)
        state = await world.until(channel_id, is_finalized=True)
    assert state.settled == 400


async def test_a_wallets_vouchers_are_settled_early(world: World, chain: Devnet) -> None:
    """F-19, SEC-08: at a tenth of what a key's would wait for."""
    policy = SettlePolicy(settle_value=1_000)
    by_key = await world.books.open(accepted=200, spent=200)
    wallet = await deploy_wallet(chain.sender("stranger"), "agrees")
    world.channels.terms = replace(world.channels.terms, authorized_signer=wallet)
    by_wallet = await world.books.open(accepted=200, spent=200)
    async with world.watching(policy=policy):
        await world.until(by_wallet, settled=200)
        assert (await world.books.state(by_key)).settled == 0


async def test_a_signer_that_comes_near_its_bound_is_settled_on_all_its_channels(
    world: World,
) -> None:
    """O-01: many small channels of one signer; another's wait for their own time."""
    world.gate = ExposureGate(ExposureLimits(signer_max=800))
    near = [await world.books.open(accepted=200, spent=200) for _ in range(2)]
    world.channels.terms = replace(
        world.channels.terms, authorized_signer=world.chain.account("stranger").address
    )
    other = await world.books.open(accepted=200, spent=200, signed_by="stranger")
    watcher = world.watcher()
    for _ in range(2):
        await watcher.sweep()
    assert [(await world.books.state(each)).settled for each in [*near, other]] == [200, 200, 0]


@pytest.mark.parametrize("skew_s", [-120, 120])
async def test_a_clock_two_minutes_off_moves_no_deadline(
    world: World, chain: Devnet, skew_s: int
) -> None:
    """F-111: block time decides; the difference rings."""
    channel_id = await world.books.open(accepted=400, spent=390)
    await world.books.reserve(channel_id, 10, name=b"s")
    async with world.watching() as watcher:
        wall = float((await chain.rpc.block()).timestamp)
        watcher.clock = await clock_of(chain, ChainClock(wall=lambda: wall + skew_s))
        await chain.mine()
        await world.leave(channel_id)
        await world.until(channel_id, asked=True)
        await world.until_rings(AlarmKind.CLOCK_SKEW)
        await chain.advance(100)  # within the patience of 120 s, by the blocks
        await asyncio.sleep(0.3)
        state = await world.books.state(channel_id)
        assert (state.reserved, state.is_finalized) == (10, False)
        await chain.advance(25)
        await world.until(channel_id, is_finalized=True)


async def leave_together(world: World, chain: Devnet, channel_ids: list[ChannelId]) -> None:
    """Ask for every deposit back, in one block."""
    payer = chain.sender("payer")
    async with chain.mining_paused():
        for channel_id in channel_ids:
            await payer.broadcast(chain.values.escrow, abi.request_close.encode(channel_id))
        await chain.mine()
    facts = await world.reader.read_channels(channel_ids)
    assert len({fact.close_requested_at for fact in facts if fact}) == 1


async def test_a_flood_of_exits_in_one_block_is_answered_in_time_and_within_the_budget(
    world: World, chain: Devnet
) -> None:
    """F-66: 200 channels, one block, one account; all closed far inside the grace, dearest first.

    Single closes cost 62,000 gas and more each; a batch brings that below half.
    """
    approve = abi.approve.encode(chain.values.escrow, 2**128)
    await chain.sender("payer").send(chain.values.token, approve)
    before = await world.paid()
    opened = [await world.books.open(accepted=1000 + i, spent=1000 + i) for i in range(200)]
    await leave_together(world, chain, opened)
    asked = await chain.rpc.block()
    async with world.watching():
        closed = [await world.until(channel_id, is_finalized=True) for channel_id in opened]
    assert await world.paid() == before + sum(1000 + i for i in range(200))
    assert await chain.token_balance(chain.values.escrow) == 0
    assert (await chain.rpc.block()).timestamp - asked.timestamp < GRACE_S / 4
    receipts = {state.close_tx: await chain.rpc.receipt(TxHash(state.close_tx)) for state in closed}
    gas = sum(receipt.gas_used for receipt in receipts.values() if receipt)
    assert gas < 200 * 30_000
    blocks = [receipts[state.close_tx].block_number for state in reversed(closed)]  # type: ignore[union-attr]
    assert blocks == sorted(blocks)
