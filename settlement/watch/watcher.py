"""Watches the chain twice: by the events of each block, and by the state of every open channel.

Events are fast and can be lost by a node; state is sure and costs a read of everything (F-73). So
the watcher follows the head and reads the channels that events name, and now and then reads all
open channels, a few hundred per call. Either way the ledger hears absolute values: a reorg moves
them back and forward again, and `spent` never moves by it (decision 11). What must be closed or
settled then is decided by `schedule` and carried out by `defence`, beside the watching.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from channel.errors import ChainUnavailableError, OperatorError
from channel.ledger.interface import Ledger
from channel.limits import GRACE_PERIOD_S_MIN
from channel.state.channel_state import ChannelState
from channel.state.commands import AbortClose
from channel.types import Address, ChannelId, ChannelKey
from settlement.alarms import Alarms
from settlement.escrow.reader import EscrowReader
from settlement.log_once import LogOnce
from settlement.node.block_notifier import BlockNotifier
from settlement.node.chain_clock import ChainClock
from settlement.settle.due import DueList, SweepState
from settlement.settle.executor import CloseExecutor, Settler
from settlement.settle.schedule import Due, Moment, SettlePolicy, choose
from settlement.types import BlockRef
from settlement.watch.follower import ChainFollower, FollowLimits, Step
from settlement.watch.health import HealthChecks
from settlement.watch.observer import ChannelObserver
from settlement.watch.watch_alarms import WatchAlarms

__all__ = ["STILL_S_MAX", "ChannelWatcher", "Sweep", "WatchLimits"]

_log: Final = logging.getLogger(__name__)

STILL_S_MAX: Final = 300.0


class WatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often to look, and how much to do at once."""

    interval_s: float = 15.0
    """Between two sweeps of every open channel."""
    poll_interval_s: float = 2.0
    """Between two looks at the head, where no websocket tells of blocks."""
    channels_per_page: int = 500
    closes_at_once: int = 512
    retry_s: float = 2.0
    """After a refusal by the escrow; doubles each time, up to a minute."""
    confirmations: int = 1
    """How deep a deposit must be to count; whatever speaks against us counts at once."""
    half_closed_s_max: float = 60.0
    """How long a close may take to decide its voucher, before whoever began it counts as dead."""
    away_s_max: float = 60.0
    """How long no node may answer, or all lag behind, before somebody is told."""
    still_s_max: float | None = STILL_S_MAX
    """How long a node may show no new block before somebody is told; None: for ever."""
    skew_s_max: float = 60.0
    """How far this machine's clock and the chain's may differ."""
    follow: FollowLimits = FollowLimits()


class Sweep(msgspec.Struct, frozen=True):
    """What one look at the channels did."""

    read: int = 0
    changed: int = 0
    closed: int = 0
    settled: int = 0
    waiting: int = 0
    """Closes that wait for what runs to end, for a receipt, or for a node; tried next time."""


