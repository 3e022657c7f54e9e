"""A settler that is full, is stopped, or finds that it must stop: nothing is paid twice or lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.errors import InvariantError, SettlementPendingError
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import (
    InvalidSignatureRevertError,
    LeaseLostError,
    TransactionPendingError,
)
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.settle.jobs import CloseResult
from settlement.settle.quarantine import Quarantine
from settlement.settle.settler import EscrowSettler, SettlerLimits
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxManager
from settlement.tx.state import Included, Purpose, TxStatus
from tests.settlement.channels import Channels
from tests.settlement.flaky_node import flaky_node
from tests.settlement.senders import (
    FailingJournal,
    are_pooled,
    insist,
    pay_one,
    received,
    until_sent,
)
from tests.settlement.test_settler_batches import Ids, close_all, open_many, sent_by
from tests.settlement.tx.journal.test_interface import run_sql
from tests.settlement.wallets import deploy_wallet
from tests.waiting import put_ahead, until

_ONE_AT_A_TIME = SettlerLimits(batch_max=1, batches_max=1)


@pytest.fixture
async def journal(chain: Devnet, tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    opened = await open_one(chain, tmp_path)
    await opened.take_lease("this test", ttl_s=600)
    yield opened
    await opened.close()


async def open_one(chain: Devnet, folder: Path) -> SqliteJournal:
    account = chain.account("payee").address
    chain_id = chain.values.chain_id
    return await SqliteJournal.open(folder / "ledger.db", chain_id=chain_id, account=account)


def settler_of(
    chain: Devnet,
    reader: EscrowReader,
    journal: SettlerJournal | FailingJournal,
    limits: SettlerLimits | None = None,
) -> EscrowSettler:
    sender = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
    return EscrowSettler(reader, sender, limits=limits)


async def has_sent(journal: SettlerJournal, count: int = 1) -> bool:
    sent = [tx for tx in await journal.open_transactions() if tx.status is TxStatus.SENT]
    return len(sent) == count


async def require_paid(settler: EscrowSettler, channels: Channels, ids: Ids) -> None:
    """Ask until each channel is closed, and see what it was closed with."""
    for one in ids:
        key, voucher = channels.key(one), channels.sign(one, 400)
        result = await insist(lambda: settler.close_channel(key, 400, voucher))  # noqa: B023
        assert (result.fact.settled, result.fact.is_finalized) == (400, True)


async def test_what_finds_no_room_is_asked_for_again(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """O-98, F-75: who waits for it hears that it is not sent; it is sent once there is room."""
    limits = SettlerLimits(batch_max=1, batches_max=1, wait_s=0.1)
    settler = settler_of(chain, reader, journal, limits)
    ids = await open_many(channels, 2)
    async with chain.mining_paused():
        first = channels.key(ids[0]), 400, channels.sign(ids[0], 400)
        await until_sent(lambda: settler.close_channel(*first))
        (unsent,) = await close_all(settler, channels, ids[1:])
        assert isinstance(unsent, SettlementPendingError)
        assert not isinstance(unsent, TransactionPendingError)
        assert await are_pooled(chain, 1)
    await require_paid(settler, channels, ids)
    assert await sent_by(chain, "payee") == 2


async def test_a_job_that_waits_for_room_learns_that_its_settler_stops(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """O-98, F-80: immediately; the next process sends what was not sent, and nothing twice."""
    ids = await open_many(channels, 3)
    async with chain.mining_paused():
        stopping = settler_of(chain, reader, journal, _ONE_AT_A_TIME)
        closing = asyncio.create_task(close_all(stopping, channels, ids))
        await until(lambda: has_sent(journal))
        await stopping.aclose()
        async with asyncio.timeout(5):
            results = await closing
        assert {type(each) for each in results} == {SettlementPendingError}
        assert await are_pooled(chain, 1)
        settler = settler_of(chain, reader, journal)
        await settler.recover()
    await require_paid(settler, channels, ids)
    assert await received(chain) == 3 * 400
    assert len(await journal.transactions_from(0)) == await sent_by(chain, "payee")


async def test_a_settler_that_stops_before_it_signs_leaves_nothing_behind(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """O-98, F-80: its node hangs in the simulation; the caller gets an error, and asks the next."""
    ids = await open_many(channels, 1)
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        sender = TxManager(rpc, chain.signer("payee"), journal=journal)
        stopping = EscrowSettler(EscrowReader(rpc, chain.values.escrow), sender)
        node.fail("hang", method="eth_estimateGas")
        closing = asyncio.create_task(close_all(stopping, channels, ids))
        await until(lambda: "eth_estimateGas" in node.seen)
        await stopping.aclose()
        async with asyncio.timeout(5):
            (result,) = await closing
        assert isinstance(result, SettlementPendingError)
        stopping.tasks.require_sound()
    assert await journal.open_transactions() == []
    await require_paid(settler_of(chain, reader, journal), channels, ids)
    assert await sent_by(chain, "payee") == 1


async def test_a_restart_takes_over_its_own_settles_and_closes_alone(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """O-98, F-40, F-75: what else the key has sent stays what it is: deposits, a close by hand."""
    ours, by_hand = await open_many(channels, 2)
    async with chain.mining_paused():
        first = TxManager(chain.rpc, chain.signer("payee"), journal=journal)
        call = abi.close.encode(by_hand, 400, channels.sign(by_hand, 400))
        await first.broadcast(chain.values.token, pay_one(chain))
        closed = await first.broadcast(chain.values.escrow, call)
        dying = EscrowSettler(reader, first)
        closing = asyncio.create_task(close_all(dying, channels, [ours]))
        await until(lambda: has_sent(journal, 3))
        await dying.aclose()
        await closing
        settler = settler_of(chain, reader, journal)
        await settler.recover()
        again = asyncio.create_task(close_all(settler, channels, [ours]))
    (result,) = await again
    assert isinstance(result, CloseResult)
    (found,) = await close_all(settler, channels, [by_hand])
    assert isinstance(found, CloseResult)
    assert found.tx_hash == closed
    kept = await journal.transactions_from(0)
    assert [tx.intent.purpose for tx in kept] == [Purpose.OTHER, Purpose.OTHER, Purpose.CLOSE]
    assert await sent_by(chain, "payee") == 3
    settler.tasks.require_sound()


async def test_a_close_is_answered_once_the_database_is_back(
    chain: Devnet,
    reader: EscrowReader,
    channels: Channels,
    journal: SqliteJournal,
    *,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-98, F-75: it is mined; an error would have its caller ask for it again."""
    settler = settler_of(chain, reader, FailingJournal(journal, before=[Included]))
    ids = await open_many(channels, 1)
    closing = asyncio.create_task(close_all(settler, channels, ids))
    await until(lambda: "reading transaction" in caplog.text)
    assert not closing.done()
    put_ahead(2, monkeypatch)
    (result,) = await closing
    assert isinstance(result, CloseResult)
    assert result.fact.settled == 400
    settler.tasks.require_sound()
    assert await sent_by(chain, "payee") == 1


