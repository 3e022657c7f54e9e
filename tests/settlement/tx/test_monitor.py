"""Transactions that outlive their process, their fee, their block and their place in the pool."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from channel.types import TxHash
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import (
    ContractRevertedError,
    FeeAboveBudgetError,
    LeaseLostError,
    SignerError,
    TransactionPendingError,
    TransactionReplacedError,
)
from settlement.tx.encoding import UnsignedTx
from settlement.tx.fees import FeePolicy
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.signer import KeySigner
from settlement.tx.state import TxStatus
from tests.settlement.channels import send_blindly
from tests.settlement.senders import SEND, are_pooled, flaky_sender, insist, pay_one, received
from tests.waiting import PATIENCE_S, until

_LIMITS = TxLimits(
    mined_within_s=PATIENCE_S,
    poll_max_s=0.02,
    resend_after_s=0.1,
    bump_after_s=60,
    overtaken_after_s=0.1,
)
_GWEI = 10**9


@pytest.fixture
async def journal(chain: Devnet, tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    async with open_journal(chain, tmp_path) as opened:
        yield opened


@asynccontextmanager
async def open_journal(chain: Devnet, folder: Path) -> AsyncIterator[SqliteJournal]:
    journal = await SqliteJournal.open(
        folder / "ledger.db",
        chain_id=chain.values.chain_id,
        account=chain.account("stranger").address,
    )
    await journal.take_lease("this test", ttl_s=600)
    yield journal
    await journal.close()


@pytest.fixture
def sender(chain: Devnet, journal: SqliteJournal) -> TxManager:
    return sender_of(chain, journal)


def sender_of(
    chain: Devnet, journal: SqliteJournal, *, limits: TxLimits = _LIMITS, **more: FeePolicy
) -> TxManager:
    return TxManager(chain.rpc, chain.signer("stranger"), journal=journal, limits=limits, **more)


async def base_fee(chain: Devnet, gwei: int, *, blocks: int = 1) -> None:
    for _ in range(blocks):
        await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(gwei * _GWEI))
        await chain.mine()


# -- across processes


async def test_the_next_process_sends_the_same_bytes(chain: Devnet, journal: SqliteJournal) -> None:
    """F-75: what was signed before the crash arrives after it, once."""
    async with chain.mining_paused():
        tx_hash = await sender_of(chain, journal).broadcast(chain.values.token, pay_one(chain))
        await chain.rpc.command("anvil_dropTransaction", "0x" + tx_hash.hex())
        later = sender_of(chain, journal)
        (taken,) = await later.recover()
        assert taken.newest.tx_hash == tx_hash
        waiting = asyncio.create_task(later.resume(tx_hash))
        await until(lambda: _has(chain, tx_hash))
    assert (await waiting).tx_hash == tx_hash
    assert await received(chain) == 1
    assert not [tx for tx in await journal.open_transactions() if tx.is_unmined]


async def test_what_was_only_wanted_is_decided_anew(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-80: no node has it, and the books may say something else by now."""
    receipt = await sender.send(chain.values.token, pay_one(chain))
    tx = await journal.find(receipt.tx_hash)
    assert tx is not None
    wanted = await journal.add(tx.intent, at=0)
    assert await sender_of(chain, journal).recover() == []
    assert wanted.tx_id not in [one.tx_id for one in await journal.open_transactions()]
    assert await received(chain) == 1


async def test_what_was_mined_meanwhile_is_found(chain: Devnet, journal: SqliteJournal) -> None:
    tx_hash = await sender_of(chain, journal).broadcast(chain.values.token, pay_one(chain))
    await until(lambda: _is_mined(chain, tx_hash))
    assert [tx.status for tx in await journal.open_transactions()] == [TxStatus.SENT]
    later = sender_of(chain, journal)
    await later.recover()
    tending = asyncio.create_task(later.run())
    await until(lambda: _is_done(journal))
    tending.cancel()
    assert (await later.resume(tx_hash)).is_success


