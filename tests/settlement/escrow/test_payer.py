"""A payer deposits only in trusted escrows, with no more allowance than needed, and can leave."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from channel.errors import AgentError
from channel.types import ZERO_ADDRESS, Address, ChannelId
from channel.verify.signature import recover
from channel.verify.typed_data import derive_channel_id, keccak, token_domain_separator
from settlement import abi
from settlement.addresses import PERMIT2, escrow_address
from settlement.dev.devnet import GASLESS, Devnet, TokenChoice
from settlement.errors import (
    ContractRevertedError,
    NoGasError,
    TokenRefusedRevertError,
    TransactionPendingError,
    UntrustedEscrowError,
    WalletSendsError,
)
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_domain import read_token_domain
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.signer import WalletSigner
from settlement.types import RevertReason
from tests.settlement.channels import DEPOSIT, Channels, set_paused
from tests.settlement.wallets import deploy_code, deploy_wallet

NO_CHANNEL = ChannelId(b"\x07" * 32)


async def allowance(chain: Devnet) -> int:
    question = abi.allowance.encode(chain.account("payer").address, chain.values.escrow)
    return abi.allowance.decode_int(await chain.rpc.call(chain.values.token, question))


# -- require_escrow (F-91, CLIENT-01)


async def test_the_escrow_of_our_factory_is_trusted(chain: Devnet, account: PayerAccount) -> None:
    await account.require_escrow(chain.values.escrow, chain.values.token)


async def test_an_escrow_of_the_servers_own_is_refused(
    chain: Devnet, account: PayerAccount
) -> None:
    """F-91: also the same code at another address, which no operator vouches for."""
    thief = Address(b"\x66" * 20)
    code = await chain.rpc.code(chain.values.escrow)
    await chain.rpc.command("anvil_setCode", "0x" + thief.hex(), "0x" + code.hex())
    with pytest.raises(UntrustedEscrowError) as caught:
        await account.require_escrow(thief, chain.values.token)
    assert isinstance(caught.value, AgentError)
    assert caught.value.escrow == thief


async def test_the_escrow_of_another_token_is_refused(chain: Devnet, account: PayerAccount) -> None:
    with pytest.raises(UntrustedEscrowError):
        await account.require_escrow(chain.values.escrow, chain.account("payee").address)


async def test_an_escrow_that_is_not_deployed_is_refused(
    chain: Devnet, account: PayerAccount
) -> None:
    token = chain.account("payee").address
    with pytest.raises(UntrustedEscrowError, match="no code"):
        await account.require_escrow(escrow_address(token), token)


async def test_an_escrow_is_trusted_on_the_users_word(chain: Devnet) -> None:
    own = chain.values.multicall3  # any contract
    account = PayerAccount(chain.sender("payer"), trusted_escrows=[own])
    await account.require_escrow(own, chain.values.token)
    await account.require_escrow(chain.values.escrow, chain.values.token)


async def test_another_factory_can_be_pinned(chain: Devnet) -> None:
    account = PayerAccount(chain.sender("payer"), factory=Address(b"\x05" * 20))
    with pytest.raises(UntrustedEscrowError):
        await account.require_escrow(chain.values.escrow, chain.values.token)


# -- means to fund a channel


@asynccontextmanager
async def _running(chain: Devnet, token: TokenChoice) -> AsyncIterator[Devnet]:
    if token == "dusd":  # noqa: S105 -- a token of value
        yield chain
    else:
        async with Devnet.start(token=token) as devnet:
            yield devnet


@pytest.mark.parametrize("token", ["dusd", "usdc"])
async def test_what_an_account_has_is_read_from_the_chain(
    chain: Devnet, token: TokenChoice
) -> None:
    """CLIENT-02, F-21: name and version of our dollar and of Circle's make their separators."""
    async with _running(chain, token) as devnet:
        rich = await PayerAccount(devnet.sender("payer")).read_means(devnet.values.token, PERMIT2)
        head = await devnet.rpc.block()
        assert (rich.balance, rich.can_pay_gas) == (10**12, True)
        assert rich.permit2_allowance == 0
        assert rich.now >= head.timestamp
        names = {"dusd": ("Dev USD", "1"), "usdc": ("USD Coin", "2")}
        assert rich.token_domain == token_domain_separator(
            *names[token], devnet.values.chain_id, devnet.values.token
        )
        agent = await PayerAccount(devnet.sender(GASLESS)).read_means(
            devnet.values.token, devnet.account("stranger").address
        )
        assert (agent.balance, agent.can_pay_gas, agent.permit2_allowance) == (10**12, False, None)


