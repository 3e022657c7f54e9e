"""One key's transactions: simulated first, sent once, pending until a receipt says otherwise."""

import asyncio

import pytest

from channel.errors import (
    ChainUnavailableError,
    LedgerUnavailableError,
    SettlementPendingError,
)
from settlement.devnet import Devnet
from settlement.errors import (
    ContractRevertedError,
    RpcRefusedError,
    TransactionPendingError,
)
from settlement.journal.memory import MemoryJournal
from settlement.rpc import Rpc, RpcLimits
from settlement.tx_manager import TxLimits, TxManager
from settlement.tx_state import Abandoned, Sent, Signed
from tests.settlement.flaky_node import Fault, flaky_node
from tests.settlement.senders import (
    RECEIPT,
    SEND,
    FailingJournal,
    flaky_sender,
    insist,
    pay_one,
    received,
)
from tests.waiting import PATIENCE_S

_QUICK = TxLimits(mined_within_s=PATIENCE_S, poll_max_s=0.02, resend_after_s=0.05)
_IMPATIENT = TxLimits(mined_within_s=0.1, poll_max_s=0.02, resend_after_s=0.03)


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


# -- refusals


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


async def test_an_answer_lost_by_one_node_and_a_used_nonce_at_the_next_is_not_sent_anew(
    chain: Devnet,
) -> None:
    """F-75, F-82: the nonce that the second node says is used, our own bytes have used."""
    async with (
        flaky_node(chain.values.rpc_url) as first,
        await Rpc.connect([first.url, chain.values.rpc_url]) as rpc,
    ):
        first.fail("swallow", method=SEND, times=1)
        sender = TxManager(rpc, chain.signer("stranger"), limits=_QUICK)
        assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    assert await received(chain) == 1


@pytest.mark.parametrize("second", ["full", "drop", "none"])
async def test_what_every_node_refuses_holds_up_nothing(chain: Devnet, second: Fault) -> None:
    """F-74, F-77: too long, say, or above what a transaction may use: none will ever take it.

    One that does not answer may have it; then the nonce stays, and the bytes are sent again.
    """
    async with (
        flaky_node(chain.values.rpc_url) as one,
        flaky_node(chain.values.rpc_url) as other,
        await Rpc.connect([one.url, other.url], limits=RpcLimits(read_attempts_max=1)) as rpc,
    ):
        sender = TxManager(rpc, chain.signer("stranger"), limits=_QUICK)
        one.fail("full", method=SEND)
        other.fail(second, method=SEND)
        if second == "full":
            with pytest.raises(RpcRefusedError):
                await sender.broadcast(chain.values.token, pay_one(chain))
        else:
            await sender.broadcast(chain.values.token, pay_one(chain))
        one.fail("none")
        other.fail("none")
        assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    assert await received(chain) == (1 if second == "full" else 2)


async def test_a_nonce_that_only_a_node_says_is_used_is_not_given_up(chain: Devnet) -> None:
    """F-74: some say so of one that is too high as well; a gap would hold up all that follow."""
    async with flaky_sender(chain, _QUICK) as (node, sender):
        node.fail("gap", method=SEND, times=1)
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        assert (await sender.resume(tx_hash)).tx_hash == tx_hash
    assert await received(chain) == 1


async def test_a_broadcast_that_never_arrived_is_repeated_byte_for_byte(chain: Devnet) -> None:
    async with flaky_sender(chain) as (node, sender):
        node.fail("drop", method=SEND, times=2)
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        assert (await sender.resume(tx_hash)).tx_hash == tx_hash
        assert node.seen.count(SEND) == 3
        assert await received(chain) == 1


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
        assert (await insist(lambda: sender.resume(tx_hash))).is_success
        assert await received(chain) == 1


async def test_nothing_is_broadcast_when_the_node_is_away_before(chain: Devnet) -> None:
    async with flaky_sender(chain, node_s=1.0) as (node, sender):
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


async def test_a_node_that_runs_what_it_is_sent_says_no_like_any_other(chain: Devnet) -> None:
    """F-80: as some rollups do: the nonce is free again, and nothing goes out later after all."""
    async with flaky_sender(chain) as (node, sender):
        node.fail("reverts", method=SEND, times=1)
        with pytest.raises(RpcRefusedError):
            await sender.broadcast(chain.values.token, pay_one(chain))
        assert await sender.recover() == []
        assert (await sender.send(chain.values.token, pay_one(chain))).is_success
        assert await received(chain) == 1


# -- journals that fail


async def test_what_was_broadcast_and_not_noted_is_not_broadcast_again(chain: Devnet) -> None:
    """F-75, F-80: whoever asked hears its hash; an error would have it send a second one."""
    journal = FailingJournal(MemoryJournal(), before=[Sent])
    sender = TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
    async with chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
    assert (await sender.resume(tx_hash)).tx_hash == tx_hash
    assert await received(chain) == 1


async def test_a_signature_whose_answer_was_lost_holds_nothing_up(chain: Devnet) -> None:
    """F-77, F-80: its nonce is given, and nobody knows; the next one must not wait for ever."""
    journal = FailingJournal(MemoryJournal(), before=[Abandoned], after=[Signed])
    sender = TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
    with pytest.raises(LedgerUnavailableError):
        await sender.send(chain.values.token, pay_one(chain))
    receipt = await sender.send(chain.values.token, pay_one(chain))
    assert receipt.is_success
    assert await received(chain) == 2
