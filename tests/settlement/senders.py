"""Senders whose node or journal fails, and a transaction for them to send."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import pytest

from channel.errors import LedgerUnavailableError, SettlementPendingError
from channel.types import TxHash
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import TransactionPendingError
from settlement.node.rpc import Rpc, RpcLimits
from settlement.tx.encoding import UnsignedTx
from settlement.tx.journal.interface import Journal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.signer import KeySigner
from settlement.tx.state import Event, JournalTx
from tests.settlement.flaky_node import FlakyNode, flaky_node
from tests.waiting import PATIENCE_S

_Answer = TypeVar("_Answer")

SEND = "eth_sendRawTransaction"
RECEIPT = "eth_getTransactionReceipt"

_QUICK = TxLimits(mined_within_s=PATIENCE_S, poll_max_s=0.02, resend_after_s=0.05)


@asynccontextmanager
async def flaky_sender(
    chain: Devnet, limits: TxLimits = _QUICK, *, node_s: float = PATIENCE_S
) -> AsyncIterator[tuple[FlakyNode, TxManager]]:
    """Yield a sender whose only node has faults; a call of it times out after `node_s`."""
    rpc_limits = RpcLimits(timeout_s=node_s, read_attempts_max=2, retry_delay_s=0.01)
    async with (
        flaky_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url, limits=rpc_limits) as rpc,
    ):
        yield node, TxManager(rpc, chain.signer("stranger"), limits=limits)


def pay_one(chain: Devnet) -> bytes:
    return abi.transfer.encode(chain.account("payee").address, 1)


async def insist(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Ask again while the answer is that the transaction is pending, as callers do."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(SettlementPendingError):
                return await ask()


async def until_sent(ask: Callable[[], Awaitable[object]]) -> TxHash:
    """Ask until what is pending has a transaction, and return that."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with pytest.raises(SettlementPendingError) as pending:
                await ask()
            if isinstance(pending.value, TransactionPendingError):
                return TxHash(pending.value.tx_hash)


async def are_pooled(chain: Devnet, count: int) -> bool:
    """Return whether `count` transactions wait to be mined."""
    status = await chain.rpc.read("txpool_status")
    return int(status["pending"], 16) == count


async def copy_from_pool(chain: Devnet) -> None:
    """Send the only transaction of the pool once more, from another account and ahead of it."""
    content = await chain.rpc.read("txpool_content")
    (of_account,) = content["pending"].values()
    (transaction,) = of_account.values()
    account = "0x" + chain.account("deployer").address.hex()
    await chain.rpc.command("anvil_impersonateAccount", account)
    copy = {
        "from": account,
        "to": transaction["to"],
        "data": transaction["input"],
        "gas": hex(2_000_000),
        "maxFeePerGas": hex(500 * 10**9),
        "maxPriorityFeePerGas": hex(50 * 10**9),
    }
    await chain.rpc.command("eth_sendTransaction", copy)


async def received(chain: Devnet) -> int:
    return await chain.token_balance(chain.account("payee").address) - 1_000_000 * 10**6


class Interrupted(KeySigner):
    """A signing service that runs a test's code before some of its signatures, counted from 1."""

    def __init__(
        self,
        private_key: bytes,
        meanwhile: Callable[[], Awaitable[object]],
        *,
        at: Container[int],
    ) -> None:
        super().__init__(private_key)
        self._meanwhile = meanwhile
        self._at = at
        self._asked = 0

    async def sign_transaction(self, tx: UnsignedTx) -> bytes:
        self._asked += 1
        if self._asked in self._at:
            await self._meanwhile()
        return await super().sign_transaction(tx)


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