async def test_a_revert_is_remembered_with_its_reason(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-76, SETTLE-03: a later caller gets the same answer."""
    everything = abi.transfer.encode(chain.account("payee").address, 1_000_000 * 10**6)
    async with chain.mining_paused():
        await sender.broadcast(chain.values.token, everything)
        second = await sender.broadcast(chain.values.token, everything)
    with pytest.raises(ContractRevertedError) as first:
        await sender.resume(second)
    with pytest.raises(ContractRevertedError) as later:
        await sender_of(chain, journal).resume(second)
    assert first.value.reason is later.value.reason
    kept = await journal.find(second)
    assert kept is not None
    assert kept.reason == first.value.reason.name


async def test_a_refusal_leaves_no_nonce_and_its_reason(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    too_much = abi.transfer.encode(chain.account("payee").address, 10**30)
    with pytest.raises(ContractRevertedError):
        await sender.send(chain.values.token, too_much)
    assert await journal.next_nonce() == 0
    assert await journal.open_transactions() == []


async def test_a_settler_that_lost_its_lease_signs_nothing(
    chain: Devnet, journal: SqliteJournal, sender: TxManager, tmp_path: Path
) -> None:
    """F-110: the write itself checks the fence, not the process."""
    await journal.release_lease()
    async with open_journal(chain, tmp_path):
        with pytest.raises(LeaseLostError):
            await sender.send(chain.values.token, pay_one(chain))
    assert await received(chain) == 0


# -- what it costs (F-77, F-78)


async def test_a_bid_the_base_fee_overtook_is_raised_and_mined(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-77: base fee times twenty for five blocks; mined in it, on the same nonce."""
    await base_fee(chain, 1)
    async with chain.mining_paused():
        first = await sender.broadcast(chain.values.token, pay_one(chain), budget_wei=10**18)
        waiting = asyncio.create_task(sender.resume(first))
        await base_fee(chain, 20, blocks=5)
        await until(lambda: _is_bumped(journal, first))
        await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(20 * _GWEI))
    receipt = await waiting
    assert receipt.tx_hash != first
    tx = await journal.find(first)
    assert tx is not None
    assert [tx.nonce, tx.status] == [0, TxStatus.FINAL]
    old, new = tx.versions[0].fee, tx.versions[-1].fee
    assert 8 * new.max_fee_wei >= 9 * old.max_fee_wei
    assert 8 * new.tip_wei >= 9 * old.tip_wei
    assert await received(chain) == 1


