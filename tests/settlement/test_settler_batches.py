"""Many channels in one transaction, by the payee or a relayer; a bad one harms no other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from channel.types import ChannelId
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import (
    ChannelQuarantinedError,
    ContractRevertedError,
    InvalidSignatureRevertError,
)
from settlement.escrow.payout_calls import RelayedCalls
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.settle.jobs import CloseResult
from settlement.settle.quarantine import Quarantine
from settlement.settle.settler import EscrowSettler, SettlerLimits
from settlement.tx.fees import GasBudget
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxManager
from settlement.tx.state import TxStatus
from settlement.types import RevertReason
from tests.settlement.channels import DEPOSIT, Channels, set_paused
from tests.settlement.flaky_node import flaky_node
from tests.settlement.senders import are_pooled
from tests.settlement.wallets import deploy_wallet
from tests.waiting import until

Ids = list[ChannelId]


@pytest.fixture
def settler(chain: Devnet, reader: EscrowReader) -> EscrowSettler:
    return EscrowSettler(reader, chain.sender("payee"), budget=GasBudget())


@pytest.fixture
def relayed(chain: Devnet, reader: EscrowReader) -> EscrowSettler:
    """The payee only signs; a stranger pays the gas."""
    calls = RelayedCalls(reader, chain.signer("payee"))
    return EscrowSettler(reader, chain.sender("stranger"), calls=calls)


@pytest.fixture
async def journal(chain: Devnet, tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    opened = await SqliteJournal.open(
        tmp_path / "ledger.db",
        chain_id=chain.values.chain_id,
        account=chain.account("payee").address,
    )
    await opened.take_lease("this test", ttl_s=600)
    yield opened
    await opened.close()


async def sent_by(chain: Devnet, name: str) -> int:
    address = "0x" + chain.account(name).address.hex()
    return int(await chain.rpc.read("eth_getTransactionCount", address, "latest"), 16)


async def open_many(channels: Channels, count: int) -> Ids:
    return [await channels.open() for _ in range(count)]


@asynccontextmanager
async def gas_capped(chain: Devnet, gas_max: int) -> AsyncIterator[Rpc]:
    """A node that estimates and takes so much gas for a transaction, and says so as geth does."""
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        node.gas_max = gas_max
        yield rpc


async def close_all(
    settler: EscrowSettler, channels: Channels, ids: Ids, *, amount: int = 400
) -> list[object]:
    """Request all closes concurrently; return what each request got."""
    closes = [
        settler.close_channel(channels.key(one), amount, channels.sign(one, amount)) for one in ids
    ]
    return list(await asyncio.gather(*closes, return_exceptions=True))


@pytest.mark.parametrize("by", ["payee", "stranger"])
async def test_closes_requested_together_share_a_transaction(
    chain: Devnet,
    settler: EscrowSettler,
    relayed: EscrowSettler,
    channels: Channels,
    by: str,
) -> None:
    """RELAY-07: also where the payee signs and another account pays the gas."""
    ids = await open_many(channels, 5)
    before, sent = await chain.token_balance(channels.terms.payee), await sent_by(chain, by)
    results = await close_all(settler if by == "payee" else relayed, channels, ids)
    assert {result.fact.settled for result in results} == {400}  # type: ignore[attr-defined]
    assert all(result.fact.is_finalized for result in results)  # type: ignore[attr-defined]
    assert len({result.tx_hash for result in results}) == 1  # type: ignore[attr-defined]
    assert await chain.token_balance(channels.terms.payee) == before + 5 * 400
    assert await sent_by(chain, by) == sent + 1


@pytest.mark.parametrize("later", [0, 1, 2])
async def test_a_batch_has_the_earliest_deadline_of_its_channels(
    chain: Devnet,
    reader: EscrowReader,
    channels: Channels,
    journal: SqliteJournal,
    *,
    later: int,
) -> None:
    """O-97, F-78: wherever the most urgent one stands; one without a deadline takes none away."""
    sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
    settler = EscrowSettler(reader, sender, budget=GasBudget())
    first = (await chain.rpc.block()).timestamp + 5_000
    deadlines = [first, first + 1, 0]
    deadlines = deadlines[later:] + deadlines[:later]
    closes = [
        settler.close_channel(channels.key(one), 40, channels.sign(one, 40), deadline=deadline)
        for one, deadline in zip(await open_many(channels, 3), deadlines, strict=True)
    ]
    results = await asyncio.gather(*closes)
    assert len({result.tx_hash for result in results}) == 1
    (sent,) = await journal.transactions_from(0)
    assert sent.intent.deadline == first


@pytest.mark.parametrize("by", ["payee", "stranger"])
async def test_settles_requested_together_share_a_transaction(
    chain: Devnet,
    settler: EscrowSettler,
    relayed: EscrowSettler,
    channels: Channels,
    by: str,
) -> None:
    """RELAY-07."""
    using = settler if by == "payee" else relayed
    ids, sent = await open_many(channels, 4), await sent_by(chain, by)
    results = await asyncio.gather(
        *[using.settle_channel(channels.key(one), 70, channels.sign(one, 70)) for one in ids]
    )
    assert [(result.fact.settled, result.fact.is_finalized) for result in results] == 4 * [
        (70, False)
    ]
    assert await sent_by(chain, by) == sent + 1


async def test_one_channel_alone_is_relayed_too(
    chain: Devnet, relayed: EscrowSettler, channels: Channels
) -> None:
    """RELAY-01: settle, then close, with the payee's signature in the call and no gas of it."""
    channel_id = await channels.open()
    key, gas = channels.key(channel_id), await chain.rpc.balance_wei(channels.terms.payee)
    settled = await relayed.settle_channel(key, 10, channels.sign(channel_id, 10))
    closed = await relayed.close_channel(key, 25, channels.sign(channel_id, 25))
    assert (settled.fact.settled, closed.fact.settled) == (10, 25)
    assert relayed.payee == channels.terms.payee
    assert await chain.rpc.balance_wei(channels.terms.payee) == gas


