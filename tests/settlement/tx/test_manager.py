"""One key's transactions: simulated first, sent once, pending until a receipt says otherwise."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from channel.errors import (
    ChainUnavailableError,
    LedgerUnavailableError,
    SettlementPendingError,
)
from settlement.dev.devnet import Devnet
from settlement.errors import (
    ContractRevertedError,
    LeaseLostError,
    NonceTakenError,
    RpcRefusedError,
    TransactionPendingError,
    TransactionReplacedError,
)
from settlement.node.rpc import Rpc, RpcLimits
from settlement.tx.journal.memory import MemoryJournal
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.state import Abandoned, Included, Sent, Signed, TxStatus
from tests.settlement.channels import send_blindly
from tests.settlement.flaky_node import Fault, flaky_node
from tests.settlement.senders import (
    RECEIPT,
    SEND,
    FailingJournal,
    Interrupted,
    flaky_sender,
    insist,
    pay_one,
    received,
)
from tests.settlement.tx.test_monitor import open_journal
from tests.waiting import PATIENCE_S, until

_QUICK = TxLimits(mined_within_s=PATIENCE_S, poll_max_s=0.02, resend_after_s=0.05)
_IMPATIENT = TxLimits(mined_within_s=0.1, poll_max_s=0.02, resend_after_s=0.03)
_BUSY = {"code": -32005, "message": "limit exceeded"}


@pytest.fixture
async def journal(chain: Devnet, tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    async with open_journal(chain, tmp_path) as opened:
        yield opened


def interrupted(
    chain: Devnet,
    journal: SqliteJournal,
    meanwhile: Callable[[], Awaitable[object]],
    *,
    times: int = 1,
) -> TxManager:
    """A sender whose first signatures, so many, take that long."""
    signer = Interrupted(chain.account("stranger").private_key, meanwhile, at=range(1, times + 1))
    return TxManager(chain.rpc, signer, journal=journal, limits=_QUICK)


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
    poor = TxManager(chain.rpc, chain.signer("an account without ether"))
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


async def test_a_transaction_without_a_receipt_is_pending(chain: Devnet) -> None:
    """F-75: absence is never failure, and a node that is away is not absence."""
    async with flaky_sender(chain, _IMPATIENT) as (node, sender):
        node.fail("error", method=RECEIPT)
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        with pytest.raises(TransactionPendingError) as caught:
            await sender.resume(tx_hash)
        assert isinstance(caught.value, SettlementPendingError)
        assert caught.value.status == 503
        assert not caught.value.offers_challenge  # the payer is not invited to pay again
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
    """F-75, F-80: the caller gets its hash; after an error it would send a second one."""
    journal = FailingJournal(MemoryJournal(), before=[Sent])
    sender = TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
    async with chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
    assert (await sender.resume(tx_hash)).tx_hash == tx_hash
    assert await received(chain) == 1


async def test_a_signature_whose_answer_was_lost_holds_nothing_up(chain: Devnet) -> None:
    """F-77, F-80: its nonce is taken, but unrecorded; the next one must not wait for ever."""
    journal = FailingJournal(MemoryJournal(), before=[Abandoned], after=[Signed])
    sender = TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
    with pytest.raises(LedgerUnavailableError):
        await sender.send(chain.values.token, pay_one(chain))
    receipt = await sender.send(chain.values.token, pay_one(chain))
    assert receipt.is_success
    assert await received(chain) == 2


async def test_a_look_that_the_journal_does_not_take_is_made_again(
    chain: Devnet, journal: SqliteJournal
) -> None:
    """O-98, F-75: no caller waits for it; its outcome is on disk once the database is back."""
    failing = FailingJournal(journal, before=[Included, Included])
    sender = TxManager(chain.rpc, chain.signer("stranger"), journal=failing, limits=_QUICK)
    tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
    running = asyncio.create_task(sender.run())
    await until(lambda: _has_status(journal, TxStatus.FINAL))
    running.cancel()
    assert await journal.find(tx_hash) == (await journal.transactions_from(0))[0]
    assert await received(chain) == 1


# -- others who have the key, or the lease


async def test_a_lease_lost_while_it_is_signed_keeps_it_from_going_out(
    chain: Devnet, journal: SqliteJournal, tmp_path: Path
) -> None:
    """O-98, F-110: the new settler may have paid it; what it finds was never signed."""
    async with open_journal(chain, tmp_path) as other:

        async def lose() -> None:
            await journal.release_lease()
            assert await other.take_lease("another", ttl_s=600) is not None

        sender = interrupted(chain, journal, lose)
        with pytest.raises(LeaseLostError):
            await sender.send(chain.values.token, pay_one(chain))
        (left,) = await other.open_transactions()
        assert (left.status, left.nonce) == (TxStatus.INTENT, None)
        second = TxManager(chain.rpc, chain.signer("stranger"), journal=other, limits=_QUICK)
        assert await second.recover() == []
        assert (await second.send(chain.values.token, pay_one(chain))).is_success
    assert await received(chain) == 1


async def test_a_settler_whose_lease_is_lost_stops_looking(
    chain: Devnet, journal: SqliteJournal, tmp_path: Path
) -> None:
    """O-98, F-110: the other one completes its transactions; both together would raise bids."""
    sender = TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
    async with chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        running = asyncio.create_task(sender.run())
        await journal.release_lease()
        async with open_journal(chain, tmp_path) as other:
            await chain.mine()
            with pytest.raises(LeaseLostError):
                async with asyncio.timeout(PATIENCE_S):
                    await running
            second = TxManager(chain.rpc, chain.signer("stranger"), journal=other, limits=_QUICK)
            await second.recover()
            assert (await second.resume(tx_hash)).tx_hash == tx_hash
    assert await received(chain) == 1


@pytest.mark.parametrize("times", [1, 3])
async def test_a_nonce_used_elsewhere_while_it_is_signed_is_not_ours(
    chain: Devnet, journal: SqliteJournal, times: int
) -> None:
    """O-98, F-113: it is signed anew for the next one; after three the caller gets an error.

    After any error, no node has bytes of it that could be mined one day.
    """

    async def use_key() -> None:
        await send_blindly(chain, chain.values.token, b"\x00", by="stranger")

    sender = interrupted(chain, journal, use_key, times=times)
    if times == 1:
        assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    else:
        with pytest.raises(TransactionReplacedError):
            await sender.send(chain.values.token, pay_one(chain))
    of_journal = [(tx.nonce, tx.status) for tx in await journal.transactions_from(0)]
    assert of_journal[:times] == [(nonce, TxStatus.REPLACED) for nonce in range(times)]
    assert await received(chain) == len(of_journal) - times == (1 if times == 1 else 0)
    assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    assert await received(chain) == len(of_journal) - times + 1


@pytest.mark.parametrize("times", [1, 3])
async def test_a_nonce_that_the_journal_gave_meanwhile_is_not_given_again(
    chain: Devnet, journal: SqliteJournal, times: int
) -> None:
    """O-98, F-74: of two payments under one nonce one would never be made."""
    other = TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)

    async def give_nonce() -> None:
        await other.send(chain.values.token, pay_one(chain))

    sender = interrupted(chain, journal, give_nonce, times=times)
    if times == 1:
        assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    else:
        with pytest.raises(NonceTakenError):
            await sender.send(chain.values.token, pay_one(chain))
    paid = 2 if times == 1 else 3
    assert [tx.nonce for tx in await journal.transactions_from(0)] == list(range(paid))
    assert [tx for tx in await journal.open_transactions() if tx.is_unmined] == []
    assert await received(chain) == paid


# -- bids and refusals of a node that is alone


async def test_bytes_refused_after_a_raise_stay_pending(
    chain: Devnet, journal: SqliteJournal
) -> None:
    """O-98, F-80: the node that found the first bid too low may have it; the nonce is not free."""
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:

        async def refuse_next() -> None:
            node.fail(next(faults), method=SEND, times=1)

        faults: Iterator[Fault] = iter(("refuse", "full"))
        key = chain.account("stranger").private_key
        signer = Interrupted(key, refuse_next, at=(1, 2))
        sender = TxManager(rpc, signer, journal=journal, limits=_QUICK)
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        (tx,) = await journal.open_transactions()
        assert (tx.nonce, tx.status, len(tx.versions)) == (0, TxStatus.SIGNED, 2)
        assert tx.versions[0].tx_hash == tx_hash
        assert (await sender.resume(tx_hash)).is_success
        assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    assert await received(chain) == 2


@pytest.mark.parametrize("budget_wei", [10**14, None])
async def test_a_node_that_wants_more_than_a_transaction_is_worth_is_waited_for(
    chain: Devnet, journal: SqliteJournal, budget_wei: int | None
) -> None:
    """O-98, F-78: three raises run together, and the bid stays within a quarter of its budget."""
    await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(10**8))
    await chain.mine()
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        sender = TxManager(rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
        node.fail("refuse", method=SEND)
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain), budget_wei=budget_wei)
        (tx,) = await journal.open_transactions()
        bids = [each.fee.max_fee_wei for each in tx.versions]
        if budget_wei is None:
            assert len(bids) == 4
            assert all(8 * more >= 9 * less for less, more in pairwise(bids))
        else:
            assert len(bids) == 1
            assert 4 * bids[0] * tx.gas <= budget_wei
        node.fail("none")
        receipt = await sender.resume(tx_hash)
        assert budget_wei is None or receipt.cost_wei <= budget_wei
    assert await received(chain) == 1


async def test_a_nonce_said_to_be_used_by_a_node_that_then_is_busy_stays_ours(
    chain: Devnet, journal: SqliteJournal
) -> None:
    """O-98, F-74, F-82: its word alone gives nothing up; the same bytes are mined later."""
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        sender = TxManager(rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
        node.fail("gap", method=SEND, times=1)
        node.errors[RECEIPT] = _BUSY
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        (tx,) = await journal.open_transactions()
        assert (tx.status, tx.nonce) == (TxStatus.SIGNED, 0)
        node.errors.clear()
        assert (await sender.resume(tx_hash)).tx_hash == tx_hash
    assert await received(chain) == 1


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_success_whose_receipt_no_node_shows_is_pending(
    chain: Devnet, journal: SqliteJournal, *, is_known: bool
) -> None:
    """O-98, F-75: after a start, of a transaction of the journal and of one that it has not."""
    first = TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=_QUICK)
    sent = await first.send(chain.values.token, pay_one(chain))
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        kept = journal if is_known else MemoryJournal()
        later = TxManager(rpc, chain.signer("stranger"), journal=kept, limits=_IMPATIENT)
        node.errors[RECEIPT] = _BUSY
        with pytest.raises(TransactionPendingError):
            await later.resume(sent.tx_hash)
        node.errors.clear()
        assert await insist(lambda: later.resume(sent.tx_hash)) == sent
        assert SEND not in node.seen
    assert await received(chain) == 1


async def _has_status(journal: SqliteJournal, status: TxStatus) -> bool:
    return any(tx.status is status for tx in await journal.transactions_from(0))
