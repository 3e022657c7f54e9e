"""A refusal whose aim is met already is no fault of the channel (O-33, AMB-10)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest

from channel.errors import ChainUnavailableError, SettlementPendingError
from channel.types import ChannelId, TxHash
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import ContractRevertedError, contract_reverted
from settlement.escrow.payout_calls import AUTHORIZATION_LIFE_S, RelayedCalls
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.settle.jobs import CloseResult, Job
from settlement.settle.outcomes import Outcomes
from settlement.settle.quarantine import Quarantine
from settlement.settle.settler import EscrowSettler
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.state import Purpose
from settlement.types import BatchEntry, RevertReason
from tests.faults.proxy import lying_node
from tests.settlement.channels import Channels
from tests.settlement.senders import are_pooled, copy_from_pool
from tests.waiting import until

Ids = list[ChannelId]
AMOUNT = 400


@pytest.fixture
async def journal(chain: Devnet, tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    opened = await SqliteJournal.open(
        tmp_path / "journal.db",
        chain_id=chain.values.chain_id,
        account=chain.account("payee").address,
    )
    await opened.take_lease("this test", ttl_s=600)
    yield opened
    await opened.close()


@pytest.fixture
def relayed(chain: Devnet, reader: EscrowReader, journal: SqliteJournal) -> EscrowSettler:
    """The payee signs, a stranger pays the gas, and refusals lead to quarantine."""
    calls = RelayedCalls(reader, chain.signer("payee"))
    quarantine = Quarantine(journal)
    return EscrowSettler(reader, chain.sender("stranger"), calls=calls, quarantine=quarantine)


async def overtaken(chain: Devnet, asking: Sequence[Awaitable[Any]]) -> list[Any]:
    """Ask for all of it, while a stranger copies what is sent and has it mined first."""
    async with chain.mining_paused():
        running = [asyncio.ensure_future(one) for one in asking]
        await until(lambda: are_pooled(chain, 1))
        await copy_from_pool(chain)
    return await asyncio.gather(*running)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("purpose", [Purpose.SETTLE, Purpose.CLOSE])
async def test_a_relayed_payout_that_a_copier_had_mined_first_is_done(
    chain: Devnet,
    relayed: EscrowSettler,
    channels: Channels,
    journal: SqliteJournal,
    *,
    purpose: Purpose,
    count: int,
) -> None:
    """O-33: alone and in a batch, it reverts with NonceAlreadyUsed, and nothing is refused."""
    ids = [await channels.open() for _ in range(count)]
    ask = relayed.settle_channel if purpose is Purpose.SETTLE else relayed.close_channel
    results = await overtaken(
        chain, [ask(channels.key(one), AMOUNT, channels.sign(one, AMOUNT)) for one in ids]
    )
    assert [result.fact.settled for result in results] == [AMOUNT] * count
    assert all(result.fact.is_finalized for result in results) == (purpose is Purpose.CLOSE)
    assert await journal.quarantined() == []
    if purpose is Purpose.SETTLE:  # the next one is not held up
        again = await relayed.settle_channel(
            channels.key(ids[0]), AMOUNT + 1, channels.sign(ids[0], AMOUNT + 1)
        )
        assert again.tx_hash is not None


async def answered(
    outcomes: Outcomes, channels: Channels, channel_id: ChannelId, purpose: Purpose, reason: str
) -> Any:
    entry = BatchEntry(channel_id, AMOUNT, channels.sign(channel_id, AMOUNT))
    job = Job(purpose, entry, value=0, deadline=0)
    error = contract_reverted(RevertReason[reason], tx_hash=TxHash(b"\x02" * 32))
    await outcomes.refuse(job, error)
    return await job.answer


REASONS = sorted(RevertReason.__members__)


@pytest.mark.parametrize("how", ["settled", "settled above", "closed"])
async def test_a_settle_that_is_on_chain_is_done_after_any_error(
    chain: Devnet,
    reader: EscrowReader,
    channels: Channels,
    journal: SqliteJournal,
    how: str,
) -> None:
    """O-33: the chain is asked, and not the revert's name."""
    channel_id = await channels.open()
    amount = AMOUNT + 1 if how == "settled above" else AMOUNT
    function = abi.close if how == "closed" else abi.settle
    call = function.encode(channel_id, amount, channels.sign(channel_id, amount))
    await chain.sender("payee").send(chain.values.escrow, call)
    outcomes = Outcomes(reader, Quarantine(journal))
    for reason in REASONS:
        result = await answered(outcomes, channels, channel_id, Purpose.SETTLE, reason)
        assert result.fact.settled == amount
        if how == "closed":
            result = await answered(outcomes, channels, channel_id, Purpose.CLOSE, reason)
            assert isinstance(result, CloseResult)
            assert result.fact.is_finalized
    assert await journal.quarantined() == []


@pytest.mark.parametrize("reason", ["NONCE_ALREADY_USED", "AUTHORIZATION_EXPIRED"])
@pytest.mark.parametrize("purpose", [Purpose.SETTLE, Purpose.CLOSE])
async def test_what_was_wrong_with_the_authorization_is_no_fault_of_the_channel(
    reader: EscrowReader,
    channels: Channels,
    journal: SqliteJournal,
    *,
    purpose: Purpose,
    reason: str,
) -> None:
    """O-33: not done, and asked again with an authorization of its own; no quarantine."""
    channel_id = await channels.open()
    outcomes = Outcomes(reader, Quarantine(journal))
    with pytest.raises(SettlementPendingError):
        await answered(outcomes, channels, channel_id, purpose, reason)
    assert await journal.quarantined() == []