async def test_the_chains_time_counts_where_it_is_ahead(
    chain: Devnet, account: PayerAccount
) -> None:
    """F-111."""
    began = int(time.time())
    means = await account.read_means(chain.values.token, PERMIT2)
    assert means.now >= began
    assert means.head_at == (await chain.rpc.block()).timestamp  # and not this machine's clock
    await chain.advance(10**6)
    means = await account.read_means(chain.values.token, PERMIT2)
    assert means.now == means.head_at == (await chain.rpc.block()).timestamp


async def test_a_token_whose_words_do_not_make_its_domain_gets_no_signature(
    chain: Devnet, account: PayerAccount
) -> None:
    """F-21: a token with another's separator, one without a separator, and no contract at all."""
    separator = await chain.rpc.call(chain.values.token, abi.token_domain_separator.encode())
    liar = await deploy_code(chain.deployer, b"\x7f" + separator + bytes.fromhex("5f5260205ff3"))
    for token in (liar, chain.values.multicall3, Address(b"\x01" * 20)):
        assert await read_token_domain(chain.rpc, token) is None
    assert (await account.read_means(chain.values.token, PERMIT2)).token_domain == separator


async def test_permit2_is_approved_once_and_no_other_contract(
    chain: Devnet, account: PayerAccount
) -> None:
    """F-90, F-91."""
    token, stranger = chain.values.token, chain.account("stranger").address
    with pytest.raises(UntrustedEscrowError, match="is not the canonical Permit2"):
        await account.approve_permit2(token=token, permit2=stranger)
    await account.approve_permit2(token=token, permit2=PERMIT2)
    head = await chain.rpc.block_number()
    await account.approve_permit2(token=token, permit2=PERMIT2)
    assert await chain.rpc.block_number() == head
    assert (await account.read_means(token, PERMIT2)).permit2_allowance == 2**256 - 1


async def test_a_nonce_is_known_as_used_by_the_block_that_used_it(
    chain: Devnet, account: PayerAccount, channels: Channels
) -> None:
    """CLIENT-05, F-75: of the token and of Permit2, both cancelled here by their owner."""
    token, nonce, escrow = chain.values.token, b"\x09" * 32, chain.values.escrow
    assert await account.find_use(token=token, authorization=nonce) is None
    assert await account.find_permit_use(escrow=escrow, nonce=2**255 + 7) is None
    cancel = abi.Function("cancelAuthorization(address,bytes32,bytes)")
    domain = (await account.read_means(token, PERMIT2)).token_domain
    kind = keccak(b"CancelAuthorization(address authorizer,bytes32 nonce)")
    struct = keccak(kind + account.account.rjust(32, b"\0") + nonce)
    signature = await account.sign(keccak(b"\x19\x01" + (domain or b"") + struct))
    sender = chain.sender("payer")
    await sender.send(token, cancel.encode(account.account, nonce, signature))
    number = await account.find_use(token=token, authorization=nonce)
    assert number == await chain.rpc.block_number()
    invalidate = abi.Function("invalidateUnorderedNonces(uint256,uint256)")
    await sender.send(PERMIT2, invalidate.encode(2**247, 1 << 7))
    assert await account.find_permit_use(escrow=escrow, nonce=2**255 + 7) == (number or 0) + 1
    assert await account.find_permit_use(escrow=escrow, nonce=2**255 + 8) is None
    for silent in (token, chain.account("stranger").address):  # an escrow that names no Permit2
        assert await account.find_permit_use(escrow=silent, nonce=2**255 + 7) == (number or 0) + 1
    channel_id = await channels.open()
    past = await account.read_channel(chain.values.escrow, channel_id, block_number=number)
    assert past is None


async def test_a_wallet_signs_and_sends_nothing_from_here(chain: Devnet) -> None:
    """CLIENT-11: the owner's key is not the wallet."""
    wallet = await deploy_wallet(chain.deployer, "agrees")
    account = PayerAccount(
        chain.sender("payer"), signer=WalletSigner(wallet, chain.signer("payer"))
    )
    means = await account.read_means(chain.values.token, PERMIT2)
    assert (account.account, means.can_pay_gas, means.balance) == (wallet, False, 0)
    assert recover(NO_CHANNEL, await account.sign(NO_CHANNEL)) == chain.account("payer").address
    with pytest.raises(WalletSendsError):
        await account.request_close(escrow=chain.values.escrow, channel_id=NO_CHANNEL)


