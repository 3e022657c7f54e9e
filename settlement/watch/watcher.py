"""Watches the chain by the events of each block, and by the state of every open channel.

Events are fast, but a node can lose them; state is reliable, but reading all of it is expensive
(F-73). The watcher therefore follows the head and reads the channels that events name, and at
intervals reads all open channels, a few hundred per call. Both record absolute values in the
ledger: a reorg moves them back and forward again, and never moves `spent` (decision 11). `schedule`
then decides what to close or settle, and `CloseExecutor` carries it out concurrently.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from channel.errors import ChainUnavailableError, OperatorError
from channel.ledger.interface import Ledger
from channel.limits import GRACE_PERIOD_S_MIN
from channel.state.channel_state import ChannelState
from channel.state.commands import AbortClose
from channel.tasks import Tasks
from channel.types import Address, ChannelId, ChannelKey
from settlement.alarms import Alarms
from settlement.escrow.reader import EscrowReader
from settlement.log_once import LogOnce
from settlement.node.block_notifier import BlockNotifier
from settlement.node.chain_clock import ChainClock
from settlement.settle.due import DueList, SweepState
from settlement.settle.executor import CloseExecutor, Settler
from settlement.settle.schedule import Due, Moment, SettlePolicy, Watched, choose, decide
from settlement.types import BlockRef
from settlement.watch.follower import ChainFollower, FollowLimits, Step
from settlement.watch.health import HealthChecks
from settlement.watch.observer import ChannelObserver
from settlement.watch.watch_alarms import WatchAlarms

__all__ = ["STILL_S_MAX", "ChannelListener", "ChannelWatcher", "Sweep", "WatchLimits"]

_log: Final = logging.getLogger(__name__)

STILL_S_MAX: Final = 300.0


class WatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often to look, and how much to do concurrently."""

    interval_s: float = 15.0
    """Seconds between two sweeps of every open channel."""
    poll_interval_s: float = 2.0
    """Seconds between two looks at the head without a websocket."""
    channels_per_page: int = 500
    closes_at_once: int = 512
    retry_s: float = 2.0
    """Seconds before a retry after a refusal by the escrow; doubles each time, up to a minute."""
    confirmations: int = 1
    """How deep a deposit must be to count. Facts to the payee's disadvantage count at any depth."""
    half_closed_s_max: float = 60.0
    """Seconds a close may take to choose its voucher before its process counts as dead."""
    away_s_max: float = 60.0
    """Seconds without an answer from any node, or with all lagging, before an alarm rings."""
    still_s_max: float | None = STILL_S_MAX
    """Seconds without a new block before an alarm rings. None: never."""
    skew_s_max: float = 60.0
    """Seconds by which this machine's clock and the chain's may differ."""
    follow: FollowLimits = FollowLimits()


class Sweep(msgspec.Struct, frozen=True):
    """What one look at the channels did."""

    read: int = 0
    changed: int = 0
    closed: int = 0
    settled: int = 0
    waiting: int = 0
    """Closes that wait for a running request, a receipt or a node; retried at the next look."""


class ChannelListener(Protocol):
    """Sees each channel as it was just read. Its methods are quick, and must not raise."""

    def begin_sweep(self) -> None:
        """Every open channel follows, until `end_sweep`."""

    def show(self, state: ChannelState) -> None:
        """See one channel, in a sweep or because the chain touched it."""

    def end_sweep(self) -> None:
        """Every open channel was shown."""


