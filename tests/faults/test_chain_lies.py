"""A node that shows true blocks and lies about what is in them: nothing is lost by it (O-88)."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from channel.limits import EXITS_BELIEVED_MAX
from channel.types import ChannelId
from mpp_session.settings import parse_address
from mpp_session.testing.chain import TestChain
from mpp_session.wiring import build_parts
from settlement import abi
from settlement.alarms import AlarmKind
from settlement.dev.devnet import Devnet
from settlement.errors import GasHourUsedError
from settlement.node.rpc import Rpc
from settlement.settle.schedule import SettlePolicy
from settlement.settle.settler import EscrowSettler
from settlement.tx.gas_hour import HOUR_S, GasHour, payout_cost_wei
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.journal.url import open_journal
from settlement.tx.manager import TxManager
from tests.e2e.selling import PRICE, provide
from tests.faults.chain_world import RPC, TX, World
from tests.faults.proxy import LyingNode, lying_node
from tests.mpp_session.gateway.conftest import build_config
from tests.mpp_session.settling import settling
from tests.settlement.channels import DEPOSIT
from tests.waiting import HASTY_S, until, within

GRACE_S = 900
_WORD = 64
_ASKED_AT, _DEPOSIT = 1, 6
_WORDS = 8
MANY = EXITS_BELIEVED_MAX + 2


def lie_about_channels(node: LyingNode, change: Callable[[list[int]], None]) -> None:
    """Change what a node says of each channel that there is: its words, as numbers."""
    selectors = {"0x" + abi.get_channel.selector.hex(), "0x" + abi.get_channels.selector.hex()}

    def lie(params: list[Any], said: str) -> str:
        if params[0]["data"][:10] not in selectors:
            return said
        words = [int(said[2 + at : 2 + at + _WORD], 16) for at in range(0, len(said) - 2, _WORD)]
        for start in range(len(words) % _WORDS, len(words), _WORDS):
            channel = words[start : start + _WORDS]
            if channel[2]:
                change(channel)
                words[start : start + _WORDS] = channel
        return "0x" + "".join(f"{word:064x}" for word in words)

    node.lies["eth_call"] = lie


def richer(channel: list[int]) -> None:
    channel[_DEPOSIT] += 1_200_000


def poorer(channel: list[int]) -> None:
    channel[_DEPOSIT] = channel[7]


def leaving(channel: list[int]) -> None:
    channel[_ASKED_AT] = 1_900_000_000


async def test_a_deposit_that_one_node_invents_does_not_count(world: World) -> None:
    """O-88: an alarm names that node, and it is asked last; a real deposit counts."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(1):
        lie_about_channels(world.node, richer)
        watcher = world.watcher(settles=False)
        await watcher.sweep()
        assert (await world.books.state(channel_id)).deposit == DEPOSIT
        assert world.rings(AlarmKind.NODES_DISAGREE)
        await world.channels.top_up(channel_id, 500)
        await watcher.sweep()
        await watcher.sweep()
        assert (await world.books.state(channel_id)).deposit == DEPOSIT + 500


@pytest.mark.parametrize("liar", ["richer", "poorer"])
async def test_of_three_nodes_two_that_agree_are_believed(world: World, *, liar: str) -> None:
    """O-88: one can neither invent a deposit nor keep a real one from counting."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(2) as (second, _):
        lie_about_channels(second, richer if liar == "richer" else poorer)
        await world.channels.top_up(channel_id, 500)
        await world.watcher(settles=False).sweep()
        assert (await world.books.state(channel_id)).deposit == DEPOSIT + 500


async def test_while_only_one_node_answers_no_new_deposit_counts(world: World) -> None:
    """O-88: what is in the books is served on."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(1) as (second,):
        watcher = world.watcher(settles=False)
        await watcher.sweep()
        second.is_down = True
        await world.channels.top_up(channel_id, 500)
        await watcher.sweep()
        assert (await world.books.state(channel_id)).deposit == DEPOSIT
        second.is_down = False
        await watcher.sweep()
        assert (await world.books.state(channel_id)).deposit == DEPOSIT + 500


