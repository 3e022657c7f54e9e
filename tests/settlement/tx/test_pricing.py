"""What is bid: by the base fee, within the bound, and nothing for what would be refused."""

import pytest

from channel.errors import ConfigError
from channel.types import Address
from settlement import abi
from settlement.dev.anvil import Anvil, find_anvil
from settlement.dev.devnet import Devnet
from settlement.errors import (
    TokenRefusedRevertError,
)
from settlement.node.rpc import Rpc
from settlement.tx.fees import FeePolicy
from settlement.tx.manager import TxManager
from settlement.tx.signer import KeySigner
from tests.settlement.senders import pay_one, received


async def test_the_bid_follows_the_base_fee(chain: Devnet) -> None:
    """F-77."""
    await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(7 * 10**9))
    await chain.mine()
    tx_hash = await chain.sender("stranger").broadcast(chain.values.token, pay_one(chain))
    sent = await chain.rpc.read("eth_getTransactionByHash", "0x" + tx_hash.hex())
    tip = int(sent["maxPriorityFeePerGas"], 16)
    head = await chain.rpc.block()
    assert head.base_fee_wei is not None
    assert int(sent["maxFeePerGas"], 16) - tip >= head.base_fee_wei


async def test_a_bid_above_the_bound_is_not_made(chain: Devnet) -> None:
    """F-78."""
    account = chain.signer("stranger")
    mean = TxManager(chain.rpc, account, fees=FeePolicy(max_fee_wei=1))
    with pytest.raises(ConfigError, match="below the base fee"):
        await mean.send(chain.values.token, pay_one(chain))
    assert await received(chain) == 0


async def test_a_refusal_in_the_simulation_spends_no_gas_and_no_nonce(chain: Devnet) -> None:
    """SEC-05: verify before gas."""
    sender = chain.sender("stranger")
    before = await chain.rpc.balance_wei(sender.address)
    too_much = abi.transfer.encode(chain.account("payee").address, 10**30)
    with pytest.raises(TokenRefusedRevertError) as caught:
        await sender.send(chain.values.token, too_much)
    assert caught.value.tx_hash is None
    assert await chain.rpc.balance_wei(sender.address) == before
    assert (await sender.send(chain.values.token, pay_one(chain))).is_success


async def test_a_chain_without_a_base_fee_is_refused() -> None:
    """EIP-1559 is what fees are chosen by."""
    async with (
        await Anvil.start(await find_anvil(), ["--hardfork", "berlin"]) as anvil,
        await Rpc.connect(anvil.url) as rpc,
    ):
        first = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
        with pytest.raises(ConfigError, match="no base fee"):
            await TxManager(rpc, KeySigner(bytes.fromhex(first))).send(Address(bytes(20)), b"")
