"""Senders through a node that fails, or over a journal that does, and something to send."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from channel.errors import LedgerUnavailableError
from settlement import abi
from settlement.devnet import Devnet
from settlement.journal.interface import Journal
from settlement.rpc import Rpc, RpcLimits
from settlement.tx_manager import TxLimits, TxManager
from settlement.tx_state import Event, JournalTx
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


class FailingJournal:
    """A journal whose database goes away once: before it takes an event, or before it says so."""

    def __init__(
        self, inner: Journal, *, before: Sequence[type] = (), after: Sequence[type] = ()
    ) -> None:
        self._inner = inner
        self._before = list(before)
        self._after = list(after)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def record(self, tx_id: int, events: Sequence[Event]) -> JournalTx:
        kind = type(events[0])
        if kind in self._before:
            self._before.remove(kind)
            raise LedgerUnavailableError("The connection was lost.")
        after = await self._inner.record(tx_id, events)
        if kind in self._after:
            self._after.remove(kind)
            raise LedgerUnavailableError("The connection was lost before the answer came.")
        return after