async def test_an_account_without_ether_is_refused_before_anything_is_sent(chain: Devnet) -> None:
    account = PayerAccount(chain.sender(GASLESS))
    with pytest.raises(NoGasError, match="send it some"):
        await account.request_close(escrow=chain.values.escrow, channel_id=NO_CHANNEL)


# -- open_channel, top_up


async def test_opening_deposits_and_leaves_no_allowance(
    chain: Devnet, account: PayerAccount, channels: Channels, reader: EscrowReader
) -> None:
    payer = chain.account("payer").address
    before = await chain.token_balance(payer)
    channel_id, tx_hash = await channels.open_with_hash()
    assert await chain.token_balance(payer) == before - DEPOSIT
    assert await allowance(chain) == 0
    fact = await account.read_channel(reader.escrow, channel_id)
    assert fact is not None
    assert (fact.deposit, fact.terms.payer, account.account) == (DEPOSIT, payer, payer)
    assert await account.find_opening(escrow=reader.escrow, channel_id=channel_id) == tx_hash


async def test_an_allowance_that_suffices_is_used(chain: Devnet, channels: Channels) -> None:
    approve = abi.approve.encode(chain.values.escrow, 3 * DEPOSIT)
    await chain.sender("payer").send(chain.values.token, approve)
    head = await chain.rpc.block_number()
    await channels.open()
    assert await chain.rpc.block_number() == head + 1
    assert await allowance(chain) == 2 * DEPOSIT


async def test_concurrent_openings_do_not_take_each_others_allowance(channels: Channels) -> None:
    """F-41."""
    opened = await asyncio.gather(*[channels.open() for _ in range(6)])
    assert len(set(opened)) == 6


async def test_a_signer_of_its_own_is_part_of_the_channel(
    chain: Devnet, account: PayerAccount, channels: Channels
) -> None:
    """CLIENT-11."""
    signer = chain.account("stranger").address
    values, terms = chain.values, channels.terms
    await account.open_channel(
        escrow=values.escrow,
        payee=terms.payee,
        token=terms.token,
        deposit=5,
        salt=bytes(32),
        authorized_signer=signer,
    )
    with_signer = type(terms)(terms.payer, terms.payee, terms.token, signer)
    channel_id = derive_channel_id(
        with_signer, salt=bytes(32), escrow=values.escrow, chain_id=values.chain_id
    )
    fact = await account.read_channel(values.escrow, channel_id)
    assert fact is not None
    assert fact.terms == with_signer


async def test_a_top_up_adds_exactly_its_amount(
    account: PayerAccount, channels: Channels, reader: EscrowReader
) -> None:
    channel_id = await channels.open()
    await channels.top_up(channel_id, 7)
    fact = await account.read_channel(reader.escrow, channel_id)
    assert fact is not None
    assert fact.deposit == DEPOSIT + 7


@pytest.mark.parametrize("old", [1, DEPOSIT - 1])
async def test_a_token_that_wants_its_allowance_reset_gets_it(
    chain: Devnet, account: PayerAccount, old: int
) -> None:
    """F-89: USDT refuses to change an allowance that is not zero."""
    token = await deploy_code(chain.deployer, _usdt_like_approve())
    payer = chain.sender("payer")
    await payer.send(token, abi.approve.encode(chain.values.escrow, old))
    with pytest.raises(ContractRevertedError):
        await payer.send(token, abi.approve.encode(chain.values.escrow, DEPOSIT))
    with pytest.raises(ContractRevertedError):  # the escrow serves another token: that is all
        await account.top_up(
            escrow=chain.values.escrow, token=token, channel_id=NO_CHANNEL, amount=DEPOSIT
        )
    question = abi.allowance.encode(payer.address, chain.values.escrow)
    assert abi.allowance.decode_int(await chain.rpc.call(token, question)) == DEPOSIT


# -- refusals: nothing is deposited


async def test_a_deposit_beyond_the_balance_is_refused(chain: Devnet, channels: Channels) -> None:
    before = await chain.token_balance(chain.account("payer").address)
    with pytest.raises(TokenRefusedRevertError) as caught:
        await channels.open(before + 1)
    assert caught.value.tx_hash is None
    assert await chain.token_balance(chain.account("payer").address) == before


@pytest.mark.parametrize(
    ("deposit", "reason"),
    [(0, RevertReason.ZERO_DEPOSIT), (2**88, RevertReason.DEPOSIT_OVERFLOW)],
)
async def test_a_deposit_the_escrow_cannot_hold_is_refused(
    channels: Channels, deposit: int, reason: RevertReason
) -> None:
    with pytest.raises(ContractRevertedError) as caught:
        await channels.open(deposit)
    assert caught.value.reason is reason


