"""Sweeps every open channel's state: nothing on chain is missed, no voucher dies in a grace period.

Events can be lost by a node, state cannot (F-73). So each sweep reads all open channels, a few
hundred per call, and tells the ledger what changed. Where the payer has asked for the rest, the
ledger stops service by its own rules; the watcher lets what runs end, decides the voucher by
`channel.state.ladder`, makes that durable, and closes, most valuable channel first (F-63, F-66).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from channel.chain import ChannelCloser
from channel.errors import InvariantError, OperatorError, PeerError, TransactionRevertedError
from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState
from channel.state.commands import (
    AbortClose,
    BeginClose,
    Command,
    CommitClose,
    EndReservations,
    Observe,
    RecordClose,
)
from channel.state.ladder import closing_voucher
from channel.types import ChannelFact, ChannelKey
from settlement.escrow import EscrowReader
from settlement.types import BlockRef

__all__ = ["ChannelWatcher", "Sweep", "WatchLimits"]

_log: Final = logging.getLogger(__name__)


class WatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often to look, and how much to do at once."""

    interval_s: float = 5.0
    channels_per_page: int = 500
    closes_at_once: int = 16
    patience_s: int = 120
    """How long after a close was asked for, in block time, what runs may still end by itself."""
    confirmations: int = 1
    """How deep a deposit must be to count; whatever speaks against us counts at once."""
    half_closed_s_max: float = 60.0
    """How long a close may take to decide its voucher, before whoever began it counts as dead."""


class Sweep(msgspec.Struct, frozen=True):
    """What one sweep did."""

    read: int = 0
    changed: int = 0
    closed: int = 0
    waiting: int = 0
    """Closes that wait for what runs to end, for a receipt, or for a node; tried next time."""


