"""The payee settles and closes; a repeat changes nothing, a refusal says why."""

import asyncio

import pytest

from channel.errors import ConfigError
from channel.types import Address, ChannelId, ChannelKey
from settlement import abi
from settlement.dev.devnet import Devnet, TokenChoice
from settlement.errors import (
    ContractRevertedError,
    TokenRefusedRevertError,
    TransactionPendingError,
)
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.settle.settler import EscrowSettler
from settlement.tx.fees import GasBudget
from settlement.tx.manager import TxLimits, TxManager
from settlement.types import RevertReason
from tests.settlement.channels import DEPOSIT, Channels, set_paused
from tests.settlement.senders import insist, until_sent

GWEI = 10**9
NO_CHANNEL = ChannelId(b"\x07" * 32)


@pytest.fixture
def settler(chain: Devnet, reader: EscrowReader) -> EscrowSettler:
    return EscrowSettler(reader, chain.sender("payee"))


async def transactions_of(chain: Devnet, name: str) -> int:
    address = "0x" + chain.account(name).address.hex()
    return int(await chain.rpc.read("eth_getTransactionCount", address, "latest"), 16)


# -- close (CLOSE-04, CLOSE-05)


async def test_a_close_pays_the_payee_and_refunds_the_payer(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    payer, payee = channels.terms.payer, channels.terms.payee
    before = [await chain.token_balance(who) for who in (payer, payee)]
    channel_id = await channels.open()
    result = await settler.close_channel(
        channels.key(channel_id), 400_000, channels.sign(channel_id, 400_000)
    )
    assert [await chain.token_balance(who) for who in (payer, payee)] == [
        before[0] - 400_000,
        before[1] + 400_000,
    ]
    assert result.fact.is_finalized
    assert (result.fact.settled, result.fact.deposit) == (400_000, DEPOSIT)
    assert 20_000 < result.gas_used < 120_000


async def test_a_close_at_nothing_needs_no_signature(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """CLOSE-07: the forfeit path refunds everything."""
    before = await chain.token_balance(channels.terms.payer)
    channel_id = await channels.open()
    result = await settler.close_channel(channels.key(channel_id), 0, b"")
    assert result.fact.is_finalized
    assert await chain.token_balance(channels.terms.payer) == before


async def test_a_repeated_close_returns_the_first(
    chain: Devnet, settler: EscrowSettler, channels: Channels, reader: EscrowReader
) -> None:
    """F-40: also at a new settler that does not know of the first, and some blocks later."""
    channel_id = await channels.open()
    key, signature = channels.key(channel_id), channels.sign(channel_id, 5)
    first = await settler.close_channel(key, 5, signature)
    await chain.mine(9)
    sent = await transactions_of(chain, "payee")
    again = await settler.close_channel(key, 5, signature)
    other = EscrowSettler(reader, chain.sender("payee"))
    later = await other.close_channel(key, 9, channels.sign(channel_id, 9))
    assert again.tx_hash == later.tx_hash == first.tx_hash
    assert again.gas_used == first.gas_used
    assert later.fact.settled == 5
    assert await transactions_of(chain, "payee") == sent


async def test_concurrent_closes_are_one_transaction(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """F-40."""
    channel_id = await channels.open()
    key, signature = channels.key(channel_id), channels.sign(channel_id, 5)
    sent = await transactions_of(chain, "payee")
    results = await asyncio.gather(*[settler.close_channel(key, 5, signature) for _ in range(8)])
    assert len({result.tx_hash for result in results}) == 1
    assert await transactions_of(chain, "payee") == sent + 1


async def test_a_close_goes_on_after_its_last_waiter_has_left(
    settler: EscrowSettler, channels: Channels, reader: EscrowReader
) -> None:
    """F-42: a client that leaves does not leave half a close behind."""
    channel_id = await channels.open()
    waiting = asyncio.create_task(
        settler.close_channel(channels.key(channel_id), 5, channels.sign(channel_id, 5))
    )
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await settler.tasks.drain()
    fact = await reader.read_channel(channel_id)
    assert fact is not None
    assert fact.is_finalized


async def test_a_close_that_is_not_mined_in_time_is_pending_then_found(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    """F-75: pending is neither success nor failure, and is never sent twice."""
    limits = TxLimits(mined_within_s=0.1, poll_max_s=0.02)
    sender = TxManager(chain.rpc, chain.signer("payee"), limits=limits)
    settler = EscrowSettler(reader, sender)
    channel_id = await channels.open()
    key, signature = channels.key(channel_id), channels.sign(channel_id, 5)
    async with chain.mining_paused():
        sent = await until_sent(lambda: settler.close_channel(key, 5, signature))
        with pytest.raises(TransactionPendingError) as again:
            await settler.close_channel(key, 5, signature)
        assert again.value.tx_hash == sent
    result = await insist(lambda: settler.close_channel(key, 5, signature))
    assert result.tx_hash == sent
    assert result.fact.settled == 5


# -- settle (SETTLE-02)


async def test_a_settle_pays_and_leaves_the_channel_open(
    settler: EscrowSettler, channels: Channels
) -> None:
    channel_id = await channels.open()
    key = channels.key(channel_id)
    first = await settler.settle_channel(key, 10, channels.sign(channel_id, 10))
    second = await settler.settle_channel(key, 25, channels.sign(channel_id, 25))
    assert (first.fact.settled, second.fact.settled) == (10, 25)
    assert not second.fact.is_finalized
    assert second.tx_hash is not None


async def test_a_settle_of_what_is_settled_changes_nothing(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """F-80: no gas is spent on it."""
    channel_id = await channels.open()
    key = channels.key(channel_id)
    await settler.settle_channel(key, 10, channels.sign(channel_id, 10))
    sent = await transactions_of(chain, "payee")
    result = await settler.settle_channel(key, 10, channels.sign(channel_id, 10))
    assert result.tx_hash is None
    assert result.fact.settled == 10
    assert await transactions_of(chain, "payee") == sent


async def test_a_lone_close_is_priced_by_the_gas_it_uses(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    """F-77, F-78: its limit is eight times that, and must not make a good price too high."""
    settler = EscrowSettler(reader, chain.sender("payee"), budget=GasBudget())
    channel_id = await channels.open()
    async with chain.mining_paused():
        await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(15 * GWEI))
        await chain.mine()
    closed = await settler.close_channel(channels.key(channel_id), 5, channels.sign(channel_id, 5))
    receipt = await chain.rpc.receipt(closed.tx_hash)
    assert receipt is not None
    assert receipt.cost_wei < 10**16 // 4


async def test_a_close_under_way_bids_for_the_deadline_its_payer_sets(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    """F-64, F-77: it begins without a deadline; then gas rises, and the payer requests a close."""
    limits = TxLimits(mined_within_s=0.3, poll_max_s=0.02)
    sender = TxManager(chain.rpc, chain.signer("payee"), limits=limits)
    settler = EscrowSettler(reader, sender, budget=GasBudget())
    channel_id = await channels.open()
    key, signature = channels.key(channel_id), channels.sign(channel_id, 5)
    async with chain.mining_paused():
        await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(10 * GWEI))
        await chain.mine()
        await until_sent(lambda: settler.close_channel(key, 5, signature))
        await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(40 * GWEI))
        await chain.mine()  # a quarter of the budget is no bid for this one
    with pytest.raises(TransactionPendingError):
        await settler.close_channel(key, 5, signature)
    deadline = (await chain.rpc.block()).timestamp + 200
    closed = await insist(
        lambda: settler.close_channel(key, 5, signature, value=5, deadline=deadline)
    )
    assert closed.fact.is_finalized
    assert await transactions_of(chain, "payee") == 1


# -- refusals (ERR-02, SETTLE-03)


async def test_a_key_that_is_not_the_payees_is_refused(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    """F-81: by the simulation, before any gas is spent."""
    imposter = EscrowSettler(reader, chain.sender("stranger"))
    channel_id = await channels.open()
    with pytest.raises(ContractRevertedError) as caught:
        await imposter.close_channel(channels.key(channel_id), 5, channels.sign(channel_id, 5))
    assert caught.value.reason is RevertReason.NOT_PAYEE
    assert (caught.value.status, caught.value.problem_type) == (409, "session/transaction-reverted")


async def test_a_channel_of_another_escrow_is_not_touched(
    settler: EscrowSettler, channels: Channels
) -> None:
    key = channels.key(NO_CHANNEL)
    elsewhere = ChannelKey(key.chain_id, Address(b"\x09" * 20), NO_CHANNEL)
    other_chain = ChannelKey(1, key.escrow, NO_CHANNEL)
    for foreign in (elsewhere, other_chain):
        with pytest.raises(ConfigError, match="is of escrow"):
            await settler.close_channel(foreign, 0, b"")
        with pytest.raises(ConfigError, match="is of escrow"):
            await settler.settle_channel(foreign, 0, b"")


# -- whole lives, with our dollar and with Circle's


@pytest.mark.parametrize("token", ["dusd", "usdc"])
async def test_a_channel_lives_and_not_one_base_unit_is_lost(token: TokenChoice) -> None:
    """CONTRACT-01 to 04 through the code that serves: open, settle, top up, settle, close."""
    async with Devnet.start(token=token) as chain:
        channels = Channels(chain, PayerAccount(chain.sender("payer")))
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        settler = EscrowSettler(reader, chain.sender("payee"))
        parties = (channels.terms.payer, channels.terms.payee, chain.values.escrow)
        before = [await chain.token_balance(who) for who in parties]
        channel_id = await channels.open(1_000)
        key = channels.key(channel_id)
        await settler.settle_channel(key, 300, channels.sign(channel_id, 300))
        await channels.top_up(channel_id, 500)
        await settler.settle_channel(key, 1_200, channels.sign(channel_id, 1_200))
        result = await settler.close_channel(key, 1_350, channels.sign(channel_id, 1_350))
        assert (result.fact.deposit, result.fact.settled) == (1_500, 1_350)
        after = [await chain.token_balance(who) for who in parties]
        assert [b - a for a, b in zip(before, after, strict=True)] == [-1_350, 1_350, 0]


@pytest.mark.parametrize("token", ["dusd", "usdc"])
async def test_a_payer_the_token_has_blacklisted_does_not_stop_the_payee(
    token: TokenChoice,
) -> None:
    """F-86: the refund is held, the payee is paid, the channel ends."""
    async with Devnet.start(token=token) as chain:
        channels = Channels(chain, PayerAccount(chain.sender("payer")))
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        settler = EscrowSettler(reader, chain.sender("payee"))
        payee = channels.terms.payee
        before = await chain.token_balance(payee)
        channel_id = await channels.open(1_000)
        blacklist = abi.Function("blacklist(address)").encode(channels.terms.payer)
        await chain.deployer.send(chain.values.token, blacklist)
        result = await settler.close_channel(
            channels.key(channel_id), 400, channels.sign(channel_id, 400)
        )
        assert result.fact.is_finalized
        assert await chain.token_balance(payee) == before + 400
        assert await chain.token_balance(chain.values.escrow) == 600


@pytest.mark.parametrize("token", ["dusd", "usdc"])
async def test_a_token_that_refuses_says_so_in_words_or_not(token: TokenChoice) -> None:
    """F-87, ERR-02: a pause is the token's refusal, reported before any gas is spent."""
    async with Devnet.start(token=token) as chain:
        channels = Channels(chain, PayerAccount(chain.sender("payer")))
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        settler = EscrowSettler(reader, chain.sender("payee"))
        channel_id = await channels.open(1_000)
        await set_paused(chain, on=True)
        with pytest.raises(TokenRefusedRevertError) as caught:
            await settler.settle_channel(
                channels.key(channel_id), 400, channels.sign(channel_id, 400)
            )
        assert (caught.value.status, caught.value.tx_hash) == (402, None)
        assert caught.value.text in ("", "Pausable: paused")
