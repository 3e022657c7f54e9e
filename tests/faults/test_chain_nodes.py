"""Nodes that fail and lie, between a provider and an honest chain: nothing is lost by it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from channel.errors import ChainUnavailableError
from channel.state.commands import Observe
from settlement.alarms import AlarmKind
from settlement.dev.devnet import Devnet
from settlement.node.nodes import Quorum, judge_nodes
from settlement.node.rpc import Rpc
from settlement.settle.schedule import SettlePolicy
from settlement.watch.watcher import ChannelWatcher, WatchLimits
from tests.faults.chain_world import RPC, WATCH, World, fill_books
from tests.faults.proxy import LyingNode, lying_node
from tests.settlement.channels import DEPOSIT
from tests.waiting import until, within


def has_seen(watcher: ChannelWatcher, number: int) -> bool:
    return watcher.head is not None and watcher.head.number >= number


async def test_an_exit_is_seen_within_seconds_of_its_block(world: World) -> None:
    """F-63, VCH-10: by its event, long before the next sweep; service ends with the books."""
    channel_id = await world.books.open(accepted=400)
    slow = replace(WATCH, interval_s=600.0, poll_interval_s=0.05)
    async with world.watching(limits=slow):
        await asyncio.sleep(0.2)
        await world.leave(channel_id)
        async with within(5):
            state = await world.until(channel_id, asked=True)
    assert state.close_requested_at


async def test_a_node_without_events_is_made_good_by_the_sweep(world: World) -> None:
    """F-73: it answers every search with nothing, for ever."""
    channel_id = await world.books.open(accepted=400, spent=400)
    world.node.has_no_logs = True
    async with world.watching():
        await asyncio.sleep(0.1)
        await world.leave(channel_id)
        state = await world.until(channel_id, is_finalized=True)
    assert state.settled == 400


async def test_a_node_left_behind_is_reported_and_not_believed(world: World, chain: Devnet) -> None:
    """F-72: it shows an old head, then catches up; the exit is answered then."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.watching() as watcher:
        await chain.mine(3)
        head = await chain.rpc.block_number()
        await until(lambda: has_seen(watcher, head))
        world.node.stale_at = head - 2
        await world.leave(channel_id)
        await world.until_rings(AlarmKind.NODE_BEHIND)
        assert not (await world.books.state(channel_id)).is_finalized
        world.node.stale_at = None
        await world.until(channel_id, is_finalized=True)
        await world.until_rings(AlarmKind.NODE_BEHIND, is_ringing=False)


async def test_a_node_that_loses_doubles_delays_and_reorders_costs_time_only(
    world: World, chain: Devnet
) -> None:
    """F-75, F-82: every channel is closed once, for what was delivered."""
    before = await world.paid()
    opened = [await world.books.open(accepted=100 + i, spent=100 + i) for i in range(8)]
    world.node.loss, world.node.swallow, world.node.twice = 0.1, 0.1, 0.3
    world.node.delay_s = (0.0, 0.03)
    async with world.watching():
        for channel_id in opened:
            await world.leave(channel_id)
        for i, channel_id in enumerate(opened):
            state = await world.until(channel_id, is_finalized=True)
            assert state.settled == 100 + i
    assert await world.paid() == before + sum(100 + i for i in range(8))
    assert await chain.token_balance(chain.values.escrow) == 0


async def test_a_connection_that_is_cut_in_mid_defence_is_taken_up_again(world: World) -> None:
    """F-64, F-75: the close may have arrived before the cut; it is made once."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.watching():
        await world.leave(channel_id)
        await world.until(channel_id, asked=True)
        world.node.is_down = True
        await asyncio.sleep(0.5)
        world.node.is_down = False
        await world.until(channel_id, is_finalized=True)
    assert await world.paid() == before + 400


async def test_a_receipt_of_another_transaction_is_not_taken_for_ours(world: World) -> None:
    """F-72, F-76: the node answers with nothing, then tells the truth."""
    channel_id = await world.books.open(accepted=400, spent=400)
    world.node.lies["eth_getTransactionReceipt"] = lambda _params, _said: None
    async with world.watching():
        await world.leave(channel_id)
        await asyncio.sleep(0.5)
        state = await world.books.state(channel_id)
        assert not state.is_finalized  # in the books: only with its transaction
        world.node.lies.clear()
        state = await world.until(channel_id, is_finalized=True)
    assert len(state.close_tx) == 32


async def test_a_second_node_takes_over_within_the_grace(world: World) -> None:
    """F-64: the first one dies with the exit in its block."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(1) as (second,):
        async with world.watching():
            await world.leave(channel_id)
            world.node.is_down = True
            await world.until(channel_id, is_finalized=True)
        assert second.requests > 0