async def test_a_journal_that_contradicts_itself_stops_the_settler(
    chain: Devnet,
    reader: EscrowReader,
    channels: Channels,
    journal: SqliteJournal,
    *,
    tmp_path: Path,
) -> None:
    """O-98, F-40: it goes on with no guess; once the row is repaired, the same close is found."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    settler = settler_of(chain, reader, journal)
    settler.tasks.require_sound()
    ids = await open_many(channels, 1)
    async with chain.mining_paused():
        closing = asyncio.create_task(close_all(settler, channels, ids))
        await until(lambda: has_sent(journal))
        await run_sql(url, "UPDATE chain_transaction SET purpose = 77")
    (error,) = await closing
    assert isinstance(error, InvariantError)
    await settler.tasks.drain()
    with pytest.raises(InvariantError, match="journal"):
        settler.tasks.require_sound()
    await run_sql(url, "UPDATE chain_transaction SET purpose = 2")
    later = settler_of(chain, reader, journal)
    await later.recover()
    await require_paid(later, channels, ids)
    assert await sent_by(chain, "payee") == 1


@pytest.mark.parametrize("is_lost", [False, True])
async def test_what_its_block_refuses_is_written_down_or_the_settler_stops(
    chain: Devnet,
    reader: EscrowReader,
    channels: Channels,
    journal: SqliteJournal,
    *,
    tmp_path: Path,
    is_lost: bool,
) -> None:
    """O-98, F-79, F-110: beside an honest payer's close, which is paid and answered in any case."""
    settler = EscrowSettler(reader, chain.sender("payee"), quarantine=Quarantine(journal))
    wallet = await deploy_wallet(chain.sender("stranger"), "agrees")
    other = await open_one(chain, tmp_path)
    ids = [await channels.open(signer=wallet), await channels.open()]
    async with chain.mining_paused():
        closing = asyncio.create_task(close_all(settler, channels, ids))
        await until(lambda: are_pooled(chain, 1))
        await chain.rpc.command("anvil_setCode", "0x" + wallet.hex(), "0x5f5ffd")  # reverts
        if is_lost:
            await journal.release_lease()
            assert await other.take_lease("another", ttl_s=600) is not None
    refused, paid = await closing
    assert isinstance(paid, CloseResult)
    assert (paid.fact.settled, paid.fact.is_finalized) == (400, True)
    assert await received(chain) == 400
    await settler.tasks.drain()
    kept = await other.find_quarantined(channels.key(ids[0]))
    if is_lost:
        assert isinstance(refused, LeaseLostError)
        assert kept is None
        with pytest.raises(LeaseLostError):
            settler.tasks.require_sound()
    else:
        assert isinstance(refused, InvalidSignatureRevertError)
        assert refused.tx_hash == paid.tx_hash
        assert kept is not None
        assert kept.reason == "INVALID_SIGNATURE"
        settler.tasks.require_sound()
    await other.close()
