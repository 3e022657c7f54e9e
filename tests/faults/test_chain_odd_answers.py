"""O-80: an odd answer is its node's fault: no process ends, and every channel is settled.

`tests/faults/odd_answers.py` holds what a node may say. Each is said by one node of three, the
preferred one, and by a node that is alone; real Anvil answers behind it.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import settlement.node.endpoints
from channel.errors import ChainUnavailableError, ConfigError
from channel.types import ChannelId, TxHash
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import ContractRevertedError, RpcRefusedError
from settlement.escrow.reader import EscrowReader, ReaderLimits
from settlement.node.rpc import Rpc
from settlement.settle.settler import EscrowSettler
from settlement.tx.manager import TxManager
from tests.e2e.warm import Forge
from tests.faults.chain_world import RPC, TX, WATCH, World
from tests.faults.odd_answers import ODD_ANSWERS
from tests.faults.proxy import LyingNode, lying_node
from tests.mpp_session.settlers import Settlers, owe_close, settler_variables, until_closed
from tests.waiting import until

METHODS = (
    "eth_blockNumber",
    "eth_call",
    "eth_chainId",
    "eth_estimateGas",
    "eth_getBalance",
    "eth_getBlockByHash",
    "eth_getBlockByNumber",
    "eth_getLogs",
    "eth_getTransactionCount",
    "eth_getTransactionReceipt",
    "eth_maxPriorityFeePerGas",
    "eth_sendRawTransaction",
)
"""Every method that watching, settling and the tower ask by."""

HASTY = replace(RPC, read_attempts_max=1)


@pytest.fixture
def _short_cooldowns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a node that has failed again soon: else it would say one odd thing in 15 seconds."""
    monkeypatch.setattr(settlement.node.endpoints, "COOLDOWN_S", 0.05)
    monkeypatch.setattr(settlement.node.endpoints, "COOLDOWN_S_MAX", 0.05)