async def test_a_gateway_serves_nothing_against_a_deposit_that_is_not_there(
    world: World, chain: Devnet, tmp_path: Path
) -> None:
    """O-88: neither at an opening, nor when a voucher goes beyond the deposit."""
    (tmp_path / "shop").mkdir()
    async with (
        world.beside(1) as (second,),
        provide(
            chain, tmp_path / "shop", reader=world.reader, transaction_wait_s=HASTY_S
        ) as provider,
    ):
        payer = provider.payer
        await provider.opened(PRICE, deposit=1_000)
        lie_about_channels(world.node, richer)
        answer = await provider.send(payer.voucher(50_000))
        assert answer.status_code == 402
        assert answer.json()["type"].endswith("amount-exceeds-deposit")
        await payer.open(1_000)
        answer = await provider.send(payer.opening(50_000))
        assert answer.json()["type"].endswith("amount-exceeds-deposit")
        second.is_down = True
        answer = await provider.send(payer.opening(50_000))
        assert answer.status_code == 503
        assert provider.served == 0
        second.is_down = False
        world.node.lies.clear()
        assert (await provider.send(payer.opening(PRICE))).status_code == 200


async def tip_of_close(world: World, chain: Devnet) -> int:
    channel_id = await world.books.open(accepted=400, spent=400)
    signature = world.channels.sign(channel_id, 400)
    result = await world.settler.close_channel(world.channels.key(channel_id), 400, signature)
    mined = await chain.rpc.read("eth_getTransactionByHash", "0x" + result.tx_hash.hex())
    return int(mined["maxPriorityFeePerGas"], 16)


@pytest.mark.parametrize("liar", [0, 1])
async def test_the_least_tip_of_all_nodes_is_bid(world: World, chain: Devnet, liar: int) -> None:
    """O-88: one node's suggestion, 13 times too high, pays a miner for nothing."""
    async with world.beside(1) as (second,):
        honest = await tip_of_close(world, chain)
    async with world.beside(1) as (second,):
        nodes = (world.node, second)
        nodes[liar].lies["eth_maxPriorityFeePerGas"] = lambda _, said: hex(13 * int(said, 16))
        assert await tip_of_close(world, chain) == honest
        nodes[1 - liar].lies["eth_maxPriorityFeePerGas"] = lambda *_: "nonsense"
        assert await tip_of_close(world, chain) in (honest, 13 * honest)


async def test_very_many_exits_need_a_second_nodes_word(world: World) -> None:
    """O-88: no customer's channel is closed, and what one node invented is forgotten."""
    ids = [await world.books.open(accepted=10, spent=10) for _ in range(MANY)]
    async with world.beside(1):
        lie_about_channels(world.node, leaving)
        watcher = world.watcher()
        sweep = await watcher.sweep()
        assert (sweep.read, sweep.closed) == (MANY, 0)
        assert world.rings(AlarmKind.NODES_DISAGREE)
        await watcher.sweep()  # by the other node, since this one is not believed
        for channel_id in ids:
            state = await world.books.state(channel_id)
            assert (state.is_closing, state.close_requested_at) == (False, 0)
        world.node.lies.clear()
        await watcher.sweep()
        assert not world.rings(AlarmKind.NODES_DISAGREE)


async def test_very_many_exits_that_are_real_are_answered(world: World) -> None:
    """O-88: immediately, since both nodes show them."""
    ids = [await world.books.open(accepted=10, spent=10) for _ in range(MANY)]
    async with world.beside(1), world.watching():
        for channel_id in ids:
            await world.leave(channel_id)
        for channel_id in ids:
            await world.until(channel_id, is_finalized=True)