async def test_a_bid_is_not_raised_above_its_budget_and_waits(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-78: the same spike, and not worth it: mined when it is over, at the first price."""
    await base_fee(chain, 1)
    async with chain.mining_paused():
        first = await sender.broadcast(chain.values.token, pay_one(chain), budget_wei=10**15)
        waiting = asyncio.create_task(sender.resume(first))
        await base_fee(chain, 20, blocks=5)
        await asyncio.sleep(0.2)
        tx = await journal.find(first)
        assert tx is not None
        assert all(4 * v.fee.max_fee_wei * tx.gas <= 10**15 for v in tx.versions)
        assert not waiting.done()
        await base_fee(chain, 1)
    assert (await waiting).gas_price_wei <= 4 * _GWEI


async def test_as_a_deadline_nears_the_whole_budget_is_bid(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    await base_fee(chain, 1)
    head = await chain.rpc.block()
    async with chain.mining_paused():
        first = await sender.broadcast(
            chain.values.token,
            pay_one(chain),
            budget_wei=10**16,
            deadline=head.timestamp + 900,
        )
        waiting = asyncio.create_task(sender.resume(first))
        await base_fee(chain, 60)
        await asyncio.sleep(0.1)
        assert not await _is_bumped(journal, first)
        await chain.rpc.command("evm_setNextBlockTimestamp", head.timestamp + 700)
        await base_fee(chain, 60)
        await until(lambda: _is_bumped(journal, first))
        await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(60 * _GWEI))
    receipt = await waiting
    assert receipt.gas_used * receipt.gas_price_wei <= 10**16


async def test_what_would_cost_more_than_it_is_worth_is_not_sent(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-78: nor is a nonce given away for it."""
    await base_fee(chain, 50)
    with pytest.raises(FeeAboveBudgetError):
        await sender.send(chain.values.token, pay_one(chain), budget_wei=10**14)
    assert await journal.next_nonce() == 0
    assert await received(chain) == 0


async def test_a_cheap_one_does_not_hold_up_a_dear_one(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-77: nonces are mined in order; the later one's budget pays for the earlier one too."""
    await base_fee(chain, 1)
    async with chain.mining_paused():
        cheap = await sender.broadcast(chain.values.token, pay_one(chain), budget_wei=10**15)
        await base_fee(chain, 20)
        dear = await sender.broadcast(chain.values.token, pay_one(chain), budget_wei=10**18)
        waiting = asyncio.gather(sender.resume(cheap), sender.resume(dear))
        await base_fee(chain, 20)
        await until(lambda: _is_bumped(journal, cheap))
        await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(20 * _GWEI))
    receipts = await waiting
    assert all(receipt.gas_price_wei > 20 * _GWEI for receipt in receipts)


async def test_a_tip_that_no_miner_takes_is_raised_in_time(
    chain: Devnet, journal: SqliteJournal
) -> None:
    """F-77: it could be mined and is not: after a while it bids more."""
    limits = TxLimits(poll_max_s=0.02, resend_after_s=0.1, bump_after_s=0)
    patient = sender_of(chain, journal, limits=limits)
    async with chain.mining_paused():
        first = await patient.broadcast(chain.values.token, pay_one(chain))
        waiting = asyncio.create_task(patient.resume(first))
        await until(lambda: _is_bumped(journal, first))
    await waiting
    assert await received(chain) == 1


async def test_a_tip_is_raised_though_the_clock_was_set_back(
    chain: Devnet, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-111: signed by a clock that was a day ahead, it would wait a day for its raise."""
    sender = sender_of(chain, journal)
    async with chain.mining_paused():
        with monkeypatch.context() as patched:
            tomorrow = time.time() + 86_400
            patched.setattr(time, "time", lambda: tomorrow)
            first = await sender.broadcast(chain.values.token, pay_one(chain))
        waiting = asyncio.create_task(sender.resume(first))
        await until(lambda: _is_bumped(journal, first))
        await asyncio.sleep(0.2)
    await waiting
    tx = await journal.find(first)
    assert tx is not None
    assert len(tx.versions) == 2


class AwaySigner(KeySigner):
    """A signing service that stops answering after its first signature."""

    signed = 0

    async def sign_transaction(self, tx: UnsignedTx) -> bytes:
        self.signed += 1
        if self.signed > 1:
            raise SignerError("The signer does not answer (ReadTimeout).")
        return await super().sign_transaction(tx)


async def test_a_signer_that_is_away_keeps_no_bytes_from_being_sent_again(
    chain: Devnet, journal: SqliteJournal
) -> None:
    """F-77: a bid that needs a raise and gets none is still as good as it was."""
    signer = AwaySigner(chain.account("stranger").private_key)
    limits = TxLimits(poll_max_s=0.02, resend_after_s=0.1, bump_after_s=0)
    sender = TxManager(chain.rpc, signer, journal=journal, limits=limits)
    async with chain.mining_paused():
        first = await sender.broadcast(chain.values.token, pay_one(chain))
        waiting = asyncio.create_task(sender.resume(first))
        await until(lambda: signer.signed > 1)
        await chain.rpc.command("anvil_dropTransaction", "0x" + first.hex())
        await until(lambda: _has(chain, first))
    assert (await waiting).tx_hash == first


# -- places in the pool and in the chain


async def test_a_dropped_transaction_is_sent_again(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-77: a node forgets; the bytes do not change."""
    async with chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        waiting = asyncio.create_task(sender.resume(tx_hash))
        for _ in range(2):
            await chain.rpc.command("anvil_dropTransaction", "0x" + tx_hash.hex())
            await until(lambda: _has(chain, tx_hash))
    assert (await waiting).tx_hash == tx_hash
    tx = await journal.find(tx_hash)
    assert tx is not None
    assert len(tx.versions) == 1


async def test_a_nonce_that_was_used_elsewhere_is_noticed(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """F-113: the key was used elsewhere; ours is not mined, and says so."""
    async with chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        await chain.rpc.command("anvil_dropTransaction", "0x" + tx_hash.hex())
        foreign = asyncio.create_task(
            send_blindly(chain, chain.values.token, b"\x00", by="stranger")
        )
        await until(lambda: are_pooled(chain, 1))
        await chain.mine()
        await foreign
    with pytest.raises(TransactionReplacedError):
        await sender.resume(tx_hash)
    assert await journal.next_nonce() == 1
    assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    assert await received(chain) == 1


async def test_a_nonce_used_elsewhere_before_is_not_given(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    await send_blindly(chain, chain.values.token, b"\x00", by="stranger")
    assert (await sender.send(chain.values.token, pay_one(chain))).is_success
    assert await journal.next_nonce() == 2


async def test_what_a_reorg_takes_back_is_sent_again(chain: Devnet, journal: SqliteJournal) -> None:
    """F-70: mined, not deep enough, gone, and mined again from the same bytes."""
    limits = TxLimits(poll_max_s=0.02, resend_after_s=0.05, confirmations=3)
    sender = sender_of(chain, journal, limits=limits)
    tx_hash = (await sender.send(chain.values.token, pay_one(chain))).tx_hash
    assert [tx.status for tx in await journal.open_transactions()] == [TxStatus.MINED]
    await chain.rpc.command("anvil_reorg", 1, [])
    await chain.rpc.command("anvil_dropTransaction", "0x" + tx_hash.hex())
    tending = asyncio.create_task(sender.run())
    await until(lambda: _is_mined(chain, tx_hash))
    await chain.mine(3)
    await until(lambda: _is_done(journal))
    tending.cancel()
    assert await received(chain) == 1


async def test_a_deep_reorg_leaves_no_gap_in_the_nonces(
    chain: Devnet, journal: SqliteJournal, sender: TxManager
) -> None:
    """What was final is taken up again, or every later nonce would wait for ever."""
    await chain.mine(2)
    first = (await sender.send(chain.values.token, pay_one(chain))).tx_hash
    tending = asyncio.create_task(sender.run())
    await until(lambda: _is_done(journal))
    tending.cancel()
    await chain.rpc.command("anvil_reorg", 1, [])
    await chain.rpc.command("anvil_dropTransaction", "0x" + first.hex())
    second = await sender.broadcast(chain.values.token, pay_one(chain))
    assert (await sender.resume(second)).is_success
    assert (await sender.resume(first)).is_success
    assert await received(chain) == 2


async def test_our_own_timeout_is_no_failure(chain: Devnet, journal: SqliteJournal) -> None:
    """F-75: pending says 503 and offers no new payment."""
    hasty = sender_of(chain, journal, limits=TxLimits(mined_within_s=0.05, poll_max_s=0.01))
    async with chain.mining_paused():
        tx_hash = await hasty.broadcast(chain.values.token, pay_one(chain))
        with pytest.raises(TransactionPendingError) as caught:
            await hasty.resume(tx_hash)
    assert (caught.value.status, caught.value.offers_challenge) == (503, False)
    assert (await insist(lambda: hasty.resume(tx_hash))).is_success


# -- nodes that lose and refuse (F-75, F-82)


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
        await until(lambda: node.seen.count(SEND) > 1)
        assert not waiting.done()
        await chain.mine()
        assert (await waiting).is_success


async def test_a_bid_the_node_finds_too_low_is_raised_on_the_same_nonce(chain: Devnet) -> None:
    """F-77: an eighth more in both fields together; the version that is mined wins."""
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
        await until(lambda: node.seen.count(SEND) > 1)
        assert not waiting.done()
        await chain.mine()
        assert (await waiting).is_success


async def _has(chain: Devnet, tx_hash: TxHash) -> bool:
    return await chain.rpc.read("eth_getTransactionByHash", "0x" + tx_hash.hex()) is not None


async def _is_mined(chain: Devnet, tx_hash: TxHash) -> bool:
    return await chain.rpc.receipt(tx_hash) is not None


async def _is_done(journal: SqliteJournal) -> bool:
    return not await journal.open_transactions()


async def _is_bumped(journal: SqliteJournal, tx_hash: TxHash) -> bool:
    tx = await journal.find(tx_hash)
    return tx is not None and len(tx.versions) > 1 and tx.status is TxStatus.SENT
