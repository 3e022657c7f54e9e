"""Tracks the age of chain facts, channel by channel (VCH-10, F-50, F-63, F-72).

A voucher never waits for the chain while the fact is younger than `fact_age_s_max`. Past
`fact_ttl_s` it starts a read in the background; one read per channel runs at a time. So everything
that is served rests on a fact much younger than the escrow's grace period, and only the first
voucher after a pause waits for a node.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from msgspec.structs import replace

from channel.chain import ChainReader, TransactionEvidence
from channel.engine.settings import EngineSettings
from channel.errors import (
    ChainUnavailableError,
    ChannelStoppedError,
    TooManyRequestsError,
    VerificationFailedError,
)
from channel.ledger.interface import Ledger
from channel.limits import CHAIN_CHECKS_MAX, CHAIN_CHECKS_PER_SOURCE_MAX, FACT_AGES_MAX
from channel.state.channel_state import ChannelState
from channel.state.commands import Observe
from channel.state.transitions import is_for_settler, is_known
from channel.tasks import Tasks
from channel.types import ChannelFact, ChannelId, ChannelKey, TxHash

__all__ = ["ChainFacts"]

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_ALL = "all"
_WAITING = "waiting"


class ChainFacts:
    """Reads the chain for the engine, no more often than the rules require."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        chain: ChainReader,
        settings: EngineSettings,
        now: Callable[[], float],
        background: Tasks,
    ) -> None:
        self._ledger = ledger
        self._chain = chain
        self._settings = settings
        self._now = now
        self._background = background
        self._read_at: OrderedDict[ChannelKey, float] = OrderedDict()
        self._checking: Counter[bytes | str] = Counter()

    async def require_fresh(self, key: ChannelKey) -> None:
        """Return immediately if the last read is young enough, otherwise after the next one.

        Raises:
            ChainUnavailableError: The last read is too old and no node answers.
            ChannelStoppedError: The chain does not have the channel.
        """
        age = self._now() - self._read_at.get(key, float("-inf"))
        if age < 0:  # the clock was set back, so the age is unknown
            age = float("inf")
        if age < self._settings.fact_ttl_s:
            return
        refreshing = self._refreshing(key)
        if age >= self._settings.fact_age_s_max:
            await asyncio.shield(refreshing)

    async def refresh(self, key: ChannelKey) -> ChannelState:
        """Read the channel now, and return the ledger's state with the new fact (F-50).

        A read that is already running may be older than what the caller knows, so another follows.
        """
        if (earlier := self._background.find(("refresh", key))) is not None:
            await asyncio.wait({earlier})
        return await asyncio.shield(self._refreshing(key))

    def _refreshing(self, key: ChannelKey) -> asyncio.Task[ChannelState]:
        return self._background.share(("refresh", key), partial(self._refresh, key))

    async def _refresh(self, key: ChannelKey) -> ChannelState:
        state = await self._ledger.load(key)
        fact = await self.read(key.channel_id, known_deposit=state.deposit if state else 0)
        if state is None or fact is None:
            raise ChannelStoppedError("The chain does not know this channel.")
        self.mark_read(key)
        if is_known(state, fact) or is_for_settler(state, fact):
            return state
        return (await self._ledger.apply(key, [Observe(fact)])).require()

    def mark_read(self, key: ChannelKey) -> None:
        """Record that the ledger holds the chain's current values."""
        self._read_at.pop(key, None)
        self._read_at[key] = self._now()
        if len(self._read_at) > FACT_AGES_MAX:
            self._read_at.popitem(last=False)

    async def read(
        self, channel_id: ChannelId, *, known_deposit: int = 0, block_min: int = 0
    ) -> ChannelFact | None:
        """Return the channel as of the head, with the deposit at the configured depth.

        Every other value is the head's: for those the newest is the cautious choice. A node that
        lags behind `block_min` is asked again, within a bound (F-72).

        Raises:
            ChainUnavailableError: No node has the block within the bound.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.transaction_wait_s
        fact = await self._chain.read_channel(channel_id)
        while block_min and (fact is None or fact.block_number < block_min):
            if loop.time() >= deadline:
                if fact is None:
                    return None
                raise ChainUnavailableError("The node is behind the transaction's block.")
            await asyncio.sleep(_POLL_S)
            fact = await self._chain.read_channel(channel_id)
        if fact is None or fact.deposit <= known_deposit:
            return fact
        fact = replace(fact, deposit=max(known_deposit, await self._confirmed(fact, deadline)))
        if self._settings.confirmations == 1:
            return fact
        deep = await self._chain.read_channel(
            channel_id, block_number=fact.block_number - self._settings.confirmations + 1
        )
        confirmed = deep.deposit if deep is not None else 0
        return replace(fact, deposit=min(fact.deposit, max(confirmed, known_deposit)))

    async def _confirmed(self, fact: ChannelFact, deadline: float) -> int:
        """Return the deposit that a second node confirms; ask again if it lags (O-88)."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                (deposit,) = await self._chain.confirm_deposits([fact])
            except ChainUnavailableError:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(_POLL_S)
            else:
                return deposit

    async def require_transaction(self, tx_hash: TxHash) -> TransactionEvidence:
        """Return a transaction that is mined, successful and deep enough (OPEN-02, OPEN-12).

        Raises:
            TransactionRevertedError: It reverted; that is final.
            VerificationFailedError: It is missing or not deep enough yet; ask again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.transaction_wait_s
        while True:
            evidence = await self._chain.read_transaction(tx_hash)
            if evidence and evidence.confirmations >= self._settings.confirmations:
                return evidence
            if loop.time() >= deadline:
                break
            await asyncio.sleep(_POLL_S)
        if evidence is None:
            raise VerificationFailedError("The transaction is not mined yet, or not known.")
        raise VerificationFailedError(
            f"The transaction has {evidence.confirmations} of {self._settings.confirmations}"
            " confirmations."
        )

    @asynccontextmanager
    async def bounded_check(
        self, client: bytes, signer: bytes = b"", *, waits: bool = False
    ) -> AsyncIterator[None]:
        """Run a check that a stranger can cause and that asks a node, bounded in number (F-98).

        The sources are the client's address, and a signer who has proven its key. A signer that
        is merely named does not count, because anyone could lock it out. Each source gets a few
        places, so that none can take them all; an empty source does not count. A check that
        `waits` for a block may use only half of all places: for an invented transaction it waits
        in vain, and a client with a few addresses could block the short checks of others.

        Raises:
            TooManyRequestsError: The allowed number is running, in total or for a source.
        """
        bounds: dict[bytes | str, int] = {}
        if client:
            bounds[client] = self._settings.chain_checks_per_address
        if signer:
            bounds[signer] = CHAIN_CHECKS_PER_SOURCE_MAX
        bounds[_ALL] = CHAIN_CHECKS_MAX
        if waits:
            bounds[_WAITING] = CHAIN_CHECKS_MAX // 2
        if any(self._checking[place] >= bound for place, bound in bounds.items()):
            raise TooManyRequestsError("Too many deposits are being checked.")
        self._checking.update(bounds.keys())
        try:
            yield
        finally:
            for place in bounds:
                self._checking[place] -= 1
                if not self._checking[place]:
                    del self._checking[place]
