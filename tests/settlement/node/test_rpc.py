"""The only socket: deadlines, a bounded number of tries, and errors that say whose they are."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace

from channel.errors import ChainUnavailableError, ConfigError
from channel.limits import NODE_MESSAGE_CHARS_MAX, NODE_TIP_S_MAX
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import ContractRevertedError, RpcRefusedError
from settlement.node.rpc import Rpc, RpcLimits
from settlement.types import RevertReason
from tests.settlement.flaky_node import Fault, FlakyNode, flaky_node
from tests.settlement.wallets import deploy_wallet
from tests.waiting import PATIENCE_S

_LIMITS = RpcLimits(
    timeout_s=PATIENCE_S, read_attempts_max=3, retry_delay_s=0.01, answer_bytes_max=100_000
)
_HASTY = replace(_LIMITS, timeout_s=1.0)


@pytest.fixture
async def node(chain: Devnet) -> AsyncIterator[FlakyNode]:
    async with flaky_node(chain.values.rpc_url) as node:
        yield node


@pytest.fixture
async def rpc(node: FlakyNode) -> AsyncIterator[Rpc]:
    async with await Rpc.connect(node.url, limits=_LIMITS) as rpc:
        node.seen.clear()
        yield rpc


@pytest.fixture
async def hasty(node: FlakyNode) -> AsyncIterator[Rpc]:
    """One that gives up a node that hangs while a test waits."""
    async with await Rpc.connect(node.url, limits=_HASTY) as rpc:
        node.seen.clear()
        yield rpc


# -- which chain (SEC-09)


async def test_the_chain_id_is_pinned_at_the_start(chain: Devnet) -> None:
    async with await Rpc.connect(chain.values.rpc_url, chain_id=31337) as rpc:
        assert rpc.chain_id == 31337
    async with await Rpc.connect(chain.values.rpc_url) as rpc:
        assert rpc.chain_id == 31337


async def test_a_node_of_another_chain_is_refused(chain: Devnet) -> None:
    with pytest.raises(ConfigError, match="serves chain 31337; the configuration says 1"):
        await Rpc.connect(chain.values.rpc_url, chain_id=1)


async def test_a_node_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(ChainUnavailableError, match="cannot be reached"):
        await Rpc.connect("http://127.0.0.1:1", limits=_LIMITS)


# -- failing nodes (F-82)


@pytest.mark.parametrize("fault", ["drop", "error", "garbage", "not rpc", "swallow"])
async def test_a_read_is_tried_again(rpc: Rpc, node: FlakyNode, fault: Fault) -> None:
    node.fail(fault, times=2)
    assert await rpc.block_number() > 0
    assert node.seen == ["eth_blockNumber"] * 3


@pytest.mark.parametrize("fault", ["drop", "error", "garbage", "hang", "huge", "not rpc", "a list"])
async def test_tries_are_bounded_and_the_error_is_typed(
    rpc: Rpc, hasty: Rpc, node: FlakyNode, fault: Fault
) -> None:
    node.fail(fault)
    async with asyncio.timeout(PATIENCE_S / 2):
        with pytest.raises(ChainUnavailableError) as caught:
            await (hasty if fault == "hang" else rpc).block_number()
    assert len(node.seen) == (1 if fault in ("hang", "huge") else 3)
    assert caught.value.status == 503
    assert node.url not in str(caught.value)


async def test_a_command_is_sent_once_after_any_fault(hasty: Rpc, node: FlakyNode) -> None:
    """F-82: nothing behind our back sends a change twice."""
    for fault in ("drop", "swallow", "error", "hang"):
        node.seen.clear()
        node.fail(fault)
        with pytest.raises(ChainUnavailableError):
            await hasty.command("anvil_mine", "0x1")
        assert node.seen == ["anvil_mine"]


async def test_fifty_calls_to_a_node_that_hangs_all_end(hasty: Rpc, node: FlakyNode) -> None:
    """F-82: a fan-out does not hang."""
    node.fail("hang")
    calls = [hasty.command("eth_blockNumber") for _ in range(50)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, ChainUnavailableError) for result in results)


async def test_the_nodes_address_is_in_no_error_and_no_log(
    chain: Devnet, caplog: pytest.LogCaptureFixture
) -> None:
    """F-103: it carries the access key, also after a `dictConfig` has enabled every logger."""
    secret = "k3y-in-the-path"  # noqa: S105
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
    with caplog.at_level(logging.DEBUG):
        async with await Rpc.connect(f"{chain.values.rpc_url}/?key={secret}") as rpc:
            await rpc.block_number()
            with pytest.raises(RpcRefusedError) as refused:
                await rpc.read("eth_nonsense")
        with pytest.raises(ChainUnavailableError) as caught:
            await Rpc.connect(f"http://127.0.0.1:1/{secret}", limits=_LIMITS)
    shown = f"{refused.value}{caught.value}{caught.value.__cause__}{caplog.text}"
    assert secret not in shown


# -- what nodes answer


async def test_an_error_of_the_node_is_not_a_revert(rpc: Rpc) -> None:
    with pytest.raises(RpcRefusedError, match="eth_nonsense") as caught:
        await rpc.read("eth_nonsense")
    assert caught.value.code == -32601


async def test_a_batch_keeps_the_order_and_raises_the_first_failure(
    chain: Devnet, rpc: Rpc, node: FlakyNode
) -> None:
    bad = {
        "to": "0x" + chain.values.escrow.hex(),
        "data": "0x" + abi.withdraw.encode(bytes(32)).hex(),
    }
    chain_id, number = await rpc.read_batch([("eth_chainId", []), ("eth_blockNumber", [])])
    assert (chain_id, int(number, 16)) == ("0x7a69", await chain.rpc.block_number())
    with pytest.raises(ContractRevertedError) as caught:
        await rpc.read_batch(
            [("eth_chainId", []), ("eth_call", [bad, "latest"]), ("eth_nonsense", [])]
        )
    assert caught.value.reason is RevertReason.CHANNEL_NOT_FOUND
    for fault in ("not rpc", "a list"):
        node.fail(fault)
        for size in (1, 2):
            with pytest.raises(ChainUnavailableError, match="a batch"):
                await rpc.read_batch([("eth_chainId", [])] * size)


@pytest.mark.parametrize("error", ["busy", {"code": 3}, {"code": None, "message": None}])
async def test_an_error_of_any_shape_is_typed(rpc: Rpc, node: FlakyNode, error: object) -> None:
    """SEC-09."""
    node.errors["eth_blockNumber"] = error
    with pytest.raises((ChainUnavailableError, ContractRevertedError)):
        await rpc.block_number()


async def test_a_nodes_words_are_shown_up_to_a_bound(rpc: Rpc, node: FlakyNode) -> None:
    """SEC-09, issue 10 B: at the bound all of them, and of longer ones the beginning."""
    words = "busy ".ljust(NODE_MESSAGE_CHARS_MAX, "x")
    for said in (words, words + "y"):
        node.errors["eth_blockNumber"] = {"code": -32000, "message": said}
        with pytest.raises(RpcRefusedError) as caught:
            await rpc.read("eth_blockNumber")
        assert caught.value.message == words
        assert f": {words} (-32000)." in str(caught.value)


async def run_until(is_so: Callable[[], bool]) -> None:
    """Run the event loop, whose clock a test holds, until something is so."""
    while not is_so():  # noqa: ASYNC110 - a pause would never end
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_in_time", [True, False], ids=["in time", "a millisecond later"])
async def test_a_nodes_word_on_tips_is_waited_for_so_long(
    chain: Devnet, node: FlakyNode, monkeypatch: pytest.MonkeyPatch, *, is_in_time: bool
) -> None:
    """SEC-09, issue 10 B: after that the others' words count; the loop's clock is held."""
    node.lies["eth_maxPriorityFeePerGas"] = "0x1"
    node.fail("hang", method="eth_maxPriorityFeePerGas")
    async with await Rpc.connect([chain.values.rpc_url, node.url], limits=_LIMITS) as rpc:
        loop = asyncio.get_running_loop()
        began = now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now)
        asking = asyncio.create_task(rpc.least_tip(7))
        await run_until(lambda: "eth_maxPriorityFeePerGas" in node.seen)
        now = began + NODE_TIP_S_MAX - 0.001
        for _ in range(10):
            await asyncio.sleep(0)
        assert not asking.done()
        if is_in_time:
            node.go_on.set()
        else:
            now = began + NODE_TIP_S_MAX
        await run_until(asking.done)
        assert asking.result() == (1 if is_in_time else 7)


async def test_running_out_of_gas_is_a_refusal_by_the_contract(chain: Devnet) -> None:
    glutton = await deploy_wallet(chain.deployer, "burns all gas")
    with pytest.raises(ContractRevertedError) as caught:
        await chain.rpc.call(glutton, b"", gas=100_000)
    assert caught.value.reason is RevertReason.OUT_OF_GAS


async def test_a_block_the_node_lacks_is_unavailable(chain: Devnet) -> None:
    with pytest.raises(ChainUnavailableError):
        await chain.rpc.block(10**6)


async def test_a_node_that_takes_small_batches_is_asked_in_parts(
    chain: Devnet, rpc: Rpc, node: FlakyNode
) -> None:
    """F-66: some take a thousand, some three; a flood of exits is simulated all the same."""
    await chain.mine(9)
    node.batch_max = 3
    calls = [("eth_getBlockByNumber", [hex(number), False]) for number in range(10)]
    for _ in range(2):
        node.seen.clear()
        answers = await rpc.read_batch(calls)
        assert [int(answer["number"], 16) for answer in answers] == list(range(10))
    assert len(node.seen) == 10, "what it takes is remembered"
    node.batch_max = 0
    with pytest.raises(ChainUnavailableError):
        await rpc.read_batch(calls)