class ChannelWatcher:
    """Keeps one ledger in step with one escrow, and closes and settles what is due."""

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
        """Watch one payee's channels, or all of the escrow's.

        Args:
            reader: Reads the escrow.
            ledger: The ledger to update.
            settler: Settles and closes; None if another process does.
            payee: The payee whose channels to watch; every payee's if None.
            limits: How often to look.
            policy: When to settle and close.
            heads: Announces new blocks; polling if None.
            health: The checks beside the channels, with the alarms.
        """
        self._reader = reader
        self._ledger = ledger
        self._limits = limits or WatchLimits()
        self._policy = policy or SettlePolicy()
        self.alarms = Alarms() if health is None else health.alarms
        self.clock = ChainClock()
        self.listener: ChannelListener | None = None
        """Sees each channel that is read; set before `run`."""
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
        self.health = health
        self._due_list = (
            DueList(
                self._policy,
                half_closed_s_max=self._limits.half_closed_s_max,
                domain=reader.interface.domain,
            )
            if health is None
            else DueList(
                self._policy,
                half_closed_s_max=self._limits.half_closed_s_max,
                domain=reader.interface.domain,
                is_crowded=health.gate.is_signer_crowded,
            )
        )
        self._telling = WatchAlarms(
            self.alarms,
            away_s_max=self._limits.away_s_max,
            skew_s_max=self._limits.skew_s_max,
            still_s_max=self._limits.still_s_max,
        )
        self._log_once = LogOnce(_log, "reading the chain failed, will retry: %s")
        self._grace_period_s: int | None = None
        self._swept_at = float("-inf")
        self._looked_at: float | None = None
        self._touched: set[ChannelId] = set()
        self._forked_at: int | None = None
        self._unsure_above: int | None = None
        """Ends above this block are read again: a reorg may have undone them unnoticed."""
        self._newest_fact = 0
        """The newest block of the ledger's facts at the last sweep."""

    @property
    def head(self) -> BlockRef | None:
        """The newest block seen."""
        return self._follower.head

    @property
    def looked_s_ago(self) -> float | None:
        """Seconds since the last successful look; None before the first one."""
        if self._looked_at is None:
            return None
        return asyncio.get_running_loop().time() - self._looked_at

    async def run(self) -> None:
        """Watch for ever. Logs and retries failures of nodes and disks.

        Raises:
            InvariantError: A bug; the process must stop.
        """
        async with Tasks() if self._executor is None else self._executor.tasks as tasks:
            tasks.start(self._blocks.listen())
            tasks.start(self._turns())
            await tasks.until_failure()

    async def _turns(self) -> None:
        while True:
            await self._turn()
            await self._blocks.wait()

    async def aclose(self) -> None:
        """Stop what `sweep` or `begin_pending` has started; `run` does it itself."""
        if self._executor is not None:
            await self._executor.tasks.aclose()

    async def sweep(self) -> Sweep:
        """Look at every open channel once, carry out what is due, and wait until that is done.

        Raises:
            ChainUnavailableError: No node gives the channels' state.
            LedgerUnavailableError: A change could not be recorded.
            InvariantError: A bug.
        """
        self._swept_at = float("-inf")
        sweep, dues = await self._look()
        if self._executor is None:
            return sweep
        done = await self._executor.carry_out(dues)
        return replace(sweep, closed=done.closed, settled=done.settled, waiting=done.waiting)

    async def settle_all(self) -> Sweep:
        """Settle every unsettled amount on open channels, however small, as the ledger shows them.

        Closes that are owed are made, too. Gas may cost as much as is settled, and no more. Returns
        once all that is mined.

        Raises:
            ChainUnavailableError: No block was seen yet, or this watcher has no settler.
            LedgerUnavailableError: The channels could not be read.
            InvariantError: A bug.
        """
        if self._executor is None or self.head is None:
            raise ChainUnavailableError("No block was seen yet.")
        policy = replace(self._policy, settle_value=1, gas_share_max_percent=100)
        moment = self._moment()
        read, dues = 0, []
        async for page in self._observer.pages(None):
            read += len(page)
            found = [decide(Watched(state=state), moment, policy) for state in page]
            dues += [due for due in found if due is not None]
        done = await self._executor.carry_out(choose(dues, moment, policy))
        return Sweep(read=read, closed=done.closed, settled=done.settled, waiting=done.waiting)

    async def look(self) -> Sweep:
        """Look at the head and the channels it touched; at every channel only when that is due.

        Raises:
            ChainUnavailableError: The node does not answer, or contradicts itself.
            LedgerUnavailableError: A change could not be recorded.
        """
        sweep, _ = await self._look()
        return sweep

    def begin_pending(self, states: Sequence[ChannelState]) -> None:
        """Start closes that a worker has decided, without waiting for the next look."""
        if self._executor is not None and self.head is not None:
            self._executor.submit(self._choose(self._decide(states)))

    async def _turn(self) -> None:
        """Look, and start what is due. Alarms ring even if there is nothing to see."""
        now = asyncio.get_running_loop().time()
        try:
            sweep, dues = await self._look()
        except OperatorError as error:
            self._log_once.make(error)
            if isinstance(error, ChainUnavailableError):
                self._reader.rpc.mark_unhealthy()  # also a node whose answers are invalid
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

    # Looking.

    async def _look(self) -> tuple[Sweep, list[Due]]:
        """Follow the head; read touched channels, or all channels when that is due."""
        step = await self._follower.step()
        is_behind_for_long = self._note(step)
        loop = asyncio.get_running_loop()
        if is_behind_for_long:
            await self._leave_fork(step.head)
        if step.is_behind:
            dues = self._choose(self._decide(self._due_list.owed.values()))
            return Sweep(), await self._believed(dues, step.head)
        if loop.time() - self._swept_at >= self._limits.interval_s:
            if self.health is not None:
                await self.health.begin()
            await self._read_grace_period()
            began = loop.time()
            sweep, dues = await self._read_all(step.head)
            self._swept_at = began
            self._forked_at = self._doubt_from(self._newest_fact)
            if self._observer.newest_ended <= step.head.number:  # else this node lacks the block
                self._unsure_above = self._forked_at
        else:
            ids = self._touched | {key.channel_id for key in self._due_list.owed}
            if not ids:
                return Sweep(), []
            sweep, dues = await self._read_some(ids, step.head)
        self._touched.clear()
        return sweep, await self._believed(self._choose(dues), step.head)

    async def _leave_fork(self, head: BlockRef) -> None:
        """Start anew on the majority's chain, if the followed head was one node's own.

        Otherwise every other node would count as lagging behind that head for ever.
        """
        forked_at = None if self.health is None else await self.health.find_fork(head)
        if forked_at is not None:
            self._follower.forget()
            before = forked_at if self._forked_at is None else self._forked_at
            self._forked_at = min(before, forked_at)
            self._doubt(forked_at)
            self._telling.reorg(forked_at, head_number=head.number, is_deep=True)

    def _doubt(self, number: int) -> None:
        """Read every channel at the next look, and those that ended above this block."""
        before = number if self._unsure_above is None else self._unsure_above
        self._unsure_above = min(before, number)
        self._swept_at = float("-inf")

    def _note(self, step: Step) -> bool:
        """Keep a step's result until it has been read; return whether the node lags for long."""
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
        if self.listener is not None:
            self.listener.begin_sweep()
        async for page in self._observer.pages(self._unsure_above):
            states = await self._take(page, head)
            read += len(page)
            newest = max([newest, *(state.fact_block for state in states)])
            changed += sum(a is not b for a, b in zip(page, states, strict=True))
            moment = self._moment()
            for state in states:
                dues += self._due_list.take_in_round(state, moment, found)
                if self.health is not None:
                    self.health.show(state, now=moment.now)
                if self.listener is not None:
                    self.listener.show(state)
        if self.listener is not None:
            self.listener.end_sweep()
        await self._reopen(self._due_list.end_round(found))
        self._telling.books(found.behind)
        if self.health is not None:
            await self.health.check(head, found.totals)
        self._newest_fact = newest
        return Sweep(read=read, changed=changed), dues

    def _doubt_from(self, newest: int) -> int | None:
        """Return the block above which to read facts again: most nodes do not have it yet."""
        return None if self.health is None else self.health.fork_below(newest)

    async def _read_some(
        self, channel_ids: set[ChannelId], head: BlockRef
    ) -> tuple[Sweep, list[Due]]:
        """Read the channels that events named, and those whose close is due."""
        page = await self._observer.load(channel_ids)
        states = await self._take(page, head)
        moment = self._moment()
        dues = [due for state in states for due in self._due_list.take(state, moment)]
        if self.health is not None:
            for state in states:
                self.health.show(state, now=moment.now)
        if self.listener is not None:
            for state in states:
                self.listener.show(state)
        changed = sum(a is not b for a, b in zip(page, states, strict=True))
        return Sweep(read=len(page), changed=changed), dues

    async def _take(self, page: Sequence[ChannelState], head: BlockRef) -> list[ChannelState]:
        is_disputed = self.health is not None and self.health.gate.is_disputed
        return await self._observer.take(
            page, head, self._forked_at, believes_deposits=not is_disputed
        )

    async def _reopen(self, half_closed: Sequence[ChannelKey]) -> None:
        """Reopen channels whose close was begun but never decided, because its process died.

        No close is due for them: the payer can close again with its own voucher. A channel whose
        close was decided since it was read is left alone.
        """
        for key in half_closed:
            await self._ledger.apply(key, [AbortClose(undecided_only=True)])

    # Deciding.

    def _decide(self, states: Iterable[ChannelState]) -> list[Due]:
        """Return what is due by the known state; reads no node."""
        moment = self._moment()
        return [due for state in states for due in self._due_list.decide(state, moment)]

    async def _believed(self, dues: list[Due], head: BlockRef) -> list[Due]:
        """Return what is due, without exits that one node may have invented."""
        if self.health is None:
            return dues
        return await self.health.believe_exits(dues, self._due_list.owed, head)

    def _choose(self, dues: Sequence[Due]) -> list[Due]:
        return choose(dues, self._moment(), self._policy)

    def _moment(self) -> Moment:
        head = self._follower.head
        return Moment(
            now=self.clock.now(),
            earliest=self.clock.earliest(),
            grace_period_s=self._grace_period_s or GRACE_PERIOD_S_MIN,
            gas_price_wei=0 if head is None else head.base_fee_wei or 0,
            is_crowded=self.health is not None and self.health.gate.is_crowded,
        )