async def test_an_authorization_that_expired_in_the_pool_is_signed_anew(
    chain: Devnet, relayed: EscrowSettler, channels: Channels, journal: SqliteJournal
) -> None:
    """O-33: mined a second too late; the channel is settled at the next try."""
    channel_id = await channels.open()
    key, signature = channels.key(channel_id), channels.sign(channel_id, AMOUNT)
    async with chain.mining_paused():
        asking = asyncio.ensure_future(relayed.settle_channel(key, AMOUNT, signature))
        await until(lambda: are_pooled(chain, 1))
        head = await chain.rpc.block()
        late = head.timestamp + AUTHORIZATION_LIFE_S + 60
        await chain.rpc.command("evm_setNextBlockTimestamp", late)
    with pytest.raises(SettlementPendingError):
        await asking
    assert await journal.quarantined() == []
    assert (await relayed.settle_channel(key, AMOUNT, signature)).fact.settled == AMOUNT


async def test_what_ended_for_less_is_said_and_not_kept(
    chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
) -> None:
    """O-33: a channel that ended with less than the settle asks for can never give it."""
    channel_id = await channels.open()
    call = abi.close.encode(channel_id, 9, channels.sign(channel_id, 9))
    await chain.sender("payee").send(chain.values.escrow, call)
    outcomes = Outcomes(reader, Quarantine(journal))
    with pytest.raises(ContractRevertedError) as refused:
        await answered(outcomes, channels, channel_id, Purpose.SETTLE, "NONCE_ALREADY_USED")
    assert refused.value.reason is RevertReason.CHANNEL_FINALIZED
    assert await journal.quarantined() == []


async def test_a_close_whose_log_the_node_hides_is_unknown_and_not_kept(
    chain: Devnet, channels: Channels, journal: SqliteJournal
) -> None:
    """F-72: neither done nor refused; the node is asked again, and the channel is not set aside."""
    channel_id = await channels.open()
    call = abi.close.encode(channel_id, AMOUNT, channels.sign(channel_id, AMOUNT))
    await chain.sender("payee").send(chain.values.escrow, call)
    async with lying_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        outcomes = Outcomes(EscrowReader(rpc, chain.values.escrow), Quarantine(journal))
        node.has_no_logs = True
        with pytest.raises(ChainUnavailableError, match="does not have the close's log"):
            await answered(outcomes, channels, channel_id, Purpose.CLOSE, "CHANNEL_FINALIZED")
        assert await journal.quarantined() == []
        node.heal()
        result = await answered(outcomes, channels, channel_id, Purpose.CLOSE, "CHANNEL_FINALIZED")
        assert result.fact.is_finalized


async def test_a_close_whose_channel_the_node_hides_is_unknown_and_not_kept(
    chain: Devnet, channels: Channels, journal: SqliteJournal
) -> None:
    """F-72: the node shows the close's log, and then no channel: another node may answer."""
    channel_id = await channels.open()
    call = abi.close.encode(channel_id, AMOUNT, channels.sign(channel_id, AMOUNT))
    await chain.sender("payee").send(chain.values.escrow, call)
    async with lying_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        outcomes = Outcomes(EscrowReader(rpc, chain.values.escrow), Quarantine(journal))

        def hide_from_now(_: object, logs: Any) -> Any:
            node.lies["eth_call"] = lambda _, shown: "0x" + "0" * (len(shown) - 2)
            return logs

        node.lies["eth_getLogs"] = hide_from_now
        with pytest.raises(ChainUnavailableError, match="does not show the channel"):
            await answered(outcomes, channels, channel_id, Purpose.CLOSE, "CHANNEL_FINALIZED")
        assert await journal.quarantined() == []
        node.heal()
        result = await answered(outcomes, channels, channel_id, Purpose.CLOSE, "CHANNEL_FINALIZED")
        assert result.fact.settled == AMOUNT


async def test_a_payout_whose_channel_the_node_hides_is_unknown_and_not_kept(
    chain: Devnet, channels: Channels, journal: SqliteJournal
) -> None:
    """F-72: mined, and neither done nor refused; nothing counts as a failure of the channel."""
    channel_id = await channels.open()
    signature = channels.sign(channel_id, AMOUNT)
    call = abi.settle.encode(channel_id, AMOUNT, signature)
    receipt = await chain.sender("payee").send(chain.values.escrow, call)
    job = Job(Purpose.SETTLE, BatchEntry(channel_id, AMOUNT, signature), value=0, deadline=0)
    async with lying_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        outcomes = Outcomes(EscrowReader(rpc, chain.values.escrow), Quarantine(journal))
        words = 2 * 64  # where the array begins, and its length
        node.lies["eth_call"] = lambda _, shown: shown[: 2 + words].ljust(len(shown), "0")
        assert await outcomes.answer([job], receipt) == []
    with pytest.raises(ChainUnavailableError, match="does not show the channel"):
        await job.answer
    assert await journal.quarantined() == []