async def test_exits_that_no_second_node_can_show_are_answered_in_time(
    world: World, chain: Devnet
) -> None:
    """O-88: to wait for ever would lose everything; half of the grace period is left."""
    ids = [await world.books.open(accepted=10, spent=10) for _ in range(MANY)]
    async with world.beside(1) as (second,):
        second.is_down = True
        for channel_id in ids:
            await world.leave(channel_id)
        watcher = world.watcher()
        assert (await watcher.sweep()).closed == 0
        await chain.advance(GRACE_S // 2)
        assert (await watcher.sweep()).closed == MANY


@asynccontextmanager
async def journalled(chain: Devnet, path: Path) -> AsyncIterator[SqliteJournal]:
    journal = await SqliteJournal.open(
        path, chain_id=chain.values.chain_id, account=chain.account("payee").address
    )
    await journal.take_lease("this test", ttl_s=600)
    try:
        yield journal
    finally:
        await journal.close()


async def close(world: World, settler: EscrowSettler, *, deadline: int = 0) -> ChannelId:
    channel_id = await world.books.open(accepted=400, spent=400)
    signature = world.channels.sign(channel_id, 400)
    key = world.channels.key(channel_id)
    await settler.close_channel(key, 400, signature, deadline=deadline)
    return channel_id


async def test_an_hours_closes_cost_no_more_than_is_allowed(
    world: World, chain: Devnet, tmp_path: Path
) -> None:
    """O-88: to the wei, over restarts; a deadline that is near is kept at any cost."""
    now = [time.time()]  # by which the journal says when it sent, unlike the chain

    async def settler(journal: SqliteJournal, limit_wei: int) -> EscrowSettler:
        sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal, limits=TX)
        hour = GasHour(journal, chain.rpc, limit_wei=limit_wei, wall=lambda: now[0])
        return EscrowSettler(world.reader, sender, hour=hour)

    path = tmp_path / "journal.db"
    async with journalled(chain, path) as journal:
        await close(world, await settler(journal, 1))
        spent_wei = payout_cost_wei(await journal.sent_since(0))
        assert 0 < spent_wei < 10**15
        with pytest.raises(GasHourUsedError, match=f"cost {spent_wei} wei"):
            await close(world, await settler(journal, spent_wei))
        head = await chain.rpc.block()
        await close(world, await settler(journal, spent_wei), deadline=head.timestamp + 290)
        spent_wei = payout_cost_wei(await journal.sent_since(0))
    async with journalled(chain, path) as journal:
        with pytest.raises(GasHourUsedError):
            await close(world, await settler(journal, spent_wei))
        await close(world, await settler(journal, spent_wei + 1))
        spent_wei = payout_cost_wei(await journal.sent_since(0))
        now[0] += HOUR_S + 600
        await close(world, await settler(journal, spent_wei))


async def test_closes_beyond_the_hours_gas_are_reported_and_done_later(
    world: World, chain: Devnet, tmp_path: Path
) -> None:
    """O-88: the alarm rings while closes wait, and is over with the next that is made."""
    first = await world.books.open(accepted=400, spent=400)
    second = await world.books.open(accepted=400, spent=400)
    async with journalled(chain, tmp_path / "journal.db") as journal:
        sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal, limits=TX)
        hour = GasHour(journal, chain.rpc, limit_wei=1)
        world.settler = EscrowSettler(world.reader, sender, hour=hour)
        async with world.watching():
            await world.leave(first)
            await world.until(first, is_finalized=True)
            await world.leave(second)
            await world.until_rings(AlarmKind.GAS_HOUR)
            await chain.advance(GRACE_S - 290)
            await world.until(second, is_finalized=True)
            await world.until_rings(AlarmKind.GAS_HOUR, is_ringing=False)


async def test_a_hanging_node_holds_up_no_bid(world: World) -> None:
    """O-88: the others' suggestions are enough."""
    async with world.beside(1) as (second,):
        second.delay_s = (5.0, 5.0)
        rpc = world.reader.rpc
        async with within(3):
            assert await rpc.least_tip(7) <= 7
        second.heal()
    async with await Rpc.connect(world.node.url, limits=RPC) as alone:
        before = world.node.calls
        assert await alone.least_tip(7) == 7
        assert world.node.calls == before


def staying(channel: list[int]) -> None:
    channel[_ASKED_AT] = 0


def ended(channel: list[int]) -> None:
    channel[0] = 1


def settled_elsewhere(channel: list[int]) -> None:
    channel[7] = 400


async def test_an_exit_that_one_node_hides_is_heard_from_another(world: World) -> None:
    """O-88: it shows every block, and neither the event nor the state of it."""
    channel_id = await world.books.open(accepted=400, spent=400)
    async with world.beside(1):
        lie_about_channels(world.node, staying)
        world.node.has_no_logs = True
        async with world.watching():
            await world.leave(channel_id)
            state = await world.until(channel_id, is_finalized=True)
    assert state.settled == 400


