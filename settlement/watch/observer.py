"""Reads channels from the chain, page by page, and tells the ledger what changed.

Only absolute values travel, so a fact read twice or late does no harm (F-29). A block that is
older than what the books rest on changes nothing, unless a reorg took that away (F-72).
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
"""Nodes that say the same of what speaks against us, where another says something else."""


class ChannelObserver:
    """Keeps one ledger's chain facts as one escrow's storage has them."""

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
        """Observe one payee's channels, or everybody's.

        Those that ended within `tail_blocks` are remembered against a reorg.
        """
        self._reader = reader
        self._ledger = ledger
        self._alarms = alarms
        self._payee = payee
        self._confirmations = confirmations
        self._page_size = page_size
        self._tail_blocks = tail_blocks
        self._ended: dict[ChannelKey, int] | None = None
        """Channels that ended lately, and in which block they had."""
        self._unended: set[ChannelId] = set()
        """Channels that no head has shown to have ended. Who closes one writes that down before
        the watch has read it, and until then a reorg would take it back unseen."""

    async def load(self, channel_ids: Iterable[ChannelId]) -> list[ChannelState]:
        """Return those of these channels that the books know."""
        loaded = [await self._ledger.load(self._reader.key(each)) for each in channel_ids]
        return [state for state in loaded if state is not None and self._is_mine(state)]

    @property
    def newest_ended(self) -> int:
        """The newest block in which a channel that is remembered ended; 0 without any."""
        return max((self._ended or {}).values(), default=0)

    async def pages(self, unsure_above: int | None) -> AsyncIterator[Sequence[ChannelState]]:
        """Yield the open channels of this escrow, and those that may be, whatever the books say.

        Those are the ended ones that no head has shown to be yet, and those that ended above
        `unsure_above`, where an end may have been taken back; None for nowhere.
        """
        if self._ended is None:
            self._ended = {}
            async for page in self._ledger_pages(open_only=False):
                self._remember(page)
        unsure = set(self._unended)
        if unsure_above is not None:  # what ends while we read is not meant
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
        """Read a page of channels at the head, and return the books with it taken over.

        Args:
            page: Channels as the books have them.
            head: The block to read at.
            forked_at: Last block that a reorg left standing: facts above it count for nothing.
            believes_deposits: Whether a deposit that rose is taken over; what speaks against us
                always is.

        Raises:
            ChainUnavailableError: The node does not say how the channels stand.
            LedgerUnavailableError: It could not be recorded.
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
        """Whether it is of this escrow and payee: books may hold several."""
        mine = (self._reader.chain_id, self._reader.escrow)
        is_payees = self._payee in (None, state.terms.payee)
        return is_payees and (state.key.chain_id, state.key.escrow) == mine

    async def _facts(
        self, page: Sequence[ChannelState], head: BlockRef, *, believes_deposits: bool
    ) -> list[ChannelFact | None]:
        """Return the channels as of the head, with deposits as deep as configured (OPEN-12).

        A second read is only needed for those whose deposit rose.
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
        """Return the facts as they are believed, where other nodes may say something else (O-88).

        An exit that this node hides is heard from another. What would end or stop a channel, or
        says that somebody else settled it, changes nothing while no other node says the same:
        this one is asked last from then on.
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
            text = f"one says of {alone + len(hidden)} channels what another does not"
            self._alarms.ring(AlarmKind.NODES_DISAGREE, text, level=2, subject="channels")
        else:
            self._alarms.end(AlarmKind.NODES_DISAGREE, subject="channels")
        return believed

    async def _confirmed(
        self, risen: Sequence[ChannelFact], head: BlockRef
    ) -> dict[ChannelKey, int]:
        """Return of risen deposits what a second node shows, too, as deep as configured (O-88).

        Nothing while no second node answers: it is looked for again with the next sweep.
        """
        try:
            deposits = await self._reader.confirm_deposits(risen)
        except ChainUnavailableError as error:
            _log.warning("a risen deposit does not count yet: %s", error)
            return {}
        counted = {fact.key: deposit for fact, deposit in zip(risen, deposits, strict=True)}
        denied = [fact for fact in risen if counted[fact.key] < fact.deposit]
        if denied:
            text = f"one shows {len(denied)} deposits that no other does: they do not count"
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
        """Tell the ledger what changed; nothing is written for a channel that is as it was."""
        is_older = head.number < state.fact_block
        is_rollback = forked_at is not None and state.fact_block > forked_at
        if is_older and not is_rollback:
            return state  # this node lags behind what we know
        fact = fact or _never_opened(state, head)
        if _agrees(state, fact) and not is_older:
            return state
        if fact.is_finalized and not state.is_finalized and state.closing_with is not None:
            return state  # our close, perhaps: it is recorded together with its transaction
        observe = Observe(fact, is_rollback=is_rollback, at=head.timestamp)
        after = (await self._ledger.apply(state.key, [observe])).require()
        self._report(state, after)
        return after

    def _report(self, before: ChannelState, after: ChannelState) -> None:
        name = f"0x{after.key.channel_id.hex()}"
        if before.is_finalized and not after.is_finalized:
            _log.warning("channel %s is open again: a reorg took its end back", name)
            self._alarms.end(AlarmKind.CHANNEL_LOST, subject=name)
        if after.is_finalized and not before.is_finalized:
            report_loss(after, self._alarms)

    def _remember(self, states: Iterable[ChannelState], head: BlockRef | None = None) -> None:
        """Keep which channels ended lately: a reorg may open them again.

        Without a head it is the books that say so, after a start.
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


def _agrees(state: ChannelState, fact: ChannelFact) -> bool:
    seen = (fact.deposit, fact.settled, fact.close_requested_at, fact.is_finalized)
    return seen == (state.deposit, state.settled, state.close_requested_at, state.is_finalized)


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


def _is_against(state: ChannelState, fact: ChannelFact | None) -> bool:
    """Whether a fact ends or stops a channel, or says that somebody else settled it."""
    if fact is None or fact.deposit < state.deposit or fact.settled > state.published:
        return True
    return fact.is_finalized and not state.is_finalized and state.closing_with is None


def _is_same(one: ChannelFact | None, other: ChannelFact | None) -> bool:
    """Whether two nodes say the same of a channel's money and of its end."""
    if one is None or other is None:
        return one is other
    return (one.deposit, one.settled, one.is_finalized) == (
        other.deposit,
        other.settled,
        other.is_finalized,
    )


def as_known(state: ChannelState, head: BlockRef) -> ChannelFact:
    """Return the channel as the books have it, at a block."""
    return ChannelFact(
        key=state.key,
        terms=state.terms,
        deposit=state.deposit,
        settled=state.settled,
        close_requested_at=state.close_requested_at,
        is_finalized=state.is_finalized,
        block_number=head.number,
    )
