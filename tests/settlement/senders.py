"""Senders through a node that fails, and something for them to send."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from settlement import abi
from settlement.devnet import Devnet
from settlement.rpc import Rpc, RpcLimits
from settlement.tx_manager import TxLimits, TxManager
from tests.settlement.flaky_node import FlakyNode, flaky_node

SEND = "eth_sendRawTransaction"
RECEIPT = "eth_getTransactionReceipt"

_QUICK = TxLimits(mined_within_s=2.0, poll_max_s=0.02, resend_after_s=0.05)
_RPC = RpcLimits(timeout_s=0.3, read_attempts_max=2, retry_delay_s=0.01)


@asynccontextmanager
async def flaky_sender(
    chain: Devnet, limits: TxLimits = _QUICK
) -> AsyncIterator[tuple[FlakyNode, TxManager]]:
    async with (
        flaky_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url, limits=_RPC) as rpc,
    ):
        yield node, TxManager(rpc, chain.signer("stranger"), limits=limits)


def pay_one(chain: Devnet) -> bytes:
    return abi.transfer.encode(chain.account("payee").address, 1)


async def received(chain: Devnet) -> int:
    return await chain.token_balance(chain.account("payee").address) - 1_000_000 * 10**6
