"""The engine's view of the chain: channels, transactions, wallets, and a deployment's checks."""

import asyncio
import os

import pytest
from eth_abi.abi import encode

from channel.chain import OpenedLog, ToppedUpLog
from channel.errors import ChainUnavailableError, ConfigError, TransactionRevertedError
from channel.limits import WALLET_SIGNATURE_BYTES_MAX
from channel.methods.evm.method import EVM
from channel.types import Address, ChannelId, TxHash
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import ContractRevertedError, RpcRefusedError
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader, ReaderLimits
from settlement.node.rpc import Rpc
from tests.settlement.channels import DEPOSIT, Channels, send_blindly
from tests.settlement.flaky_node import flaky_node
from tests.settlement.wallets import deploy_look_alike, deploy_wallet
from tests.waiting import PATIENCE_S

NO_CHANNEL = ChannelId(b"\x07" * 32)


# -- require_deployment (OPEN-09, decision 15)


async def test_our_deployment_is_taken(chain: Devnet, reader: EscrowReader) -> None:
    await reader.require_deployment(token=chain.values.token)


async def test_an_address_without_code_is_refused(chain: Devnet) -> None:
    with pytest.raises(ConfigError, match="There is no escrow"):
        await EscrowReader(chain.rpc, Address(b"\x01" * 20)).require_deployment()


async def test_a_contract_that_is_no_escrow_is_refused(chain: Devnet) -> None:
    with pytest.raises(ConfigError, match="is not a session escrow"):
        await EscrowReader(chain.rpc, chain.values.token).require_deployment()


async def test_an_escrow_of_another_token_is_refused(chain: Devnet, reader: EscrowReader) -> None:
    with pytest.raises(ConfigError, match="serves token"):
        await reader.require_deployment(token=chain.account("payee").address)


async def test_another_domain_is_refused(chain: Devnet) -> None:
    """F-21: the same code at another address signs under another domain."""
    copy = Address(b"\x02" * 20)
    code = await chain.rpc.code(chain.values.escrow)
    await chain.rpc.command("anvil_setCode", "0x" + copy.hex(), "0x" + code.hex())
    await EscrowReader(chain.rpc, copy).require_deployment()  # it computes its own: fine
    chain.rpc.chain_id += 1
    with pytest.raises(ConfigError, match="another EIP-712 domain"):
        await EscrowReader(chain.rpc, copy).require_deployment()


async def test_a_short_grace_period_is_refused(chain: Devnet) -> None:
    """F-69: below ten minutes a voucher could be lost before it is settled."""
    code = await chain.rpc.code(chain.values.escrow)
    push_900 = b"\x61" + (900).to_bytes(2, "big")
    assert push_900 in code
    short = code.replace(push_900, b"\x61" + (599).to_bytes(2, "big"))
    copy = Address(b"\x03" * 20)
    await chain.rpc.command("anvil_setCode", "0x" + copy.hex(), "0x" + short.hex())
    with pytest.raises(ConfigError, match="599 s, below 600"):
        await EscrowReader(chain.rpc, copy).require_deployment()


# -- read_channel, read_channels (OPEN-04, CONTRACT-14)


async def test_a_channel_is_read_as_opened(reader: EscrowReader, channels: Channels) -> None:
    channel_id = await channels.open()
    fact = await reader.read_channel(channel_id)
    assert fact is not None
    assert fact.key == channels.key(channel_id)
    assert fact.terms == channels.terms
    assert (fact.deposit, fact.settled, fact.close_requested_at) == (DEPOSIT, 0, 0)
    assert not fact.is_finalized
    assert fact.block_number == await reader.rpc.block_number()


async def test_a_channel_that_never_existed_is_none(reader: EscrowReader) -> None:
    assert await reader.read_channel(NO_CHANNEL) is None