class ChannelWatcher:
    """Keeps one ledger in step with one escrow, and defends what is owed."""

    def __init__(
        self,
        reader: EscrowReader,
        ledger: Ledger,
        settler: Settler | None,
        *,
        payee: Address | None = None,
        limits: WatchLimits | None = None,
        policy: SettlePolicy | None = None,
        heads: BlockNotifier | None = None,
        health: HealthChecks | None = None,
    ) -> None:
        """Watch one payee's channels, or all of the escrow.

        Args:
            reader: The escrow.
            ledger: The books.
            settler: Who settles and closes; None where another process does.
            payee: Whose channels to look at and defend; everybody's if None.
            limits: How often to look.
            policy: When to settle and close.
            heads: What tells of new blocks; polling if None.
            health: What is looked after beside the channels, with the alarms.
        """
        self._reader = reader
        self._ledger = ledger
        self._limits = limits or WatchLimits()
        self._policy = policy or SettlePolicy()
        self.alarms = Alarms() if health is None else health.alarms
        self.clock = ChainClock()
        self._blocks = heads or BlockNotifier(poll_interval_s=self._limits.poll_interval_s)
        self._follower = ChainFollower(reader, payee=payee, limits=self._limits.follow)
        self._observer = ChannelObserver(
            reader,
            ledger,
            self.alarms,
            payee=payee,
            confirmations=self._limits.confirmations,
            page_size=self._limits.channels_per_page,
            tail_blocks=self._limits.follow.tail_blocks_max,
        )
        self._executor = (
            None
            if settler is None
            else CloseExecutor(
                ledger,
                settler,
                self.alarms,
                at_once=self._limits.closes_at_once,
                retry_s=self._limits.retry_s,
            )
        )
        self._health = health
        self._due_list = (
            DueList(self._policy, half_closed_s_max=self._limits.half_closed_s_max)
            if health is None
            else DueList(
                self._policy,
                half_closed_s_max=self._limits.half_closed_s_max,
                is_crowded=health.gate.is_signer_crowded,
            )
        )
        self._telling = WatchAlarms(
            self.alarms,
            away_s_max=self._limits.away_s_max,
            skew_s_max=self._limits.skew_s_max,
            still_s_max=self._limits.still_s_max,
        )
        self._log_once = LogOnce(_log, "the chain was not looked at; tried again: %s")
        self._grace_period_s: int | None = None
        self._swept_at = float("-inf")
        self._looked_at: float | None = None
        self._touched: set[ChannelId] = set()
        self._forked_at: int | None = None
        self._unsure_above: int | None = None
        """What ended above this block is read again: we may not have seen it taken back."""
        self._newest_fact = 0
        """The newest block that the books rested on when every channel was last read."""

    @property
    def head(self) -> BlockRef | None:
        """The newest block seen."""
        return self._follower.head

    @property
    def looked_s_ago(self) -> float | None:
        """How long ago the chain was last looked at with success; None before the first time."""
        if self._looked_at is None:
            return None
        return asyncio.get_running_loop().time() - self._looked_at

    async def run(self) -> None:
        """Watch for ever. A node or a disk that is away is logged, and tried again.

        Raises:
            InvariantError: A bug; the process must stop.
        """
        listening = asyncio.create_task(self._blocks.listen())
        try:
            while True:
                await self._turn()
                await self._blocks.wait()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            if self._executor is not None:
                await self._executor.aclose()

    async def sweep(self) -> Sweep:
        """Look at every open channel once, do what is due, and wait until that is done.

        Raises:
            ChainUnavailableError: The node does not say how the channels stand.
            LedgerUnavailableError: What it says could not be recorded.
            InvariantError: A bug.
        """
        self._swept_at = float("-inf")
        sweep, dues = await self._look()
        if self._executor is None:
            return sweep
        done = await self._executor.carry_out(dues)
        return replace(sweep, closed=done.closed, settled=done.settled, waiting=done.waiting)

    async def look(self) -> Sweep:
        """Look at the head once and at what it touched; at everything only when that is due.

        Raises:
            ChainUnavailableError: The node does not answer, or contradicts itself.
            LedgerUnavailableError: What it says could not be recorded.
        """
        sweep, _ = await self._look()
        return sweep

    def begin_pending(self, states: Sequence[ChannelState]) -> None:
        """Begin closes that a worker has decided, without waiting for the next look."""
        if self._executor is not None and self.head is not None:
            self._executor.submit(self._choose(self._decide(states)))

    async def _turn(self) -> None:
        """Look, and begin what is due. Alarms ring also when there is nothing to see."""
        now = asyncio.get_running_loop().time()
        try:
            sweep, dues = await self._look()
        except OperatorError as error:
            self._log_once.make(error)
            if isinstance(error, ChainUnavailableError):
                self._reader.rpc.mark_unhealthy()  # also of one that answers, with nonsense
            self._telling.unanswered(now, error)
        else:
            self._looked_at = now
            self._log_once.over()
            self._telling.answered(now)
            if sweep.changed:
                _log.info("channels changed on chain: %d", sweep.changed)
            if self._executor is not None:
                self._executor.submit(dues)
        self._telling.graces(self._due_list.owed, self._moment)
        if self._executor is not None:
            self._executor.require_sound()

    # Looking.

    async def _look(self) -> tuple[Sweep, list[Due]]:
        """Follow the head; read what was touched, or everything when that is due."""
        step = await self._follower.step()
        is_behind_for_long = self._note(step)
        loop = asyncio.get_running_loop()
        if is_behind_for_long:
            await self._leave_fork(step.head)
        if step.is_behind:
            dues = self._choose(self._decide(self._due_list.owed.values()))
            return Sweep(), await self._believed(dues, step.head)
        if loop.time() - self._swept_at >= self._limits.interval_s:
            if self._health is not None:
                await self._health.begin()
            await self._read_grace_period()
            began = loop.time()
            sweep, dues = await self._read_all(step.head)
            self._swept_at = began
            self._forked_at = self._doubt_from(self._newest_fact)
            if self._observer.newest_ended <= step.head.number:  # else this node cannot tell
                self._unsure_above = self._forked_at
        else:
            ids = self._touched | {key.channel_id for key in self._due_list.owed}
            if not ids:
                return Sweep(), []
            sweep, dues = await self._read_some(ids, step.head)
        self._touched.clear()
        return sweep, await self._believed(self._choose(dues), step.head)

    async def _leave_fork(self, head: BlockRef) -> None:
        """Begin anew where most nodes are, if the head we hold to was one node's own.

        Else one that was believed for a moment would have every other one behind it for ever.
        """
        forked_at = None if self._health is None else await self._health.find_fork(head)
        if forked_at is not None:
            self._follower.forget()
            before = forked_at if self._forked_at is None else self._forked_at
            self._forked_at = min(before, forked_at)
            self._doubt(forked_at)
            self._telling.reorg(forked_at, head_number=head.number, is_deep=True)

    def _doubt(self, number: int) -> None:
        """Read everything at the next look, also what ended above this block."""
        before = number if self._unsure_above is None else self._unsure_above
        self._unsure_above = min(before, number)
        self._swept_at = float("-inf")

    def _note(self, step: Step) -> bool:
        """Remember what a step showed, until it has been read; say if it lags for long."""
        self._touched |= step.touched
        is_stuck = self._telling.moved(asyncio.get_running_loop().time(), is_new=step.is_new)
        is_behind = self._telling.behind(step.head.number, is_behind=step.is_behind)
        if is_behind or is_stuck:
            self._reader.rpc.mark_unhealthy()
        if step.is_new:
            self.clock.saw(step.head)
            self._telling.grown(step.head.number)
            self._telling.skew(self.clock.skew_s)
        if step.has_gap:
            self._doubt(max(0, step.head.number - self._limits.follow.tail_blocks_max))
        if step.forked_at is not None:
            before = step.forked_at if self._forked_at is None else self._forked_at
            self._forked_at = min(before, step.forked_at)
            self._doubt(step.forked_at)
            depth = step.head.number - step.forked_at
            self._telling.reorg(
                step.forked_at,
                head_number=step.head.number,
                is_deep=depth > self._limits.confirmations,
            )
        return is_behind

    async def _read_grace_period(self) -> None:
        self._grace_period_s = await self._reader.read_grace_period_s()
        self._telling.grace_period(self._grace_period_s)

    async def _read_all(self, head: BlockRef) -> tuple[Sweep, list[Due]]:
        """Read every open channel, and those whose end is in doubt."""
        read, changed, newest = 0, 0, 0
        dues: list[Due] = []
        found = SweepState()
        async for page in self._observer.pages(self._unsure_above):
            states = await self._take(page, head)
            read += len(page)
            newest = max([newest, *(state.fact_block for state in states)])
            changed += sum(a is not b for a, b in zip(page, states, strict=True))
            moment = self._moment()
            for state in states:
                dues += self._due_list.take_in_round(state, moment, found)
                if self._health is not None:
                    self._health.show(state, now=moment.now)
        await self._reopen(self._due_list.end_round(found))
        self._telling.books(found.behind)
        if self._health is not None:
            await self._health.check(head, found.totals)
        self._newest_fact = newest
        return Sweep(read=read, changed=changed), dues

    def _doubt_from(self, newest: int) -> int | None:
        """Return above which block facts are to be read again: most nodes do not have it yet."""
        return None if self._health is None else self._health.fork_below(newest)

    async def _read_some(
        self, channel_ids: set[ChannelId], head: BlockRef
    ) -> tuple[Sweep, list[Due]]:
        """Read the channels that events named, and those that owe a close."""
        page = await self._observer.load(channel_ids)
        states = await self._take(page, head)
        moment = self._moment()
        dues = [due for state in states for due in self._due_list.take(state, moment)]
        if self._health is not None:
            for state in states:
                self._health.show(state, now=moment.now)
        changed = sum(a is not b for a, b in zip(page, states, strict=True))
        return Sweep(read=len(page), changed=changed), dues

    async def _take(self, page: Sequence[ChannelState], head: BlockRef) -> list[ChannelState]:
        is_disputed = self._health is not None and self._health.gate.is_disputed
        return await self._observer.take(
            page, head, self._forked_at, believes_deposits=not is_disputed
        )

    async def _reopen(self, half_closed: Sequence[ChannelKey]) -> None:
        """Let channels go on whose close was begun and never decided: its process died.

        Nothing is owed to them yet: the payer may close again, with its own voucher. One that was
        decided since it was read is left alone.
        """
        for key in half_closed:
            await self._ledger.apply(key, [AbortClose(undecided_only=True)])

    # Deciding.

    def _decide(self, states: Iterable[ChannelState]) -> list[Due]:
        """Return what is due by what is known: no node is needed."""
        moment = self._moment()
        return [due for state in states for due in self._due_list.decide(state, moment)]

    async def _believed(self, dues: list[Due], head: BlockRef) -> list[Due]:
        """Return what is due without what one node may have invented."""
        if self._health is None:
            return dues
        return await self._health.believe_exits(dues, self._due_list.owed, head)

    def _choose(self, dues: Sequence[Due]) -> list[Due]:
        return choose(dues, self._moment(), self._policy)

    def _moment(self) -> Moment:
        head = self._follower.head
        return Moment(
            now=self.clock.now(),
            earliest=self.clock.earliest(),
            grace_period_s=self._grace_period_s or GRACE_PERIOD_S_MIN,
            gas_price_wei=0 if head is None else head.base_fee_wei or 0,
            is_crowded=self._health is not None and self._health.gate.is_crowded,
        )
