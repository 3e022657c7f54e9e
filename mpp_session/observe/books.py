"""Adds up the channels as the watcher reads them, and tells hooks of settlements and alarms.

The settler is another process. What it settles is learnt here from the chain, as the watcher of
this process sees it: with each sweep, and when a block touches a channel.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from channel.http.hooks import AlarmEvent, HookCalls, SettleEvent
from channel.state.channel_state import ChannelState
from channel.wire.encoding import format_hex
from settlement.alarms import Alarm
from settlement.settle.exposure import exposure_of
from settlement.settle.schedule import value_at_risk
from settlement.watch.watcher import ChannelWatcher

__all__ = ["BooksView", "Sums"]


_ENDED_KEPT: Final = 4096
"""Channels whose end is remembered: a block is looked at more than once."""


class Sums(msgspec.Struct, kw_only=True):
    """Sums over the open channels of one sweep. Amounts in base units."""

    open: int = 0
    closing: int = 0
    """Channels with a close that was begun, or requested by their payer."""
    stopped: int = 0
    """Channels on which ledger and chain disagree."""
    running: int = 0
    """Requests and streams that hold an amount."""
    at_risk: int = 0
    """Delivered or reserved, and not settled."""
    unsettled: int = 0
    """Accepted and not settled: the payee's exposure."""
    undelivered: int = 0
    """Accepted and not delivered: the payers' exposure."""
    deposited: int = 0
    """Deposits, less what is settled."""


class _Known(msgspec.Struct, gc=False):
    """What is remembered of an open channel."""

    settled: int
    at_risk_since: float | None
    """Unix seconds since when something is unsettled; None if nothing is."""


class BooksView:
    """The sums of the last sweep (`settlement.watch.watcher.ChannelListener`)."""

    def __init__(self, calls: HookCalls, *, now: Callable[[], float] = time.time) -> None:
        """Tell the hooks of `calls`. `now` is wall-clock time in Unix seconds."""
        self.sums: Sums | None = None
        """None before the first sweep has ended."""
        self._calls = calls
        self._now = now
        self._sweeping: Sums | None = None
        self._known: dict[bytes, _Known] = {}
        self._seen: set[bytes] = set()
        self._oldest: float | None = None
        self._ended: OrderedDict[bytes, None] = OrderedDict()

    @property
    def settlement_lag_s(self) -> float:
        """How long the oldest amount of the last sweep waits for its settlement, in seconds."""
        oldest = self._oldest
        return 0.0 if oldest is None else max(0.0, self._now() - oldest)

    def listen_to(self, watcher: ChannelWatcher) -> None:
        """Take in what this watcher sees from now on."""
        watcher.listener = self
        watcher.alarms.on_change = self.alarm

    def begin_sweep(self) -> None:
        """Every open channel follows."""
        self._sweeping = Sums()
        self._seen = set()

    def show(self, state: ChannelState) -> None:
        """Take in one channel, and tell of what was settled since it was shown before."""
        channel_id = state.key.channel_id
        before = self._known.get(channel_id)
        if state.is_finalized:
            self._end(state, self._known.pop(channel_id, None))
            return
        paid = 0 if before is None else state.settled - before.settled
        if paid > 0:
            self._tell(state, paid, is_final=False)
        # A reorg may take a settlement back: the hooks hear of it once.
        settled = state.settled if before is None else max(state.settled, before.settled)
        since = None if before is None or paid > 0 else before.at_risk_since
        at_risk = value_at_risk(state)
        if not at_risk:
            since = None
        elif since is None:
            since = self._now() if before is not None or state.active_at == 0 else state.active_at
        self._known[channel_id] = _Known(settled, since)
        if self._sweeping is not None:
            self._seen.add(channel_id)
            _add(self._sweeping, state, at_risk)

    def _end(self, state: ChannelState, before: _Known | None) -> None:
        """Tell once of a channel's last payout."""
        channel_id = state.key.channel_id
        if channel_id in self._ended:
            return
        self._ended[channel_id] = None
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        if before is None and self.sums is None:
            return  # shown by the first sweep: it was paid before this process began
        # A channel that no sweep has shown open was opened since the last one.
        settled = 0 if before is None else before.settled
        self._tell(state, max(0, state.settled - settled), is_final=True)

    def end_sweep(self) -> None:
        """Every open channel was shown."""
        if self._sweeping is not None:
            self.sums, self._sweeping = self._sweeping, None
            for channel_id in self._known.keys() - self._seen:
                del self._known[channel_id]
            waiting = [each.at_risk_since for each in self._known.values()]
            self._oldest = min((since for since in waiting if since is not None), default=None)

    def alarm(self, alarm: Alarm, is_raised: bool) -> None:  # noqa: FBT001 - as `Alarms.on_change`
        """Tell of an alarm: the `on_change` of `settlement.alarms.Alarms`."""
        if self._calls.alarm:
            self._calls.alarm(
                AlarmEvent(
                    at=self._now(),
                    monotonic=time.monotonic(),
                    name=alarm.kind.value,
                    subject=alarm.subject,
                    level=alarm.level,
                    text=alarm.text,
                    is_raised=is_raised,
                )
            )

    def _tell(self, state: ChannelState, amount: int, *, is_final: bool) -> None:
        if self._calls.settle:
            self._calls.settle(
                SettleEvent(
                    at=self._now(),
                    monotonic=time.monotonic(),
                    channel_id=state.key.channel_id,
                    payer=state.terms.payer,
                    amount=amount,
                    settled=state.settled,
                    is_final=is_final,
                    tx_hash=format_hex(state.close_tx) if state.close_tx else None,
                )
            )


def _add(sums: Sums, state: ChannelState, at_risk: int) -> None:
    sums.open += 1
    sums.closing += bool(state.is_closing or state.close_requested_at)
    sums.stopped += state.is_stopped
    sums.running += len(state.reservations)
    sums.at_risk += at_risk
    exposure = exposure_of(state)
    sums.unsettled += exposure.payee
    sums.undelivered += exposure.payer
    sums.deposited += max(0, state.deposit - state.settled)
