"""One key's transactions: simulated first, sent once, pending until a receipt says otherwise."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from channel.errors import ChainUnavailableError, ConfigError, SettlementPendingError
from channel.types import Address
from settlement import abi
from settlement.anvil import Anvil, find_anvil
from settlement.devnet import Devnet
from settlement.errors import (
    ContractRevertedError,
    RpcRefusedError,
    TokenRefusedRevertError,
    TransactionPendingError,
)
from settlement.fees import FeePolicy
from settlement.rpc import Rpc, RpcLimits
from settlement.signer import KeySigner
from settlement.tx_manager import TxLimits, TxManager
from settlement.types import RevertReason
from tests.settlement.flaky_node import FlakyNode, flaky_node
from tests.settlement.wallets import deploy_code

SEND = "eth_sendRawTransaction"
RECEIPT = "eth_getTransactionReceipt"

_QUICK = TxLimits(mined_within_s=2.0, poll_max_s=0.02, resend_after_s=0.05)
_IMPATIENT = TxLimits(mined_within_s=0.1, poll_max_s=0.02, resend_after_s=0.03)
_RPC = RpcLimits(timeout_s=0.3, read_attempts_max=2, retry_delay_s=0.01)


@asynccontextmanager
async def flaky_sender(
    chain: Devnet, limits: TxLimits = _QUICK
) -> AsyncIterator[tuple[FlakyNode, TxManager]]:
    async with (
        flaky_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url, limits=_RPC) as rpc,
    ):
        yield node, TxManager(rpc, chain.signer("stranger"), limits=limits)


def pay_one(chain: Devnet) -> bytes:
    return abi.transfer.encode(chain.account("payee").address, 1)


async def received(chain: Devnet) -> int:
    return await chain.token_balance(chain.account("payee").address) - 1_000_000 * 10**6


# -- the ordinary course


async def test_a_transaction_is_sent_and_its_receipt_comes_back(chain: Devnet) -> None:
    receipt = await chain.sender("stranger").send(chain.values.token, pay_one(chain))
    assert receipt.is_success
    assert receipt.block_number == await chain.rpc.block_number()
    assert await received(chain) == 1


async def test_concurrent_sends_of_one_key_have_a_nonce_each(chain: Devnet) -> None:
    """F-74: one allocator per key."""
    sender = chain.sender("stranger")
    receipts = await asyncio.gather(
        *[sender.send(chain.values.token, pay_one(chain)) for _ in range(20)]
    )
    assert len({receipt.tx_hash for receipt in receipts}) == 20
    assert await received(chain) == 20


async def test_the_bid_follows_the_base_fee(chain: Devnet) -> None:
    """F-77."""
    await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(7 * 10**9))
    await chain.mine()
    tx_hash = await chain.sender("stranger").broadcast(chain.values.token, pay_one(chain))
    sent = await chain.rpc.read("eth_getTransactionByHash", "0x" + tx_hash.hex())
    tip = int(sent["maxPriorityFeePerGas"], 16)
    head = await chain.rpc.block()
    assert head.base_fee_wei is not None
    assert int(sent["maxFeePerGas"], 16) - tip >= head.base_fee_wei


async def test_a_bid_above_the_bound_is_not_made(chain: Devnet) -> None:
    """F-78."""
    account = chain.signer("stranger")
    mean = TxManager(chain.rpc, account, fees=FeePolicy(max_fee_wei=1))
    with pytest.raises(ConfigError, match="below the base fee"):
        await mean.send(chain.values.token, pay_one(chain))
    assert await received(chain) == 0


# -- refusals


async def test_a_refusal_in_the_simulation_spends_no_gas_and_no_nonce(chain: Devnet) -> None:
    """SEC-05: verify before gas."""
    sender = chain.sender("stranger")
    before = await chain.rpc.balance_wei(sender.address)
    too_much = abi.transfer.encode(chain.account("payee").address, 10**30)
    with pytest.raises(TokenRefusedRevertError) as caught:
        await sender.send(chain.values.token, too_much)
    assert caught.value.tx_hash is None
    assert await chain.rpc.balance_wei(sender.address) == before
    assert (await sender.send(chain.values.token, pay_one(chain))).is_success


async def test_a_revert_in_a_block_is_final_and_has_its_reason(chain: Devnet) -> None:
    """F-76: two transfers of everything, of which the first leaves nothing for the second."""
    sender = chain.sender("stranger")
    everything = abi.transfer.encode(chain.account("payee").address, 1_000_000 * 10**6)
    async with chain.mining_paused():
        first = await sender.broadcast(chain.values.token, everything)
        second = await sender.broadcast(chain.values.token, everything)
    assert (await sender.resume(first)).is_success
    with pytest.raises(ContractRevertedError) as caught:
        await sender.resume(second)
    assert (caught.value.reason, caught.value.tx_hash) == (RevertReason.TOKEN_REFUSED, second)


async def test_a_revert_that_only_its_own_block_explains_is_explained(chain: Devnet) -> None:
    """And one whose bytes are not known any more is a revert all the same."""
    refused_at = await chain.rpc.block_number() + 2
    # NUMBER, PUSH2 refused_at, EQ, PUSH1 9, JUMPI, STOP
    code = b"\x43\x61" + refused_at.to_bytes(2, "big") + bytes.fromhex("1460095700")
    # JUMPDEST, PUSH4 ChannelNotFound, PUSH1 224, SHL, PUSH0, MSTORE, REVERT(0, 4)
    target = await deploy_code(
        chain.deployer, code + bytes.fromhex("5b631e07dd9460e01b5f5260045ffd")
    )
    sender = chain.sender("stranger")
    tx_hash = await sender.broadcast(target, b"")
    with pytest.raises(ContractRevertedError) as caught:
        await sender.resume(tx_hash)
    assert caught.value.reason is RevertReason.CHANNEL_NOT_FOUND
    with pytest.raises(ContractRevertedError) as later:
        await chain.sender("stranger").resume(tx_hash)
    assert (later.value.reason, later.value.tx_hash) == (RevertReason.UNKNOWN, tx_hash)


async def test_a_node_that_refuses_leaves_the_nonce_free(chain: Devnet) -> None:
    poor = TxManager(chain.rpc, chain.signer("nobody has paid me"))
    with pytest.raises((RpcRefusedError, ContractRevertedError)):
        await poor.send(chain.account("payee").address, b"", value_wei=1)
    await chain.fund(poor.address, ether=1)
    assert (await poor.send(chain.account("payee").address, b"", value_wei=1)).is_success


# -- nodes that fail (F-75, F-82)


async def test_an_answer_lost_after_the_broadcast_is_pending_not_failed(chain: Devnet) -> None:
    """F-75: the node took it, we never heard; it is found by its hash, and not sent anew."""
    async with flaky_sender(chain) as (node, sender):
        node.fail("swallow", method=SEND, times=1)
        receipt = await sender.send(chain.values.token, pay_one(chain))
        assert receipt.is_success
        assert await received(chain) == 1


async def test_a_broadcast_that_never_arrived_is_repeated_byte_for_byte(chain: Devnet) -> None:
    async with flaky_sender(chain) as (node, sender):
        node.fail("drop", method=SEND, times=2)
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        assert (await sender.resume(tx_hash)).tx_hash == tx_hash
        assert node.seen.count(SEND) == 3
        assert await received(chain) == 1


async def test_a_lost_transaction_does_not_hold_up_the_next_for_ever(chain: Devnet) -> None:
    """F-77: the later nonce waits for the earlier, which is sent again with it."""
    async with flaky_sender(chain) as (node, sender):
        node.fail("drop", method=SEND, times=1)
        first = await sender.broadcast(chain.values.token, pay_one(chain))
        second = await sender.broadcast(chain.values.token, pay_one(chain))
        assert (await sender.resume(second)).is_success
        assert (await sender.resume(first)).is_success
        assert await received(chain) == 2


async def test_the_same_bytes_again_are_no_error(chain: Devnet) -> None:
    """F-82: "already known" is success."""
    async with flaky_sender(chain) as (node, sender), chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        waiting = asyncio.create_task(sender.resume(tx_hash))
        await asyncio.sleep(0.2)
        assert node.seen.count(SEND) > 1
        await chain.mine()
        assert (await waiting).is_success


async def test_a_receipt_nobody_gives_is_pending(chain: Devnet) -> None:
    """F-75: absence is never failure, and a node that is away is not absence."""
    async with flaky_sender(chain, _IMPATIENT) as (node, sender):
        node.fail("error", method=RECEIPT)
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        with pytest.raises(TransactionPendingError) as caught:
            await sender.resume(tx_hash)
        assert isinstance(caught.value, SettlementPendingError)
        assert caught.value.status == 503
        assert not caught.value.offers_challenge  # nobody is invited to pay again
        node.fail("none")
        assert (await sender.resume(tx_hash)).is_success
        assert await received(chain) == 1


async def test_nothing_is_broadcast_when_the_node_is_away_before(chain: Devnet) -> None:
    async with flaky_sender(chain) as (node, sender):
        node.fail("hang", method="eth_call")
        with pytest.raises(ChainUnavailableError, match="did not answer"):
            await sender.send(chain.values.token, pay_one(chain))
        assert SEND not in node.seen
        assert await received(chain) == 0


async def test_a_broadcast_the_node_refuses_leaves_the_nonce_free(chain: Devnet) -> None:
    async with flaky_sender(chain) as (node, sender):
        node.fail("full", method=SEND, times=1)
        with pytest.raises(RpcRefusedError, match="full"):
            await sender.send(chain.values.token, pay_one(chain))
        assert (await sender.send(chain.values.token, pay_one(chain))).is_success
        assert await received(chain) == 1


async def test_a_bid_the_node_finds_too_low_is_raised_on_the_same_nonce(chain: Devnet) -> None:
    """F-77: an eighth more in both fields, at once; whichever is mined wins."""
    async with flaky_sender(chain) as (node, sender):
        node.fail("refuse", method=SEND, times=1)
        receipt = await sender.send(chain.values.token, pay_one(chain))
        mined = await chain.rpc.read("eth_getTransactionByHash", "0x" + receipt.tx_hash.hex())
        assert node.seen.count(SEND) == 2
        assert int(mined["nonce"], 16) == 0
        assert await received(chain) == 1


async def test_a_repeat_that_is_refused_does_not_end_the_wait(chain: Devnet) -> None:
    """F-82: only a receipt says what became of it."""
    async with flaky_sender(chain) as (node, sender), chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        node.fail("refuse", method=SEND)
        waiting = asyncio.create_task(sender.resume(tx_hash))
        await asyncio.sleep(0.2)
        assert node.seen.count(SEND) > 1
        await chain.mine()
        assert (await waiting).is_success


async def test_a_revert_is_final_also_when_nobody_can_say_why(chain: Devnet) -> None:
    async with flaky_sender(chain) as (node, sender):
        everything = abi.transfer.encode(chain.account("payee").address, 1_000_000 * 10**6)
        async with chain.mining_paused():
            await sender.broadcast(chain.values.token, everything)
            second = await sender.broadcast(chain.values.token, everything)
        node.fail("drop", method="eth_call")
        with pytest.raises(ContractRevertedError) as caught:
            await sender.resume(second)
        assert (caught.value.reason, caught.value.tx_hash) == (RevertReason.UNKNOWN, second)


async def test_a_chain_without_a_base_fee_is_refused() -> None:
    """EIP-1559 is what fees are chosen by."""
    async with (
        await Anvil.start(await find_anvil(), ["--hardfork", "berlin"]) as anvil,
        await Rpc.connect(anvil.url) as rpc,
    ):
        first = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
        with pytest.raises(ConfigError, match="no base fee"):
            await TxManager(rpc, KeySigner(bytes.fromhex(first))).send(Address(bytes(20)), b"")