@pytest.mark.usefixtures("_short_cooldowns")
async def test_one_node_of_three_may_answer_anything(world: World) -> None:
    """O-80, SEC-09: each odd answer to everything, then each method alone with all of them."""
    before = await world.paid()
    opened = 0

    async def close_one() -> None:
        nonlocal opened
        channel_id = await world.books.open(accepted=400, spent=400)
        await world.leave(channel_id)
        state = await world.until(channel_id, is_finalized=True)
        assert state.settled == 400
        opened += 1

    async with world.beside(2), beside(world):
        for name, odd in ODD_ANSWERS.items():
            world.node.odd = odd
            with Naming(name):
                await close_one()
        for number, method in enumerate(METHODS):
            for name in list(ODD_ANSWERS)[number :: len(ODD_ANSWERS) // 2]:
                world.node.odd, world.node.odd_methods = ODD_ANSWERS[name], {method}
                with Naming(f"{name} to {method}"):
                    await close_one()
    assert await world.paid() == before + 400 * opened


class Naming:
    """Name what was tried in the error of what failed by it."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(f"a node answered: {self._what}")


@asynccontextmanager
async def beside(world: World) -> AsyncIterator[None]:
    """Watch and settle beside the block, and fail with it when one of the two ends."""
    sender = TxManager(world.reader.rpc, world.chain.signer("payee"), limits=TX)
    world.settler = EscrowSettler(world.reader, sender)
    async with world.watching(limits=replace(WATCH, interval_s=0.1)), asyncio.TaskGroup() as group:
        guard = group.create_task(sender.run())
        yield
        world.settler.tasks.require_sound()
        guard.cancel()


READS: dict[str, Callable[[EscrowReader], Coroutine[Any, Any, object]]] = {
    "block_number": lambda reader: reader.rpc.block_number(),
    "block": lambda reader: reader.rpc.block(),
    "block_by_hash": lambda reader: reader.rpc.block_by_hash(bytes(32)),
    "code": lambda reader: reader.rpc.code(reader.escrow),
    "balance_wei": lambda reader: reader.rpc.balance_wei(reader.escrow),
    "nonces_used": lambda reader: reader.rpc.nonces_used(reader.escrow),
    "receipt": lambda reader: reader.rpc.receipt(TxHash(bytes(32))),
    "logs": lambda reader: reader.rpc.logs(reader.escrow, (), from_block=0, to_block=1),
    "logs_of_blocks": lambda reader: reader.rpc.logs_of_blocks(reader.escrow, (), [bytes(32)]),
    "grace": lambda reader: reader.read_grace_period_s(),
    "channel": lambda reader: reader.read_channel(ChannelId(bytes(32))),
    "channels": lambda reader: reader.read_channels([ChannelId(bytes(32))] * 2),
    "evidence": lambda reader: reader.read_transaction(TxHash(bytes(32))),
    "opening": lambda reader: reader.find_opening(ChannelId(bytes(32))),
    "top-ups": lambda reader: reader.find_top_ups(ChannelId(bytes(32))),
    "nodes": lambda reader: reader.rpc.compare_nodes(depth=3),
    "offer": lambda reader: reader.rpc.offer(b"no transaction"),
    "chain": lambda reader: reader.rpc.check_chain(),
}
SIMULATIONS: dict[str, Callable[[EscrowReader], Coroutine[Any, Any, object]]] = {
    "call": lambda reader: reader.rpc.call(reader.escrow, abi.token.encode()),
    "try_calls": lambda reader: reader.rpc.try_calls(
        reader.escrow, [abi.token.encode()] * 2, sender=reader.escrow
    ),
    "deployment": lambda reader: reader.require_deployment(),
}
ALL = {**READS, **SIMULATIONS}


async def test_a_node_that_is_alone_and_answers_anything_is_unavailable(chain: Devnet) -> None:
    """O-80, SEC-09: never another error than that it gave no usable answer, or refused a call."""
    async with (
        lying_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url, limits=HASTY) as rpc,
    ):
        limits = ReaderLimits(lag_s_max=0.0, log_searches_max=1, log_blocks_max=1)
        reader = EscrowReader(rpc, chain.values.escrow, limits=limits)
        for number, (name, odd) in enumerate(ODD_ANSWERS.items()):
            node.odd = odd
            for question, read in list(ALL.items())[number % 2 :: 2]:
                simulated = (ContractRevertedError, ConfigError) if question in SIMULATIONS else ()
                with Naming(f"{name} to {question}"), suppress(ChainUnavailableError, *simulated):
                    await read(reader)


@pytest.fixture
async def three(chain: Devnet) -> AsyncIterator[tuple[list[LyingNode], EscrowReader]]:
    """Three nodes of one chain, and a reader that asks them."""
    async with AsyncExitStack() as open_:
        nodes = [
            await open_.enter_async_context(lying_node(chain.values.rpc_url)) for _ in range(3)
        ]
        connecting = Rpc.connect([node.url for node in nodes], limits=RPC)
        rpc = await open_.enter_async_context(await connecting)
        yield nodes, EscrowReader(rpc, chain.values.escrow)


@pytest.mark.parametrize("odd", ["reverted", "out of gas", "reverted for a reason", "no trie node"])
async def test_a_no_counts_when_a_second_node_says_it(
    three: tuple[list[LyingNode], EscrowReader], odd: str
) -> None:
    """O-80: the node that is alone with it rests; two that agree are believed of a simulation."""
    nodes, reader = three
    token, no_transaction = abi.token.encode(), ContractRevertedError
    nodes[0].odd = ODD_ANSWERS[odd]
    assert await reader.read_grace_period_s() == 900
    asked = nodes[0].requests
    assert len(await reader.rpc.call(reader.escrow, token)) == 32
    assert await reader.rpc.try_calls(reader.escrow, [token, token], sender=reader.escrow) == [
        None,
        None,
    ]
    assert nodes[0].requests == asked, "it rests"
    nodes[1].odd = nodes[2].odd = ODD_ANSWERS[odd]
    with pytest.raises(RpcRefusedError if odd == "no trie node" else no_transaction):
        await reader.rpc.call(reader.escrow, token)
    with pytest.raises(ChainUnavailableError):  # of a view never
        await reader.read_grace_period_s()


async def test_a_node_that_refuses_what_others_simulate_is_not_believed(
    three: tuple[list[LyingNode], EscrowReader],
) -> None:
    """O-80, F-79: nor does it put a good channel into quarantine, or hide a bad one."""
    nodes, reader = three
    good, bad = abi.token.encode(), abi.withdraw.encode(bytes(32))
    honest = await reader.rpc.try_calls(reader.escrow, [good, bad], sender=reader.escrow)
    nodes[0].odd = ODD_ANSWERS["reverted"]
    lied_to = await reader.rpc.try_calls(reader.escrow, [good, bad], sender=reader.escrow)
    for found in (honest, lied_to):
        assert found[0] is None
        assert isinstance(found[1], ContractRevertedError)
        assert "channel" in str(found[1])


async def test_a_restart_beside_a_node_that_lies_is_a_start(
    forge: Forge, devnet: TestChain, world: World, chain: Devnet, tmp_path: Path
) -> None:
    """O-80: the program itself, with the node that had it say "is not a session escrow"."""
    async with lying_node(chain.values.rpc_url) as node:
        node.odd, node.odd_methods = ODD_ANSWERS["reverted"], {"eth_call"}
        variables = settler_variables(
            devnet,
            f"sqlite:///{tmp_path / 'ledger.db'}",
            CHAIN_RPC_URL=node.url,
            CHAIN_MORE_RPC_URLS=f"{chain.values.rpc_url},{world.node.url}",
            SETTLEMENT_SWEEP_INTERVAL_S="0.1",
        )
        settlers = Settlers(forge, tmp_path, variables)
        try:
            process, said = settlers.start()
            await said.until("settling")
            for odd in ("out of gas", "numbers near the bound"):
                node.odd, node.odd_methods = ODD_ANSWERS[odd], set()
                asked = node.requests
                channel_id = await owe_close(world.ledger, chain, salt=len(odd))
                await until_closed(chain, channel_id)
                await until(lambda asked=asked: node.requests > asked)  # type: ignore[misc]
                assert process.returncode is None, said.text()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0, said.text()
        finally:
            settlers.end()