class ChannelWatcher:
    """Keeps one ledger in step with one escrow."""

    def __init__(
        self,
        reader: EscrowReader,
        ledger: Ledger,
        closer: ChannelCloser,
        *,
        limits: WatchLimits | None = None,
    ) -> None:
        self._reader = reader
        self._ledger = ledger
        self._closer = closer
        self._limits = limits or WatchLimits()
        self._half_closed: dict[ChannelKey, float] = {}

    async def run(self) -> None:
        """Sweep for ever. A node or a disk that is away is logged, and the next sweep tries again.

        Raises:
            InvariantError: A bug; the process must stop.
        """
        while True:
            try:
                sweep = await self.sweep()
            except OperatorError:
                _log.exception("the sweep of open channels failed; the next one tries again")
            else:
                if sweep.changed or sweep.closed or sweep.waiting:
                    _log.info("swept open channels: %s", sweep)
            await asyncio.sleep(self._limits.interval_s)

    async def sweep(self) -> Sweep:
        """Look at every open channel once, and close what must be closed.

        Raises:
            ChainUnavailableError: The node does not say how the channels stand.
            LedgerUnavailableError: What it says could not be recorded.
        """
        head = await self._reader.rpc.block()
        read, changed = 0, 0
        owed: list[ChannelState] = []
        half_closed: list[ChannelKey] = []
        async for page in self._pages():
            for state, fact in zip(page, await self._facts(page, head), strict=True):
                after = await self._observe(state, fact, head)
                changed += after is not state
                if _must_close(after):
                    owed.append(after)
                elif after.is_closing and not after.is_finalized:
                    half_closed.append(after.key)
            read += len(page)
        await self._reopen(half_closed)
        closed = await self._close_all(owed, head)
        return Sweep(read=read, changed=changed, closed=closed, waiting=len(owed) - closed)

    async def _pages(self) -> AsyncIterator[Sequence[ChannelState]]:
        """Yield the open channels of this escrow, a page at a time."""
        after = None
        while True:
            page = await self._ledger.list_channels(
                after=after, limit=self._limits.channels_per_page, open_only=True
            )
            if not page:
                return
            after = page[-1].key
            mine = (self._reader.chain_id, self._reader.escrow)
            yield [state for state in page if (state.key.chain_id, state.key.escrow) == mine]

    async def _facts(
        self, page: Sequence[ChannelState], head: BlockRef
    ) -> list[ChannelFact | None]:
        """Return the channels as of the head, with deposits as deep as configured (OPEN-12)."""
        ids = [state.key.channel_id for state in page]
        facts = await self._reader.read_channels(ids, block_number=head.number)
        if self._limits.confirmations == 1:
            return facts
        block_number = max(0, head.number - self._limits.confirmations + 1)
        confirmed = await self._reader.read_channels(ids, block_number=block_number)
        return [
            fact and replace(fact, deposit=min(fact.deposit, _confirmed(state, deep)))
            for state, fact, deep in zip(page, facts, confirmed, strict=True)
        ]

    async def _reopen(self, half_closed: Sequence[ChannelKey]) -> None:
        """Let channels go on whose close was begun and never decided: its process died.

        Nothing is owed to them yet: the payer may close again, with its own voucher.
        """
        now = asyncio.get_running_loop().time()
        self._half_closed = {key: self._half_closed.get(key, now) for key in half_closed}
        for key, since in self._half_closed.items():
            if now - since >= self._limits.half_closed_s_max:
                await self._ledger.apply(key, [AbortClose()])

    async def _observe(
        self, state: ChannelState, fact: ChannelFact | None, head: BlockRef
    ) -> ChannelState:
        """Tell the ledger what changed; nothing is written for a channel that is as it was."""
        if head.number < state.fact_block:
            return state  # this node lags behind what we know
        if fact is None:
            fact = _never_opened(state, head)
        seen = (fact.deposit, fact.settled, fact.close_requested_at, fact.is_finalized)
        known = (state.deposit, state.settled, state.close_requested_at, state.is_finalized)
        if seen == known:
            return state
        if fact.is_finalized and state.closing_with is not None:
            return state  # our close, perhaps: it is recorded together with its transaction
        after = (await self._ledger.apply(state.key, [Observe(fact)])).require()
        _report_loss(after)
        return after

    async def _close_all(self, owed: Sequence[ChannelState], head: BlockRef) -> int:
        """Close channels, the most valuable first; one that fails does not stop the others."""
        by_value = sorted(owed, key=lambda state: state.spent - state.settled, reverse=True)
        room = asyncio.Semaphore(self._limits.closes_at_once)

        async def close(state: ChannelState) -> bool:
            async with room:
                return await self._close(state, head)

        results = await asyncio.gather(*map(close, by_value), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results.count(True)

    async def _close(self, state: ChannelState, head: BlockRef) -> bool:
        """Close one channel; False when that has to wait for the next sweep."""
        name = state.key.channel_id.hex()
        try:
            return await self._decide_and_close(state, head)
        except TransactionRevertedError as error:
            _log.error("channel %s: the close was refused, to be tried again: %s", name, error)
        except (OperatorError, PeerError) as error:
            _log.warning("channel %s: not closed yet: %s", name, error)
            return False
        await self._ledger.apply(state.key, [AbortClose()])
        return False

    async def _decide_and_close(self, state: ChannelState, head: BlockRef) -> bool:
        if state.closing_with is None:
            begin: list[Command] = [BeginClose()]
            if head.timestamp - state.close_requested_at > self._limits.patience_s:
                begin.append(EndReservations())
            state = (await self._ledger.apply(state.key, begin)).require()
            if state.reservations:
                return False
            commit = CommitClose(closing_voucher(state, None))
            state = (await self._ledger.apply(state.key, [commit])).require()
        voucher = state.closing_with
        if voucher is None:
            msg = "a close was decided without a voucher"
            raise InvariantError(msg)
        # Durable by now: that this voucher is public, and that the channel is owed a close.
        result = await self._closer.close_channel(
            state.key, voucher.cumulative_amount, voucher.signature
        )
        record = RecordClose(fact=result.fact, tx_hash=result.tx_hash)
        _report_loss((await self._ledger.apply(state.key, [record])).require())
        return True


def _report_loss(state: ChannelState) -> None:
    """Say so when a channel ended for less than was delivered (F-64)."""
    if state.is_finalized and state.spent > state.settled:
        name, lost = state.key.channel_id.hex(), state.spent - state.settled
        _log.error("channel %s ended with %d delivered and unpaid", name, lost)


def _must_close(state: ChannelState) -> bool:
    """Whether a close is owed: one that was decided, or a payer's exit that would cost us.

    When nothing beyond `settled` was delivered, the payer may just withdraw.
    """
    if state.is_finalized:
        return False
    if state.closing_with is not None:
        return True
    return state.close_requested_at != 0 and state.spent + state.reserved > state.settled


def _confirmed(state: ChannelState, deep: ChannelFact | None) -> int:
    """Return the deposit that counts: what is deep enough, or what counted before."""
    return max(state.deposit, 0 if deep is None else deep.deposit)


def _never_opened(state: ChannelState, head: BlockRef) -> ChannelFact:
    """Return the fact of a channel whose opening the chain took back: no deposit (F-70)."""
    return ChannelFact(
        key=state.key,
        terms=state.terms,
        deposit=0,
        settled=0,
        close_requested_at=0,
        is_finalized=False,
        block_number=head.number,
    )
