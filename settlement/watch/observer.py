"""Reads channels from the chain, page by page, and records changes in the ledger.

Only absolute values are recorded, so reading a fact twice or late is harmless (F-29). A fact from a
block older than the ledger's is ignored, unless a reorg removed the ledger's (F-72).
"""

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from channel.errors import ChainUnavailableError
from channel.ledger.interface import Ledger
from channel.limits import EXITS_BELIEVED_MAX
from channel.state.channel_state import ChannelState
from channel.state.commands import Observe
from channel.state.transitions import is_for_settler, is_known
from channel.types import Address, ChannelFact, ChannelId, ChannelKey
from settlement.alarms import AlarmKind, Alarms
from settlement.escrow.reader import EscrowReader
from settlement.node.blocks import confirmed_number
from settlement.settle.executor import report_loss
from settlement.settle.schedule import value_at_risk
from settlement.types import BlockRef

__all__ = ["ChannelObserver", "as_known"]

_log: Final = logging.getLogger(__name__)

_NODES_MIN: Final = 2
"""Nodes that must agree on a fact to the payee's disadvantage, if nodes differ."""


class ChannelObserver:
    """Keeps a ledger's chain facts equal to one escrow's storage."""

    def __init__(
        self,
        reader: EscrowReader,
        ledger: Ledger,
        alarms: Alarms,
        *,
        payee: Address | None = None,
        confirmations: int,
        page_size: int,
        tail_blocks: int,
    ) -> None:
        """Observe one payee's channels, or those of every payee.

        Channels that ended within `tail_blocks` stay observed, in case a reorg reopens them.
        """
        self._reader = reader
        self._ledger = ledger
        self._alarms = alarms
        self._payee = payee
        self._confirmations = confirmations
        self._page_size = page_size
        self._tail_blocks = tail_blocks
        self._ended: dict[ChannelKey, int] | None = None
        """Channels that ended recently, with the block of their end."""
        self._unended: set[ChannelId] = set()
        """Channels whose end no head has shown yet. The closer records a close before the watcher
        reads it; until then a reorg could undo it unnoticed."""

    async def load(self, channel_ids: Iterable[ChannelId]) -> list[ChannelState]:
        """Return those of these channels that are in the ledger."""
        loaded = [await self._ledger.load(self._reader.key(each)) for each in channel_ids]
        return [state for state in loaded if state is not None and self._is_mine(state)]

    @property
    def newest_ended(self) -> int:
        """The newest block in which an observed channel ended; 0 without any."""
        return max((self._ended or {}).values(), default=0)

    async def pages(self, unsure_above: int | None) -> AsyncIterator[Sequence[ChannelState]]:
        """Yield this escrow's open channels, and ended ones that may be open again.

        Those are ended channels whose end no head has shown yet, and channels that ended above
        `unsure_above`, where a reorg may have undone the end; None for none.
        """
        if self._ended is None:
            self._ended = {}
            async for page in self._ledger_pages(open_only=False):
                self._remember(page)
        unsure = set(self._unended)
        if unsure_above is not None:  # not the channels that end while this reads
            ended = self._ended.items()
            unsure |= {key.channel_id for key, number in ended if number > unsure_above}
        async for page in self._ledger_pages(open_only=True):
            unsure.difference_update(state.key.channel_id for state in page)
            yield page
        doubtful = sorted(unsure)
        for start in range(0, len(doubtful), self._page_size):
            page = await self.load(doubtful[start : start + self._page_size])
            yield [state for state in page if state.is_finalized]

    async def take(
        self,
        page: Sequence[ChannelState],
        head: BlockRef,
        forked_at: int | None,
        *,
        believes_deposits: bool = True,
    ) -> list[ChannelState]:
        """Read a page of channels at the head, record changes, and return the new states.

        Args:
            page: Channels as in the ledger.
            head: The block to read at.
            forked_at: Last block that a reorg kept: facts from later blocks are void.
            believes_deposits: Whether to record a raised deposit. Facts to the payee's disadvantage
                are always recorded.

        Raises:
            ChainUnavailableError: No node gives the channels' state.
            LedgerUnavailableError: A change could not be recorded.
        """
        if not page:
            return []
        facts = await self._facts(page, head, believes_deposits=believes_deposits)
        states = [
            await self._observe(state, fact, head, forked_at)
            for state, fact in zip(page, facts, strict=True)
        ]
        self._remember(states, head)
        self._forget(head)
        return states

    async def _ledger_pages(self, *, open_only: bool) -> AsyncIterator[Sequence[ChannelState]]:
        after = None
        while True:
            page = await self._ledger.list_channels(
                after=after, limit=self._page_size, open_only=open_only
            )
            if not page:
                return
            after = page[-1].key
            own = [state for state in page if self._is_mine(state)]
            if own:
                yield own

    def _is_mine(self, state: ChannelState) -> bool:
        """Whether a channel belongs to this escrow and payee: a ledger may hold several."""
        mine = (self._reader.chain_id, self._reader.escrow)
        is_payees = self._payee in (None, state.terms.payee)
        return is_payees and (state.key.chain_id, state.key.escrow) == mine

    async def _facts(
        self, page: Sequence[ChannelState], head: BlockRef, *, believes_deposits: bool
    ) -> list[ChannelFact | None]:
        """Return the channels as of the head, with deposits of the configured depth (OPEN-12).

        Only channels with a raised deposit need a second read.
        """
        facts = await self._reader.read_channels_at([each.key.channel_id for each in page], head)
        if self._reader.rpc.node_count > 1:
            facts = await self._held_against_others(page, facts, head)
        known = {state.key: state.deposit for state in page}
        risen = [fact for fact in facts if fact and fact.deposit > known[fact.key]]
        if not risen:
            return facts
        counted = {fact.key: known[fact.key] for fact in risen}
        if believes_deposits:
            counted |= await self._confirmed(risen, head)
        return [
            fact
            and replace(
                fact,
                deposit=min(
                    fact.deposit, max(known[fact.key], counted.get(fact.key, fact.deposit))
                ),
            )
            for fact in facts
        ]

    async def _held_against_others(
        self, page: Sequence[ChannelState], facts: Sequence[ChannelFact | None], head: BlockRef
    ) -> list[ChannelFact | None]:
        """Return the facts to believe, where other nodes may show different ones (O-88).

        An exit that this node hides is taken from another node. A fact that would end or stop a
        channel, or shows a settle by another process, is ignored until another node confirms it;
        this node is then marked unhealthy.
        """
        believed = list(facts)
        doubtful = [
            at
            for at, (state, fact) in enumerate(zip(page, facts, strict=True))
            if value_at_risk(state) or _is_against(state, fact)
        ]
        if not doubtful:
            return believed
        views = await self._reader.read_each(
            [page[at].key.channel_id for at in doubtful], block_number=head.number
        )
        hidden, alone = [], 0
        for at, said in zip(doubtful, views, strict=True):
            state, fact = page[at], facts[at]
            others = [each for each in said if not _is_same(each, fact)]
            if _is_against(state, fact) and others and len(said) - len(others) < _NODES_MIN:
                believed[at] = as_known(state, head)
                alone += 1
            elif fact is not None and not fact.close_requested_at:
                hidden += [(at, each) for each in said if each and each.close_requested_at][:1]
        if len(hidden) <= EXITS_BELIEVED_MAX:
            for at, exit_ in hidden:
                believed[at] = exit_
        if alone:
            self._reader.rpc.mark_unhealthy()
        if alone or hidden:
            text = f"one node shows {alone + len(hidden)} channels differently from another"
            self._alarms.ring(AlarmKind.NODES_DISAGREE, text, level=2, subject="channels")
        else:
            self._alarms.end(AlarmKind.NODES_DISAGREE, subject="channels")
        return believed

    async def _confirmed(
        self, risen: Sequence[ChannelFact], head: BlockRef
    ) -> dict[ChannelKey, int]:
        """Return raised deposits as a second node confirms them, at the configured depth (O-88).

        Empty while no second node answers; the next sweep tries again.
        """
        try:
            deposits = await self._reader.confirm_deposits(risen)
        except ChainUnavailableError as error:
            _log.warning("a raised deposit is not confirmed yet: %s", error)
            return {}
        counted = {fact.key: deposit for fact, deposit in zip(risen, deposits, strict=True)}
        denied = [fact for fact in risen if counted[fact.key] < fact.deposit]
        if denied:
            text = f"one node shows {len(denied)} deposits that no other does: they are ignored"
            self._alarms.ring(AlarmKind.NODES_DISAGREE, text, level=2, subject="deposits")
            self._reader.rpc.mark_unhealthy()
        else:
            self._alarms.end(AlarmKind.NODES_DISAGREE, subject="deposits")
        if self._confirmations > 1:
            deep = await self._reader.read_channels(
                [fact.key.channel_id for fact in risen],
                block_number=confirmed_number(head, self._confirmations),
            )
            at_depth = {fact.key: fact.deposit for fact in deep if fact}
            counted = {key: min(each, at_depth.get(key, 0)) for key, each in counted.items()}
        return counted

    async def _observe(
        self,
        state: ChannelState,
        fact: ChannelFact | None,
        head: BlockRef,
        forked_at: int | None,
    ) -> ChannelState:
        """Record what changed. Nothing is written for an unchanged channel."""
        is_older = head.number < state.fact_block
        is_rollback = forked_at is not None and state.fact_block > forked_at
        if is_older and not is_rollback:
            return state  # this node lags behind the ledger
        fact = fact or _never_opened(state, head)
        if is_known(state, fact) and not is_older:
            return state
        if is_for_settler(state, fact):
            return state
        observe = Observe(fact, is_rollback=is_rollback, at=head.timestamp)
        after = (await self._ledger.apply(state.key, [observe])).require()
        self._report(state, after)
        return after

    def _report(self, before: ChannelState, after: ChannelState) -> None:
        name = f"0x{after.key.channel_id.hex()}"
        if before.is_finalized and not after.is_finalized:
            _log.warning("channel %s is open again: a reorg undid its end", name)
            self._alarms.end(AlarmKind.CHANNEL_LOST, subject=name)
        if after.is_finalized and not before.is_finalized:
            report_loss(after, self._alarms)

    def _remember(self, states: Iterable[ChannelState], head: BlockRef | None = None) -> None:
        """Keep which channels ended recently: a reorg may reopen them.

        Without a head the ledger says so, after a start.
        """
        if self._ended is None:
            self._ended = {}
        for state in states:
            if state.is_finalized and (head is None or state.fact_block <= head.number):
                self._ended[state.key] = state.fact_block
                self._unended.discard(state.key.channel_id)
            else:
                self._ended.pop(state.key, None)
                self._unended.add(state.key.channel_id)

    def _forget(self, head: BlockRef) -> None:
        oldest = head.number - self._tail_blocks
        if self._ended and min(self._ended.values()) < oldest:
            self._ended = {key: number for key, number in self._ended.items() if number >= oldest}


