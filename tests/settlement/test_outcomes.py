"""What came of a settle or a close: done, done before, or refused, and why."""

import asyncio

import pytest

from channel.errors import ChainUnavailableError, TransactionRevertedError
from channel.types import ChannelId
from settlement import abi
from settlement.devnet import Devnet
from settlement.errors import (
    AmountExceedsDepositRevertError,
    ChannelFinalizedRevertError,
    ChannelNotFoundRevertError,
    ContractRevertedError,
    InvalidSignatureRevertError,
)
from settlement.escrow import EscrowReader, ReaderLimits
from settlement.payer import PayerAccount
from settlement.rpc import Rpc
from settlement.settler import EscrowSettler
from settlement.tx_manager import TxManager
from tests.settlement.channels import DEPOSIT, Channels
from tests.settlement.flaky_node import flaky_node
from tests.settlement.senders import are_pooled
from tests.waiting import until

NOBODY = ChannelId(b"\x07" * 32)


@pytest.fixture
def settler(chain: Devnet, reader: EscrowReader) -> EscrowSettler:
    return EscrowSettler(reader, chain.sender("payee"))


async def transactions_of(chain: Devnet, name: str) -> int:
    address = "0x" + chain.account(name).address.hex()
    return int(await chain.rpc.read("eth_getTransactionCount", address, "latest"), 16)


async def test_a_channel_the_payer_withdrew_counts_as_closed(
    chain: Devnet, settler: EscrowSettler, channels: Channels, account: PayerAccount
) -> None:
    channel_id = await channels.open()
    await account.request_close(escrow=chain.values.escrow, channel_id=channel_id)
    await chain.advance(900)
    withdrawal = await account.withdraw(escrow=chain.values.escrow, channel_id=channel_id)
    result = await settler.close_channel(channels.key(channel_id), 5, channels.sign(channel_id, 5))
    assert result.tx_hash == withdrawal
    assert result.fact.settled == 0


async def test_a_close_whose_log_the_node_lacks_is_no_answer(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """F-73: an empty search proves nothing."""
    channel_id = await channels.open()
    key = channels.key(channel_id)
    await settler.close_channel(key, 0, b"")
    await chain.mine(5)
    limits = ReaderLimits(log_blocks_max=1, log_searches_max=2)
    short_sighted = EscrowReader(chain.rpc, chain.values.escrow, limits=limits)
    with pytest.raises(ChainUnavailableError, match="does not have the close's log"):
        await EscrowSettler(short_sighted, chain.sender("payee")).close_channel(key, 0, b"")


@pytest.mark.parametrize(
    ("amount", "signer", "error"),
    [
        (DEPOSIT + 1, "payer", AmountExceedsDepositRevertError),
        (5, "stranger", InvalidSignatureRevertError),
    ],
)
async def test_a_refused_close_moves_nothing_and_says_why(
    settler: EscrowSettler,
    channels: Channels,
    *,
    amount: int,
    signer: str,
    error: type[ContractRevertedError],
) -> None:
    channel_id = await channels.open()
    signature = channels.sign(channel_id, amount, by=signer)
    with pytest.raises(error) as caught:
        await settler.close_channel(channels.key(channel_id), amount, signature)
    assert isinstance(caught.value, TransactionRevertedError)
    assert caught.value.tx_hash is None  # the simulation refused: no gas was spent
    settled = await settler.settle_channel(
        channels.key(channel_id), 1, channels.sign(channel_id, 1)
    )
    assert (settled.fact.settled, settled.fact.is_finalized) == (1, False)


async def test_a_channel_that_does_not_exist_cannot_be_closed(
    settler: EscrowSettler, channels: Channels
) -> None:
    with pytest.raises(ChannelNotFoundRevertError) as caught:
        await settler.close_channel(channels.key(NOBODY), 0, b"")
    assert (caught.value.status, caught.value.problem_type) == (410, "session/channel-not-found")


async def test_a_closed_channel_cannot_be_settled(
    settler: EscrowSettler, channels: Channels
) -> None:
    channel_id = await channels.open()
    await settler.close_channel(channels.key(channel_id), 0, b"")
    with pytest.raises(ChannelFinalizedRevertError) as caught:
        await settler.settle_channel(channels.key(channel_id), 5, channels.sign(channel_id, 5))
    assert (caught.value.status, caught.value.problem_type) == (410, "session/channel-finalized")


async def test_a_close_that_loses_the_race_in_its_block_returns_the_winner(
    chain: Devnet, settler: EscrowSettler, channels: Channels
) -> None:
    """F-76: ours passed the simulation, then reverted: its status is read, and the state."""
    channel_id = await channels.open()
    winning = abi.close.encode(channel_id, 9, channels.sign(channel_id, 9))
    async with chain.mining_paused():
        winner = await chain.sender("payee").broadcast(chain.values.escrow, winning)
        losing = asyncio.create_task(
            settler.close_channel(channels.key(channel_id), 7, channels.sign(channel_id, 7))
        )
        await until(lambda: are_pooled(chain, 2))
        sent = await transactions_of(chain, "payee")
    result = await losing
    assert await transactions_of(chain, "payee") == sent + 2
    assert result.tx_hash == winner
    assert result.fact.settled == 9


async def test_a_node_that_hides_the_channel_after_its_close_is_no_answer(
    chain: Devnet, channels: Channels
) -> None:
    """F-72: the receipt is there, the state is not; the close is found when it is asked again."""
    channel_id = await channels.open()
    key = channels.key(channel_id)
    async with (
        flaky_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url) as rpc,
    ):
        reader = EscrowReader(rpc, chain.values.escrow)
        settler = EscrowSettler(reader, TxManager(rpc, chain.signer("payee")))
        nobody = (32).to_bytes(32, "big") + (1).to_bytes(32, "big") + bytes(256)
        node.lies["eth_call"] = "0x" + nobody.hex()
        with pytest.raises(ChainUnavailableError, match="does not show the channel"):
            await settler.close_channel(key, 0, b"")
        node.lies.clear()
        assert (await settler.close_channel(key, 0, b"")).fact.is_finalized
