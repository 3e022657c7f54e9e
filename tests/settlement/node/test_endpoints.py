"""Several nodes: failover within a call's deadline, and disagreement that is seen."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from eth_account import Account

from channel.errors import ChainUnavailableError, ConfigError
from channel.types import TxHash
from settlement.dev.devnet import Devnet
from settlement.errors import RpcRefusedError
from settlement.node.nodes import Quorum, judge_nodes, nodes_behind
from settlement.node.rpc import Rpc, RpcLimits
from tests.settlement.flaky_node import Fault, FlakyNode, flaky_node, only_up_to
from tests.waiting import within

LIMITS = RpcLimits(timeout_s=9.0, read_attempts_max=3, retry_delay_s=0.01)

NAMES = ["1: 127.0.0.1", "2: 127.0.0.1", "3: 127.0.0.1"]


@pytest.fixture
async def nodes(chain: Devnet) -> AsyncIterator[list[FlakyNode]]:
    async with AsyncExitStack() as open_:
        yield [await open_.enter_async_context(flaky_node(chain.values.rpc_url)) for _ in range(3)]


@pytest.fixture
async def rpc(nodes: list[FlakyNode]) -> AsyncIterator[Rpc]:
    async with await Rpc.connect([node.url for node in nodes], limits=LIMITS) as rpc:
        for node in nodes:
            node.seen.clear()
        yield rpc


async def test_one_node_is_asked_as_long_as_it_answers(rpc: Rpc, nodes: list[FlakyNode]) -> None:
    """F-72: what belongs together comes from one view of the chain."""
    for _ in range(3):
        await rpc.block_number()
    assert [len(node.seen) for node in nodes] == [3, 0, 0]


@pytest.mark.parametrize("fault", ["drop", "error", "garbage", "hang", "a list"])
async def test_the_next_node_answers_within_the_same_call(
    rpc: Rpc, nodes: list[FlakyNode], fault: Fault
) -> None:
    """F-82: a node that fails in any way, one that hangs included; the deadline is kept."""
    nodes[0].fail(fault)
    async with within(LIMITS.timeout_s):
        assert await rpc.block_number() > 0
    await rpc.block_number()
    assert [len(node.seen) for node in nodes] == [1, 2, 0]


async def test_two_nodes_may_be_away(rpc: Rpc, nodes: list[FlakyNode]) -> None:
    nodes[0].fail("drop")
    nodes[1].fail("error")
    assert await rpc.block_number() > 0
    assert len(nodes[2].seen) == 1


async def test_all_away_is_a_typed_error_and_the_first_that_is_back_serves(
    rpc: Rpc, nodes: list[FlakyNode]
) -> None:
    for node in nodes:
        node.fail("drop")
    with pytest.raises(ChainUnavailableError):
        await rpc.block_number()
    nodes[1].fail("none")
    assert await rpc.block_number() > 0


async def test_nodes_of_another_chain_are_refused_at_the_start(
    chain: Devnet, nodes: list[FlakyNode]
) -> None:
    """SEC-09: the settings name another chain, or the nodes are of several."""
    urls = [node.url for node in nodes]
    nodes[1].lies["eth_chainId"] = "0x1"
    with pytest.raises(ConfigError, match="serves chain 1; the configuration says 31337"):
        await Rpc.connect(urls, limits=LIMITS)
    nodes[0].lies["eth_chainId"] = nodes[2].lies["eth_chainId"] = "0x1"
    with pytest.raises(ConfigError, match="serves chain 1; the configuration says 31337"):
        await Rpc.connect(urls, chain_id=chain.values.chain_id, limits=LIMITS)


@pytest.mark.parametrize("is_away", [False, True], ids=["at the start", "later"])
async def test_one_node_of_another_chain_is_asked_nothing(
    chain: Devnet, nodes: list[FlakyNode], *, is_away: bool
) -> None:
    """SEC-09, O-80: a process starts with one node, and a node that was away never answers."""
    nodes[1].lies["eth_chainId"] = "0x1"
    if is_away:
        nodes[1].fail("drop", times=1)
    urls = [node.url for node in nodes]
    async with await Rpc.connect(urls, chain_id=chain.values.chain_id, limits=LIMITS) as rpc:
        nodes[0].fail("drop")
        nodes[1].fail("none")
        nodes[1].seen.clear()
        assert await rpc.block_number() > 0
        assert set(nodes[1].seen) <= {"eth_chainId"}
        assert "eth_blockNumber" in nodes[2].seen


async def test_one_node_that_answers_is_enough_to_start(nodes: list[FlakyNode]) -> None:
    nodes[0].fail("drop")
    nodes[2].fail("error")
    async with await Rpc.connect([node.url for node in nodes], limits=LIMITS) as rpc:
        assert await rpc.block_number() > 0
    nodes[1].fail("drop")
    with pytest.raises(ChainUnavailableError):
        await Rpc.connect([node.url for node in nodes], limits=LIMITS)


async def test_what_is_offered_goes_to_every_node_and_each_answers_for_itself(
    rpc: Rpc, nodes: list[FlakyNode]
) -> None:
    """F-75: also one that rests or is left out; what one refuses, another may take."""
    rpc.leave_out(["1: 127.0.0.1"])
    nodes[1].fail("drop")
    refused, away, again = await rpc.offer(b"no transaction")
    assert all("eth_sendRawTransaction" in node.seen for node in nodes)
    assert isinstance(refused, RpcRefusedError)
    assert isinstance(again, RpcRefusedError)
    assert isinstance(away, ChainUnavailableError)
    assert not isinstance(away, RpcRefusedError)


async def test_a_signed_transaction_goes_to_the_next_node_and_is_one_transaction(
    rpc: Rpc, nodes: list[FlakyNode], chain: Devnet
) -> None:
    """F-75, F-82: the first node takes it and its answer is lost; the bytes mean the same."""
    nodes[0].fail("swallow", method="eth_sendRawTransaction")
    account = Account.from_key(chain.account("payer").private_key)
    sender = "0x" + account.address[2:].lower()
    nonce = int(await rpc.read("eth_getTransactionCount", sender, "latest"), 16)
    signed = account.sign_transaction(
        {
            "type": 2,
            "chainId": chain.values.chain_id,
            "nonce": nonce,
            "gas": 21_000,
            "maxFeePerGas": 10**10,
            "maxPriorityFeePerGas": 1,
            "value": 1,
            "to": bytes(20),
        }
    )
    raw = "0x" + bytes(signed.raw_transaction).hex()
    with pytest.raises(ChainUnavailableError):  # "known already", or a nonce that is used
        await rpc.command("eth_sendRawTransaction", raw)
    assert "eth_sendRawTransaction" in nodes[1].seen
    await chain.mine()
    receipt = await rpc.receipt(TxHash(bytes(signed.hash)))
    assert receipt is not None
    assert receipt.is_success
    after = int(await rpc.read("eth_getTransactionCount", sender, "latest"), 16)
    assert after == nonce + 1


async def test_other_commands_are_sent_once(rpc: Rpc, nodes: list[FlakyNode]) -> None:
    """F-82: the caller must know what it sent."""
    nodes[0].fail("swallow", method="anvil_mine")
    with pytest.raises(ChainUnavailableError):
        await rpc.command("anvil_mine", "0x1")
    assert all("anvil_mine" not in node.seen for node in nodes[1:])


async def test_a_node_that_lags_can_be_left(rpc: Rpc, nodes: list[FlakyNode]) -> None:
    await rpc.block_number()
    rpc.mark_unhealthy()
    await rpc.block_number()
    assert [len(node.seen) for node in nodes] == [1, 1, 0]


async def test_nodes_can_be_avoided_unless_none_is_left(rpc: Rpc, nodes: list[FlakyNode]) -> None:
    rpc.avoid(NAMES[:2])
    await rpc.block_number()
    assert [len(node.seen) for node in nodes] == [0, 0, 1]
    rpc.avoid(NAMES)
    await rpc.block_number()
    assert [len(node.seen) for node in nodes] == [0, 0, 2]


async def test_nodes_that_show_different_blocks_are_found(
    rpc: Rpc, nodes: list[FlakyNode], chain: Devnet
) -> None:
    """At a depth where they should agree; one that is away, or lags, is no disagreement."""
    await chain.mine(20)
    views = await rpc.compare_nodes(depth=3)
    assert [view.name for view in views] == NAMES
    assert judge_nodes(views) == Quorum()
    nodes[2].fail("drop")
    views = await rpc.compare_nodes(depth=3)
    assert views[2].head is None
    assert judge_nodes(views) == Quorum()
    nodes[2].fail("none")
    old = await chain.rpc.read("eth_getBlockByNumber", "0x2", False)  # noqa: FBT003
    nodes[2].lies["eth_getBlockByNumber"] = only_up_to(old)
    views = await rpc.compare_nodes(depth=0)
    assert judge_nodes(views) == Quorum()
    assert nodes_behind(views, blocks=10) == ["3: 127.0.0.1"]
    head = await chain.rpc.read("eth_getBlockByNumber", "latest", False)  # noqa: FBT003
    nodes[2].lies["eth_getBlockByNumber"] = {**head, "hash": "0x" + "11" * 32}
    assert judge_nodes(await rpc.compare_nodes(depth=0)).left_out == {NAMES[2]}


async def test_a_node_that_is_far_behind_hides_no_disagreement(
    nodes: list[FlakyNode], chain: Devnet
) -> None:
    """F-73: of four, one has its first blocks only; down there the other three would all agree."""
    await chain.mine(20)
    genesis = await chain.rpc.read("eth_getBlockByNumber", "0x0", False)  # noqa: FBT003
    head = await chain.rpc.read("eth_getBlockByNumber", "latest", False)  # noqa: FBT003
    urls = [chain.values.rpc_url, *[node.url for node in nodes]]
    async with await Rpc.connect(urls, limits=LIMITS) as rpc:
        nodes[1].lies["eth_getBlockByNumber"] = only_up_to(genesis)
        nodes[2].lies["eth_getBlockByNumber"] = {**head, "hash": "0x" + "11" * 32}
        views = await rpc.compare_nodes(depth=0)
    assert len(judge_nodes(views).disputing) == 3


async def test_a_node_that_changes_its_chain_is_left_until_it_is_back(
    rpc: Rpc, nodes: list[FlakyNode]
) -> None:
    """SEC-09: behind an address may be another chain from one moment to the next."""
    await rpc.check_chain()
    nodes[0].lies["eth_chainId"] = "0x1"
    with pytest.raises(ChainUnavailableError, match="serves chain 1, not 31337"):
        await rpc.check_chain()
    await rpc.block_number()
    assert "eth_blockNumber" in nodes[1].seen
    del nodes[0].lies["eth_chainId"]
    nodes[1].fail("drop")
    nodes[2].fail("drop")
    nodes[0].seen.clear()
    await rpc.block_number()
    assert nodes[0].seen == ["eth_chainId", "eth_blockNumber"]


async def test_a_node_that_is_left_out_is_not_asked_when_all_others_are_away(
    rpc: Rpc, nodes: list[FlakyNode]
) -> None:
    """SEC-09: no facts are better than facts of another chain; until it is taken in again."""
    rpc.leave_out([NAMES[0]])
    await rpc.block_number()
    nodes[1].fail("drop")
    nodes[2].fail("drop")
    nodes[0].seen.clear()
    with pytest.raises(ChainUnavailableError):
        await rpc.block_number()
    assert nodes[0].seen == []
    await rpc.compare_nodes(depth=0)
    assert "eth_getBlockByNumber" in nodes[0].seen, "it may show that it agrees again"
    rpc.leave_out([])
    assert await rpc.block_number() > 0


async def test_no_node_is_a_setting_to_refuse() -> None:
    with pytest.raises(ConfigError, match="No node is configured: give at least one URL"):
        await Rpc.connect([])