async def test_the_same_terms_twice_are_refused(
    chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    await channels.open()
    with pytest.raises(ContractRevertedError) as caught:
        await Channels(chain, account).open()  # counts its salts from one again
    assert caught.value.reason is RevertReason.CHANNEL_ALREADY_EXISTS


async def test_a_channel_to_the_zero_address_is_refused(
    chain: Devnet, account: PayerAccount, channels: Channels
) -> None:
    with pytest.raises(ContractRevertedError) as caught:
        await account.open_channel(
            escrow=chain.values.escrow,
            payee=ZERO_ADDRESS,
            token=channels.terms.token,
            deposit=1,
            salt=bytes(32),
            authorized_signer=ZERO_ADDRESS,
        )
    assert caught.value.reason is RevertReason.INVALID_PAYEE


async def test_a_paused_token_is_refused(chain: Devnet, channels: Channels) -> None:
    """F-87."""
    await set_paused(chain, on=True)
    with pytest.raises(TokenRefusedRevertError):
        await channels.open()


async def test_a_strangers_channel_cannot_be_topped_up_or_closed(
    chain: Devnet, channels: Channels
) -> None:
    channel_id = await channels.open()
    stranger = PayerAccount(chain.sender("stranger"))
    values = chain.values
    for attempt in (
        stranger.top_up(escrow=values.escrow, token=values.token, channel_id=channel_id, amount=1),
        stranger.request_close(escrow=values.escrow, channel_id=channel_id),
        stranger.withdraw(escrow=values.escrow, channel_id=channel_id),
    ):
        with pytest.raises(ContractRevertedError) as caught:
            await attempt
        assert caught.value.reason is RevertReason.NOT_PAYER


# -- leaving (CLOSE-08, CLIENT-12)


@pytest.mark.parametrize("token", ["dusd", "usdc"])
async def test_a_payer_can_leave_without_the_payee(token: TokenChoice) -> None:
    """With our dollar and with Circle's: open, ask, wait out the grace period, withdraw."""
    async with Devnet.start(token=token) as chain:
        account = PayerAccount(chain.sender("payer"))
        channels = Channels(chain, account)
        payer, escrow = channels.terms.payer, chain.values.escrow
        before = await chain.token_balance(payer)
        channel_id = await channels.open()
        with pytest.raises(ContractRevertedError) as caught:
            await account.withdraw(escrow=escrow, channel_id=channel_id)
        assert caught.value.reason is RevertReason.CLOSE_NOT_READY
        await account.request_close(escrow=escrow, channel_id=channel_id)
        await chain.advance(898)
        with pytest.raises(ContractRevertedError):
            await account.withdraw(escrow=escrow, channel_id=channel_id)
        await chain.advance(2)
        await account.withdraw(escrow=escrow, channel_id=channel_id)
        assert await chain.token_balance(payer) == before
        fact = await account.read_channel(escrow, channel_id)
        assert fact is not None
        assert fact.is_finalized


# -- openings whose outcome is unknown (F-75, CLIENT-05)


async def test_an_opening_that_was_not_mined_in_time_is_found_later(
    chain: Devnet, channels: Channels
) -> None:
    limits = TxLimits(mined_within_s=0.1, poll_max_s=0.02)
    hasty = PayerAccount(TxManager(chain.rpc, chain.signer("payer"), limits=limits))
    values, terms = chain.values, channels.terms
    approve = abi.approve.encode(values.escrow, DEPOSIT)
    await chain.sender("payer").send(values.token, approve)
    async with chain.mining_paused():
        with pytest.raises(TransactionPendingError) as caught:
            await hasty.open_channel(
                escrow=values.escrow,
                payee=terms.payee,
                token=terms.token,
                deposit=DEPOSIT,
                salt=bytes(32),
                authorized_signer=ZERO_ADDRESS,
            )
    channel_id = derive_channel_id(
        terms, salt=bytes(32), escrow=values.escrow, chain_id=values.chain_id
    )
    found = await hasty.find_opening(escrow=values.escrow, channel_id=channel_id)
    assert found == caught.value.tx_hash


def _usdt_like_approve() -> bytes:
    """A token with one allowance, in slot 0, that refuses to replace one that is not zero."""
    # Is the selector approve's? Go on at 0x17. If not, answer slot 0.
    dispatch = "5f3560e01c63095ea7b3146017575f545f5260205ff300"
    # JUMPDEST; unless slot 0 or the amount is zero, revert; else slot 0 becomes the amount.
    approve = "5b5f541560243515176026575f5ffd5b6024355f5500"
    return bytes.fromhex(dispatch + approve)