async def test_a_channel_is_read_at_the_block_asked_for(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    channel_id = await channels.open()
    opened_at = await chain.rpc.block_number()
    await channels.top_up(channel_id, 5)
    before = await reader.read_channel(channel_id, block_number=opened_at)
    after = await reader.read_channel(channel_id)
    assert before is not None
    assert after is not None
    assert (before.deposit, before.block_number) == (DEPOSIT, opened_at)
    assert (after.deposit, after.block_number) == (DEPOSIT + 5, await chain.rpc.block_number())
    assert await reader.read_channel(channel_id, block_number=opened_at - 1) is None


async def test_a_pending_close_shows_when_it_was_asked_for(
    chain: Devnet, reader: EscrowReader, channels: Channels, account: PayerAccount
) -> None:
    channel_id = await channels.open()
    await account.request_close(escrow=reader.escrow, channel_id=channel_id)
    fact = await reader.read_channel(channel_id)
    assert fact is not None
    assert fact.close_requested_at == (await chain.rpc.block()).timestamp


async def test_many_channels_come_in_order_and_of_one_block(
    reader: EscrowReader, channels: Channels
) -> None:
    """More than fit one call, an unknown one among them."""
    asked = [await channels.open(deposit) for deposit in (1, 2, 3, 4, 5)]
    asked.insert(2, NO_CHANNEL)
    facts = await reader.read_channels(asked)
    assert [fact and fact.deposit for fact in facts] == [1, 2, None, 3, 4, 5]
    assert [fact.key.channel_id for fact in facts if fact] == [a for a in asked if a != NO_CHANNEL]
    assert len({fact.block_number for fact in facts if fact}) == 1
    assert await reader.read_channels([]) == []


async def test_a_node_that_lags_is_waited_for(chain: Devnet, channels: Channels) -> None:
    """F-72: the receipt came from one node, the state is asked of one that has no such block."""
    channel_id = await channels.open()
    ahead = await chain.rpc.block_number() + 1
    limits = ReaderLimits(lag_s_max=PATIENCE_S, lag_poll_s=0.01)
    patient = EscrowReader(chain.rpc, chain.values.escrow, limits=limits)
    waiting = asyncio.create_task(patient.read_channel(channel_id, block_number=ahead))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await chain.mine()
    fact = await waiting
    assert fact is not None
    assert fact.block_number == ahead


async def test_a_node_that_lags_too_long_is_reported(chain: Devnet, reader: EscrowReader) -> None:
    ahead = await chain.rpc.block_number() + 1
    with pytest.raises(RpcRefusedError):
        await reader.read_channel(NO_CHANNEL, block_number=ahead)


# -- read_transaction (OPEN-02, OPEN-03, TOPUP-03)


async def test_an_opening_is_evidence(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    channel_id, tx_hash = await channels.open_with_hash()
    await chain.mine(3)
    evidence = await reader.read_transaction(tx_hash)
    assert evidence is not None
    assert evidence.confirmations == 4
    assert [log.channel_id for log in evidence.opened] == [channel_id]
    assert isinstance(evidence.opened[0], OpenedLog)
    assert evidence.topped_up == ()
    fact = await reader.read_channel(channel_id, block_number=evidence.block_number)
    assert fact is not None


async def test_a_top_up_is_evidence_of_exactly_its_amount(
    reader: EscrowReader, channels: Channels
) -> None:
    channel_id = await channels.open()
    evidence = await reader.read_transaction(await channels.top_up(channel_id, 77))
    assert evidence is not None
    assert evidence.opened == ()
    (log,) = evidence.topped_up
    assert isinstance(log, ToppedUpLog)
    assert (log.channel_id, log.additional_deposit) == (channel_id, 77)


async def test_a_transaction_without_receipt_is_none(chain: Devnet, reader: EscrowReader) -> None:
    """F-75: absence is not failure, for one that waits as for one never seen."""
    async with chain.mining_paused():
        waiting = await chain.sender("stranger").broadcast(chain.account("payee").address, b"")
        assert await reader.read_transaction(waiting) is None
    assert await reader.read_transaction(TxHash(os.urandom(32))) is None


async def test_a_reverted_transaction_is_an_error_without_waiting(
    chain: Devnet, reader: EscrowReader
) -> None:
    """F-76: status 0 is final."""
    tx_hash = await send_blindly(
        chain, reader.escrow, abi.withdraw.encode(NO_CHANNEL), by="stranger"
    )
    with pytest.raises(TransactionRevertedError) as caught:
        await reader.read_transaction(tx_hash)
    assert isinstance(caught.value, ContractRevertedError)
    assert caught.value.tx_hash == tx_hash


async def test_a_look_alike_log_of_another_contract_is_no_evidence(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    """F-84: any contract can emit `ChannelOpened`; only the escrow's log counts."""
    channel_id = await channels.open()
    topics = [abi.CHANNEL_OPENED_TOPIC, channel_id, b"\x11" * 32, b"\x22" * 32]
    liar = await deploy_look_alike(chain.deployer, topics, bytes(128))
    receipt = await chain.deployer.send(liar, b"")
    assert abi.decode_log(receipt.logs[0]) == OpenedLog(channel_id=channel_id, log_index=0)
    evidence = await reader.read_transaction(receipt.tx_hash)
    assert evidence is not None
    assert evidence.opened == ()


async def test_a_wrapped_opening_is_evidence(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    """OPEN-03: the escrow's log decides, not the address that the transaction was sent to."""
    multicall = abi.Function("aggregate((address,bytes)[])")
    values = chain.values
    await chain.fund(values.multicall3, amount=DEPOSIT)
    approve = abi.approve.encode(values.escrow, DEPOSIT)
    opening = abi.open_.encode(
        channels.terms.payee, values.token, DEPOSIT, bytes(32), channels.terms.authorized_signer
    )
    calls = [(values.token, approve), (values.escrow, opening)]
    calldata = multicall.selector + encode(["(address,bytes)[]"], [calls])
    receipt = await chain.deployer.send(values.multicall3, calldata)
    evidence = await reader.read_transaction(receipt.tx_hash)
    assert evidence is not None
    assert len(evidence.opened) == 1


# -- find_opening (CLIENT-05)


async def test_logs_are_found_in_ranges_a_public_node_answers(
    chain: Devnet, reader: EscrowReader, channels: Channels, account: PayerAccount
) -> None:
    """The opening lies several ranges of four blocks back."""
    channel_id, tx_hash = await channels.open_with_hash()
    await chain.mine(10)
    found = await reader.find_opening(channel_id)
    assert found is not None
    assert found.tx_hash == tx_hash
    assert await account.find_opening(escrow=reader.escrow, channel_id=channel_id) == tx_hash
    assert await account.find_opening(escrow=reader.escrow, channel_id=NO_CHANNEL) is None
    assert await reader.find_closing(channel_id) is None


async def test_a_node_that_searches_fewer_blocks_is_asked_for_fewer(
    chain: Devnet, channels: Channels
) -> None:
    """CLIENT-05, F-108: some search 10,000 blocks, some ten; each refuses in its own words."""
    opened, top_ups = [], []
    for _ in range(3):
        opened.append(await channels.open())
        await chain.mine(7)
        top_ups.append(await channels.top_up(opened[0], 5))
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        node.log_blocks_max = 3
        reader = EscrowReader(rpc, chain.values.escrow)
        payee, head = channels.terms.payee, await rpc.block_number()
        assert await reader.find_channels(payee, from_block=0, to_block=head) == opened
        assert [log.tx_hash for log in await reader.find_top_ups(opened[0])] == top_ups
        found = await reader.find_opening(opened[0])
        assert found is not None
        assert await reader.find_closing(opened[0]) is None
        node.log_blocks_max = 0
        with pytest.raises(RpcRefusedError):
            await reader.find_opening(opened[0])


# -- is_valid_wallet_signature (ENC-07)


@pytest.mark.parametrize(
    ("behaviour", "verdict"),
    [
        ("agrees", True),
        ("says another word", False),
        ("returns nothing", False),
        ("reverts", False),
        ("burns all gas", False),
        ("executes garbage", False),
    ],
)
async def test_a_wallet_is_asked_as_the_escrow_will(
    chain: Devnet, reader: EscrowReader, behaviour: str, *, verdict: bool
) -> None:
    """F-20: burning gas or misbehaving is a no, not an error."""
    wallet = await deploy_wallet(chain.deployer, behaviour)
    assert await reader.is_valid_wallet_signature(wallet, b"\x05" * 32, b"\x06" * 90) is verdict


async def test_the_longest_signature_can_be_asked_about(
    chain: Devnet, reader: EscrowReader
) -> None:
    wallet = await deploy_wallet(chain.deployer, "agrees")
    digest = b"\x05" * 32
    assert await reader.is_valid_wallet_signature(
        wallet, digest, b"\xff" * WALLET_SIGNATURE_BYTES_MAX
    )
    assert not await reader.is_valid_wallet_signature(
        wallet, digest, b"\xff" * (WALLET_SIGNATURE_BYTES_MAX + 1)
    )


async def test_a_key_that_signs_itself_is_a_yes_too(
    chain: Devnet, reader: EscrowReader, channels: Channels
) -> None:
    """F-18: the escrow tries ECDSA first, code or no code; so does this."""
    channel_id = await channels.open()
    digest = EVM.voucher_digest(channels.key(channel_id), 5)
    payer = chain.account("payer").address
    signature = channels.sign(channel_id, 5)
    assert await reader.is_valid_wallet_signature(payer, digest, signature)
    assert not await reader.is_valid_wallet_signature(payer, digest, signature[:-1] + b"\x00")


async def test_an_escrow_that_cannot_ask_is_no_verdict(chain: Devnet) -> None:
    """F-15: fail closed, but never by calling an honest signature bad."""
    not_an_escrow = EscrowReader(chain.rpc, chain.values.token)
    with pytest.raises(ChainUnavailableError, match="never reverts"):
        await not_an_escrow.is_valid_wallet_signature(Address(b"\x01" * 20), bytes(32), b"")