async def test_a_node_that_keeps_transactions_to_itself_delays_a_close_and_no_more(
    world: World,
) -> None:
    """F-64, F-75: it answers everything, accepts transactions, and forwards none."""
    channel_id = await world.books.open(accepted=400, spent=400)
    world.node.keeps_transactions = True
    async with world.beside(1), world.watching():
        await world.leave(channel_id)
        state = await world.until(channel_id, is_finalized=True)
    assert state.settled == 400


async def test_two_nodes_on_different_forks_are_found(world: World, chain: Devnet) -> None:
    """SEC-09."""
    async with (
        lying_node(chain.values.rpc_url) as second,
        await Rpc.connect([world.node.url, second.url], limits=RPC) as rpc,
    ):
        await chain.mine(10)
        assert judge_nodes(await rpc.compare_nodes(depth=3)) == Quorum()
        second.lies["eth_getBlockByNumber"] = lambda _params, said: {
            **said,
            "hash": "0x" + "77" * 32,
        }
        assert len(judge_nodes(await rpc.compare_nodes(depth=3)).disputing) == 2


def on_another_fork(_params: object, said: dict[str, str]) -> dict[str, str]:
    return {**said, "hash": "0x" + "77" * 32}


async def test_while_two_nodes_disagree_no_deposit_is_believed(world: World, chain: Devnet) -> None:
    """SEC-09, OPEN-12: exits are heard all the same; when they agree again the deposit counts."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(1) as (second,):
        await chain.mine(10)
        async with world.watching():
            await world.until(channel_id, deposit=DEPOSIT)
            second.lies["eth_getBlockByNumber"] = on_another_fork
            await world.until_rings(AlarmKind.NODES_DISAGREE, level=2)
            with pytest.raises(ChainUnavailableError):
                world.gate.require_openings()
            with pytest.raises(ChainUnavailableError):
                world.gate.require_deposits()
            await world.channels.top_up(channel_id, 500)
            other = await world.books.open(accepted=300, spent=300)
            await world.leave(other)
            await world.until(other, is_finalized=True)
            assert (await world.books.state(channel_id)).deposit == DEPOSIT
            second.lies.clear()
            await world.until(channel_id, deposit=DEPOSIT + 500)
            await world.until_rings(AlarmKind.NODES_DISAGREE, is_ringing=False)
            world.gate.require_openings()


async def test_a_node_that_two_others_contradict_is_asked_nothing(
    world: World, chain: Devnet
) -> None:
    """SEC-09: the preferred one is elsewhere; deposits and exits go on by the majority."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(2):
        await chain.mine(10)
        async with world.watching():
            await world.until(channel_id, deposit=DEPOSIT)
            world.node.lies["eth_getBlockByNumber"] = on_another_fork
            world.node.lies["eth_call"] = lambda _params, _said: "0x"
            await world.until_rings(AlarmKind.NODES_DISAGREE, level=1)
            await world.channels.top_up(channel_id, 500)
            await world.until(channel_id, deposit=DEPOSIT + 500)
            world.gate.require_openings()
            await world.leave(channel_id)
            await world.until(channel_id, is_finalized=True)
            world.node.lies.clear()
            await world.until_rings(AlarmKind.NODES_DISAGREE, is_ringing=False)


async def catch_up(chain: Devnet) -> None:
    """Let the chain, which goes back in time after each test, be as late as this machine."""
    behind_s = int(time.time()) - (await chain.rpc.block()).timestamp
    if behind_s > 1:
        await chain.advance(behind_s)


def far_ahead(node: LyingNode) -> None:
    """Let a node show a chain of its own for what is new, and the true one below."""
    seen: dict[str, Any] = {}

    def block(number: int) -> dict[str, Any]:
        own, parent = ("0x77" + (number - n).to_bytes(31, "big").hex() for n in range(2))
        return {**seen, "number": hex(number), "hash": own, "parentHash": parent}

    def by_number(params: list[Any], said: dict[str, Any]) -> dict[str, Any]:
        seen.update(said)
        return block(int(said["number"], 16) + 10**6) if params[0] == "latest" else said

    def by_hash(params: list[Any], said: dict[str, Any] | None) -> dict[str, Any] | None:
        return said or block(int(params[0][4:], 16))

    node.lies["eth_getBlockByNumber"] = by_number
    node.lies["eth_getBlockByHash"] = by_hash


async def asked_first(nodes: Sequence[LyingNode]) -> LyingNode:
    """Return the node that each look asks: on a busy machine another one may have been slow."""
    before = [node.calls for node in nodes]
    await asyncio.sleep(0.5)
    rises = [node.calls - calls for node, calls in zip(nodes, before, strict=True)]
    return nodes[rises.index(max(rises))]