async def test_what_would_be_refused_is_left_out_before_it_costs_gas(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """F-79: a voucher of another signer among five, and one beyond its deposit."""
    ids, sent = await open_many(channels, 5), await sent_by(chain, "payee")
    forged, greedy, *good = ids
    results = await asyncio.gather(
        settler.close_channel(channels.key(forged), 5, channels.sign(forged, 5, by="stranger")),
        settler.close_channel(
            channels.key(greedy), DEPOSIT + 1, channels.sign(greedy, DEPOSIT + 1)
        ),
        close_all(settler, channels, good),
        return_exceptions=True,
    )
    assert isinstance(results[0], InvalidSignatureRevertError)
    assert isinstance(results[1], ContractRevertedError)
    assert results[1].reason is RevertReason.AMOUNT_EXCEEDS_DEPOSIT
    assert isinstance(results[2], list)
    for result in results[2]:
        assert isinstance(result, CloseResult)
        assert result.fact.is_finalized
    assert await sent_by(chain, "payee") == sent + 1


async def test_what_is_refused_only_in_its_block_harms_no_other(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """F-79: a close that comes first in the block; the batch skips it, and the winner is found."""
    ids = await open_many(channels, 3)
    first = abi.close.encode(ids[0], 9, channels.sign(ids[0], 9))
    async with chain.mining_paused():
        winner = await chain.sender("payee").broadcast(chain.values.escrow, first)
        closing = asyncio.create_task(close_all(settler, channels, ids))
        await until(lambda: are_pooled(chain, 2))
        assert not closing.done()
    lost, *others = await closing
    assert (lost.tx_hash, lost.fact.settled) == (winner, 9)  # type: ignore[attr-defined]
    assert {result.fact.settled for result in others} == {400}  # type: ignore[attr-defined]


async def test_what_was_closed_before_is_no_part_of_the_batch(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """F-40, F-80: to find who closed it takes longer than to send the others."""
    ids = await open_many(channels, 3)
    first = await settler.close_channel(channels.key(ids[0]), 9, channels.sign(ids[0], 9))
    await chain.mine(200)
    before, *others = await close_all(settler, channels, ids)
    assert isinstance(before, CloseResult)
    assert (before.tx_hash, before.fact.settled) == (first.tx_hash, 9)
    assert {result.fact.settled for result in others} == {400}  # type: ignore[attr-defined]


async def test_what_needs_too_much_gas_together_goes_apart(
    chain: Devnet, channels: Channels
) -> None:
    """F-20, F-66, F-79: wallets that agree, and burn all they may, in one lot with honest payers.

    A node refuses so much gas for one transaction; smaller ones are mined, and no close waits.
    """
    wallet = await deploy_wallet(chain.sender("stranger"), "agrees late")
    wasteful = [await channels.open(signer=wallet) for _ in range(6)]
    honest = await open_many(channels, 2)
    async with gas_capped(chain, 2_000_000) as rpc:
        capped = EscrowReader(rpc, chain.values.escrow)
        settler = EscrowSettler(capped, TxManager(rpc, chain.signer("payee")))
        results = await close_all(settler, channels, [*wasteful, *honest])
    for result in results:
        assert isinstance(result, CloseResult)
        assert result.fact.is_finalized
    assert 1 < await sent_by(chain, "payee") < len(results)


async def test_a_batch_is_no_larger_than_allowed(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    settler = EscrowSettler(reader, chain.sender("payee"), limits=SettlerLimits(batch_max=2))
    ids, sent = await open_many(channels, 5), await sent_by(chain, "payee")
    await close_all(settler, channels, ids)
    assert await sent_by(chain, "payee") == sent + 3


async def test_a_paused_token_is_waited_for(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """F-87: in quarantine with its reason, tried again later, and out of it once paid."""
    now = [1_000.0]
    quarantine = Quarantine(journal, clock=lambda: now[0], wall=lambda: now[0])
    sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
    settler = EscrowSettler(reader, sender, quarantine=quarantine)
    ids = await open_many(channels, 2)
    await set_paused(chain, on=True)
    for attempt in await close_all(settler, channels, ids):
        assert isinstance(attempt, ChannelQuarantinedError)
        assert attempt.reason is RevertReason.TOKEN_REFUSED
    kept = await journal.find_quarantined(channels.key(ids[0]))
    assert kept is not None
    assert (kept.reason, kept.tries, kept.retry_at) == ("TOKEN_REFUSED", 1, 1_015)
    await set_paused(chain, on=False)
    early = await close_all(settler, channels, ids)
    assert all(isinstance(attempt, ChannelQuarantinedError) for attempt in early)
    now[0] += 15
    results = await close_all(settler, channels, ids)
    assert all(result.fact.is_finalized for result in results)  # type: ignore[attr-defined]
    assert await journal.quarantined() == []


@pytest.mark.parametrize("beside", [0, 2])
async def test_a_wallet_that_agrees_in_simulations_alone_costs_little_and_harms_no_other(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal, beside: int
) -> None:
    """F-20, F-78, F-79: each try that a block refuses is gas: so the next is later, and later."""
    now = [1_000.0]
    quarantine = Quarantine(journal, clock=lambda: now[0], wall=lambda: now[0])
    sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
    settler = EscrowSettler(reader, sender, quarantine=quarantine)
    wallet = await deploy_wallet(chain.sender("stranger"), "agrees in simulations")
    fickle, key = await channels.open(signer=wallet), bytes(65)
    asked = settler.close_channel(channels.key(fickle), 400, key, deadline=2**40)
    honest = close_all(settler, channels, await open_many(channels, beside))
    refused, results = await asyncio.gather(asked, honest, return_exceptions=True)
    assert isinstance(refused, ChannelQuarantinedError | InvalidSignatureRevertError)
    assert isinstance(results, list)
    assert all(isinstance(result, CloseResult) for result in results)
    for _ in range(80):  # twenty minutes of its grace period, asked for every fifteen seconds
        now[0] += 15
        with pytest.raises((ChannelQuarantinedError, ContractRevertedError)):
            await settler.close_channel(channels.key(fickle), 400, key, deadline=2**40)
    assert await sent_by(chain, "payee") <= 8
    (kept,) = await journal.quarantined()
    assert kept.key == channels.key(fickle)


async def test_quarantine_outlives_the_process(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """A voucher the escrow will never take is a plain no, now and after a restart."""
    (channel_id,) = await open_many(channels, 1)
    forged = channels.sign(channel_id, 5, by="stranger")
    for _ in range(2):
        quarantine = Quarantine(journal, clock=lambda: 1_000.0, wall=lambda: 1_000.0)
        sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
        settler = EscrowSettler(reader, sender, quarantine=quarantine)
        await settler.recover()
        with pytest.raises(InvalidSignatureRevertError):
            await settler.close_channel(channels.key(channel_id), 5, forged)
    (entry,) = await journal.quarantined()
    assert (entry.reason, entry.tries) == ("INVALID_SIGNATURE", 1)


async def test_an_earlier_process_sent_it_and_this_one_sees_it_through(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """F-75, F-80: what is journalled is joined after a restart, not sent again."""
    ids = await open_many(channels, 3)
    async with chain.mining_paused():
        first = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
        dying = EscrowSettler(reader, first)
        closing = asyncio.create_task(close_all(dying, channels, ids))
        await until(lambda: _has_sent(journal))
        await dying.aclose()
        await closing
        second = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
        living = EscrowSettler(reader, second)
        await living.recover()
        again = asyncio.create_task(close_all(living, channels, ids))
        await asyncio.sleep(0.1)
    results = await again
    assert all(result.fact.settled == 400 for result in results)  # type: ignore[attr-defined]
    assert await sent_by(chain, "payee") == 1


async def _has_sent(journal: SqliteJournal) -> bool:
    return any(tx.status is TxStatus.SENT for tx in await journal.open_transactions())


@pytest.mark.parametrize(
    "behaviour", ["reverts", "says another word", "burns all gas", "agrees in simulations"]
)
async def test_a_contract_that_took_a_voucher_back_is_remembered_for_good(
    chain: Devnet, channels: Channels, journal: SqliteJournal, behaviour: str
) -> None:
    """O-01: its signer and who paid by it, also when it agrees again and is paid out."""
    reader = EscrowReader(chain.rpc, chain.values.escrow)
    sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
    wallet = await deploy_wallet(chain.sender("stranger"), behaviour)
    agreeing = await deploy_wallet(chain.sender("stranger"), "agrees")
    channel_id = await channels.open(signer=wallet)
    settler = EscrowSettler(reader, sender, quarantine=Quarantine(journal))
    with pytest.raises((InvalidSignatureRevertError, ChannelQuarantinedError)):
        await settler.settle_channel(channels.key(channel_id), 5, b"its word")
    assert await journal.distrusted() == {wallet, channels.terms.payer}
    code = "0x" + (await chain.rpc.code(agreeing)).hex()
    await chain.rpc.command("anvil_setCode", "0x" + wallet.hex(), code)
    settler = EscrowSettler(reader, sender, quarantine=Quarantine(journal))
    await settler.settle_channel(channels.key(channel_id), 5, b"its word")
    assert await journal.distrusted() == {wallet, channels.terms.payer}
