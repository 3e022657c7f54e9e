"""A revert is final immediately (F-76), and gives its reason where a node knows it."""

import pytest

from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import (
    ContractRevertedError,
)
from settlement.types import RevertReason
from tests.settlement.senders import flaky_sender
from tests.settlement.wallets import deploy_code


async def test_a_revert_in_a_block_is_final_and_has_its_reason(chain: Devnet) -> None:
    """F-76: two transfers of everything, of which the first leaves nothing for the second."""
    sender = chain.sender("stranger")
    everything = abi.transfer.encode(chain.account("payee").address, 1_000_000 * 10**6)
    async with chain.mining_paused():
        first = await sender.broadcast(chain.values.token, everything)
        second = await sender.broadcast(chain.values.token, everything)
    assert (await sender.resume(first)).is_success
    with pytest.raises(ContractRevertedError) as caught:
        await sender.resume(second)
    assert (caught.value.reason, caught.value.tx_hash) == (RevertReason.TOKEN_REFUSED, second)


async def test_a_revert_that_only_its_own_block_explains_is_explained(chain: Devnet) -> None:
    """And one whose bytes are not known any more is a revert all the same."""
    refused_at = await chain.rpc.block_number() + 2
    # NUMBER, PUSH2 refused_at, EQ, PUSH1 9, JUMPI, STOP
    code = b"\x43\x61" + refused_at.to_bytes(2, "big") + bytes.fromhex("1460095700")
    # JUMPDEST, PUSH4 ChannelNotFound, PUSH1 224, SHL, PUSH0, MSTORE, REVERT(0, 4)
    target = await deploy_code(
        chain.deployer, code + bytes.fromhex("5b631e07dd9460e01b5f5260045ffd")
    )
    sender = chain.sender("stranger")
    tx_hash = await sender.broadcast(target, b"")
    with pytest.raises(ContractRevertedError) as caught:
        await sender.resume(tx_hash)
    assert caught.value.reason is RevertReason.CHANNEL_NOT_FOUND
    with pytest.raises(ContractRevertedError) as later:
        await chain.sender("stranger").resume(tx_hash)
    assert (later.value.reason, later.value.tx_hash) == (RevertReason.UNKNOWN, tx_hash)


async def test_a_revert_is_final_also_without_a_reason(chain: Devnet) -> None:
    async with flaky_sender(chain) as (node, sender):
        everything = abi.transfer.encode(chain.account("payee").address, 1_000_000 * 10**6)
        async with chain.mining_paused():
            await sender.broadcast(chain.values.token, everything)
            second = await sender.broadcast(chain.values.token, everything)
        node.fail("drop", method="eth_call")
        with pytest.raises(ContractRevertedError) as caught:
            await sender.resume(second)
        assert (caught.value.reason, caught.value.tx_hash) == (RevertReason.UNKNOWN, second)