def _never_opened(state: ChannelState, head: BlockRef) -> ChannelFact:
    """Return the fact of a channel whose opening a reorg removed: no deposit (F-70)."""
    return ChannelFact(
        key=state.key,
        terms=state.terms,
        deposit=0,
        settled=0,
        close_requested_at=0,
        is_finalized=False,
        block_number=head.number,
    )


def _is_against(state: ChannelState, fact: ChannelFact | None) -> bool:
    """Whether a fact ends or stops a channel, or shows a settle by another process."""
    if fact is None or fact.deposit < state.deposit or fact.settled > state.published:
        return True
    return fact.is_finalized and not state.is_finalized and state.closing_with is None


def _is_same(one: ChannelFact | None, other: ChannelFact | None) -> bool:
    """Whether two nodes show the same amounts and the same end of a channel."""
    if one is None or other is None:
        return one is other
    return (one.deposit, one.settled, one.is_finalized) == (
        other.deposit,
        other.settled,
        other.is_finalized,
    )


def as_known(state: ChannelState, head: BlockRef) -> ChannelFact:
    """Return the ledger's state of a channel as a fact at a block."""
    return ChannelFact(
        key=state.key,
        terms=state.terms,
        deposit=state.deposit,
        settled=state.settled,
        close_requested_at=state.close_requested_at,
        is_finalized=state.is_finalized,
        block_number=head.number,
    )
