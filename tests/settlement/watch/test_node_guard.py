"""Several nodes of one chain: one that lags is asked no more; one that disagrees is reported."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from settlement.alarms import AlarmKind, Alarms
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc, RpcLimits
from settlement.watch.node_guard import NodeGuard
from tests.settlement.flaky_node import FlakyNode, flaky_node


@pytest.fixture
async def nodes(chain: Devnet) -> AsyncIterator[list[FlakyNode]]:
    async with AsyncExitStack() as open_:
        yield [await open_.enter_async_context(flaky_node(chain.values.rpc_url)) for _ in range(2)]


async def test_nodes_are_held_against_each_other(chain: Devnet, nodes: list[FlakyNode]) -> None:
    """SEC-09: one that lags is asked no more; two that disagree ring."""
    limits = RpcLimits(timeout_s=3.0, retry_delay_s=0.01)
    async with await Rpc.connect([node.url for node in nodes], limits=limits) as rpc:
        alarms = Alarms()
        guard = NodeGuard(EscrowReader(rpc, chain.values.escrow), alarms)
        await chain.mine(40)
        await guard.check()
        assert alarms.ringing == []
        old = await chain.rpc.read("eth_getBlockByNumber", "0x2", False)  # noqa: FBT003
        nodes[0].lies["eth_getBlockByNumber"] = old
        await guard.check()
        assert AlarmKind.NODE_BEHIND in {alarm.kind for alarm in alarms.ringing}
        nodes[0].seen.clear()
        await rpc.block()
        assert nodes[0].seen == []
        nodes[0].lies["eth_getBlockByNumber"] = {
            **(await chain.rpc.read("eth_getBlockByNumber", "latest", False)),  # noqa: FBT003
            "hash": "0x" + "77" * 32,
        }
        await guard.check()
        assert AlarmKind.NODES_DISAGREE in {alarm.kind for alarm in alarms.ringing}
        assert guard.is_disputed
        nodes[0].lies.clear()
        await guard.check()
        assert alarms.ringing == []
        assert not guard.is_disputed