@pytest.mark.parametrize("lie", [ended, poorer, settled_elsewhere])
@pytest.mark.parametrize("others", [1, 2])
async def test_what_one_node_says_against_a_channel_ends_nothing(
    world: World, lie: Callable[[list[int]], None], others: int
) -> None:
    """O-88: every channel ended, empty, or paid out to a stranger: no other node says so."""
    ids = [await world.books.open(accepted=400, spent=300) for _ in range(3)]
    async with world.beside(others):
        lie_about_channels(world.node, lie)
        watcher = world.watcher(settles=False)
        await watcher.sweep()
        assert world.rings(AlarmKind.NODES_DISAGREE)
        for _ in range(2):
            for channel_id in ids:
                state = await world.books.state(channel_id)
                assert (state.is_finalized, state.is_stopped) == (False, False)
                assert state.foreign_block == 0
            await watcher.sweep()
        world.gate.require_openings()
        world.node.lies.clear()
        await watcher.sweep()
        assert not world.rings(AlarmKind.NODES_DISAGREE)


async def test_what_two_nodes_say_against_a_channel_counts(world: World, chain: Devnet) -> None:
    """O-88, O-89: a third one that hides it changes nothing."""
    channel_id = await world.books.open(accepted=400, spent=300)
    thief = EscrowSettler(world.reader, TxManager(chain.rpc, chain.signer("payee")))
    await thief.close_channel(world.channels.key(channel_id), 0, b"")
    async with world.beside(2) as (second, _):
        lie_about_channels(second, lambda channel: channel.__setitem__(0, 0))
        await world.watcher(settles=False).sweep()
        state = await world.books.state(channel_id)
        assert state.is_finalized
        assert state.foreign_block


def lie_about_time(node: LyingNode, by_s: int) -> None:
    """Let a node date its true blocks otherwise."""

    def lie(_: list[Any], block: dict[str, Any]) -> dict[str, Any]:
        return {**block, "timestamp": hex(int(block["timestamp"], 16) + by_s)}

    node.lies.update({"eth_getBlockByNumber": lie, "eth_getBlockByHash": lie})


@pytest.mark.parametrize("others", [0, 2])
async def test_no_channel_is_idle_by_the_time_of_one_node(world: World, others: int) -> None:
    """O-88, O-90: nothing is closed, nor settled for its age, before this machine agrees."""
    channel_id = await world.books.open(accepted=400, spent=400)
    await world.books.accept(channel_id, 500, at=int(time.time()))
    async with world.beside(others):
        lie_about_time(world.node, 60 * 24 * 3600)
        policy = SettlePolicy(close_idle_s=7 * 24 * 3600, settle_age_s=24 * 3600)
        sweep = await world.watcher(policy=policy).sweep()
        assert (sweep.closed, sweep.settled) == (0, 0)
        assert not (await world.books.state(channel_id)).is_finalized


@pytest.mark.parametrize(("nodes", "by_s"), [(2, 86_400), (3, 86_400), (3, -40 * 86_400)])
async def test_no_start_fails_for_the_time_of_one_node(
    devnet: TestChain, tmp_path: Path, nodes: int, by_s: int
) -> None:
    """O-90: of several, that would be the one whose address comes first."""
    async with AsyncExitStack() as open_:
        urls = []
        for number in range(nodes):
            node = await open_.enter_async_context(lying_node(devnet.values.rpc_url))
            if not number:
                lie_about_time(node, by_s)
            urls.append(node.url)
        more = {"chain.rpc_url": urls[0], "chain.more_rpc_urls": urls[1:]}
        config = build_config(devnet, "http://127.0.0.1:9", tmp_path, **more)
        async with build_parts(config):
            pass


async def test_a_time_that_a_node_invents_is_not_kept(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-90: or each start until that day would be refused."""
    monkeypatch.setattr("mpp_session.process.leader._NOTE_LOOK_S", 0.01)
    async with lying_node(devnet.values.rpc_url) as node:
        config = build_config(devnet, "http://127.0.0.1:9", tmp_path, **{"chain.rpc_url": node.url})
        journal = await open_journal(
            config.ledger.url, chain_id=31337, account=parse_address(config.payee.address)
        )
        lie_about_time(node, 86_400)

        async def is_noted() -> bool:
            return await journal.last_look() is not None

        async with settling(config):
            await until(is_noted)
        node.heal()
        async with build_parts(config):
            pass
        await journal.close()