async def test_a_node_that_was_far_ahead_for_a_moment_stops_no_watching(
    world: World, chain: Devnet
) -> None:
    """SEC-09, F-64: of three nodes one, believed first, shows a million blocks that are not.

    The two others are not behind it, and what was taken over from it is read again.
    """
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(2) as others:
        await catch_up(chain)
        await chain.mine(10)
        head = await chain.rpc.block_number()
        # A comparison comes with each sweep: so late, that the node is looked at before it.
        async with world.watching(limits=replace(WATCH, interval_s=4.0)) as watcher:
            await until(lambda: has_seen(watcher, head))
            node = await asked_first([world.node, *others])
            far_ahead(node)
            await until(lambda: has_seen(watcher, 10**6))
            await world.until_rings(AlarmKind.NODES_DISAGREE, level=1)
            node.heal()
            await world.leave(channel_id)
            await world.until(channel_id, is_finalized=True)
            await world.until_rings(AlarmKind.NODE_BEHIND, is_ringing=False)


async def test_what_such_a_node_wrote_into_the_books_is_overruled_after_a_restart_too(
    world: World, chain: Devnet
) -> None:
    """SEC-09, F-72: a fact of a block that most nodes do not have yet is not one to wait for."""
    channel_id = await world.books.open(accepted=400, spent=400)
    fact = await world.account.read_channel(chain.values.escrow, channel_id)
    assert fact is not None
    invented = replace(fact, deposit=fact.deposit + 1, block_number=10**6)
    (await world.ledger.apply(fact.key, [Observe(invented)])).require()
    async with world.beside(2):
        await catch_up(chain)
        await chain.mine(10)
        async with world.watching():
            await world.until(channel_id, deposit=DEPOSIT)
            await world.leave(channel_id)
            await world.until(channel_id, is_finalized=True)


async def test_ten_thousand_open_channels_cost_at_most_forty_calls(world: World) -> None:
    """A page of 500 is one call; nothing is written for what did not change."""
    await fill_books(world, 10_000)
    watcher = world.watcher(limits=WatchLimits())
    world.node.calls = 0
    sweep = await watcher.sweep()
    assert (sweep.read, sweep.changed) == (10_000, 0)
    assert world.node.calls <= 40


async def test_a_watch_with_nothing_to_see_costs_a_call_a_look(world: World, chain: Devnet) -> None:
    """An idle provider pays for the head alone, however many channels are open."""
    for _ in range(3):
        await world.books.open(accepted=5)
    watcher = world.watcher(limits=replace(WATCH, interval_s=600.0))
    await watcher.sweep()
    watcher = world.watcher(limits=replace(WATCH, interval_s=600.0))
    await watcher.look()
    world.node.calls = 0
    for _ in range(5):
        await watcher.look()
    assert world.node.calls == 5
    await chain.mine()
    await watcher.look()
    assert world.node.calls <= 5 + 1 + 1 + WATCH.follow.overlap_blocks


async def test_a_settled_channel_is_not_settled_again_by_books_that_are_old(
    world: World, chain: Devnet
) -> None:
    """F-80: another process settled it; nothing reverts, nothing is paid twice."""
    before = await world.paid()
    channel_id = await world.books.open(accepted=400, spent=400)
    signature = world.channels.sign(channel_id, 400)
    await chain.sender("payee").send(
        chain.values.escrow, world.settle_call(channel_id, 400, signature)
    )
    async with world.watching(policy=SettlePolicy(settle_value=1)):
        await world.until(channel_id, settled=400)
        await asyncio.sleep(0.2)
    assert await world.paid() == before + 400


@pytest.mark.parametrize("wrong", ["not hexadecimal", None, [], {"number": "0x1"}])
async def test_nonsense_for_a_head_is_an_outage_not_a_crash(world: World, wrong: object) -> None:
    """SEC-09: the loop goes on, an alarm rings, and ends."""
    channel_id = await world.books.open(accepted=5, spent=5)
    async with world.watching():
        await world.leave(channel_id)
        await world.until(channel_id, is_finalized=True)
        world.node.lies["eth_getBlockByNumber"] = lambda _params, _said: wrong
        await world.until_rings(AlarmKind.CHAIN_AWAY)
        world.node.lies.clear()
        await world.until_rings(AlarmKind.CHAIN_AWAY, is_ringing=False)
        assert (await world.books.state(channel_id)).deposit == DEPOSIT


async def test_a_node_that_answers_with_nonsense_is_left_for_another(world: World) -> None:
    """F-64, SEC-09: its socket works, and none of its answers can be used."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(1) as (second,):
        world.node.lies["eth_call"] = lambda _params, _said: "0x"
        async with world.watching():
            await world.leave(channel_id)
            await world.until(channel_id, is_finalized=True)
    assert second.requests > 0
