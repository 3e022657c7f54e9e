"""The watcher's alarms: running grace periods, unreachable or lagging nodes, clocks, reorgs."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from channel.limits import GRACE_PERIOD_S_MIN
from channel.state.channel_state import ChannelState
from channel.types import ChannelKey
from settlement.alarms import AlarmKind, Alarms
from settlement.settle.schedule import Moment, grace_stage, value_at_risk

__all__ = ["WatchAlarms"]

_log: Final = logging.getLogger(__name__)


class WatchAlarms:
    """Rings by what each look at the chain shows, and for how long it shows it."""

    def __init__(
        self,
        alarms: Alarms,
        *,
        away_s_max: float,
        skew_s_max: float,
        still_s_max: float | None = None,
    ) -> None:
        self._alarms = alarms
        self._away_s_max = away_s_max
        self._skew_s_max = skew_s_max
        self._still_s_max = still_s_max
        self._answered_at: float | None = None
        self._moved_at: float | None = None
        self._left_at = float("-inf")
        self._behind_since: float | None = None
        self._deep_reorgs = 0
        self._deep_until = 0

    def answered(self, now: float) -> None:
        """Record that a look which began at `now`, by the event loop's clock, succeeded."""
        self._answered_at = now
        self._alarms.end(AlarmKind.CHAIN_AWAY)

    def unanswered(self, now: float, error: Exception) -> None:
        """Record that a look which began at `now` failed; ring when that lasts."""
        self._answered_at = self._answered_at or now
        if now - self._answered_at >= self._away_s_max:
            self._alarms.ring(
                AlarmKind.CHAIN_AWAY, f"no answer for {now - self._answered_at:.0f} s: {error}"
            )

    def moved(self, now: float, *, is_new: bool) -> bool:
        """Ring when no new block comes for long; return whether to ask another node."""
        if is_new or self._moved_at is None:
            self._moved_at = now
            self._alarms.end(AlarmKind.CHAIN_STILL)
        longest_s = self._still_s_max
        still_s = now - self._moved_at
        if longest_s is None or still_s < longest_s:
            return False
        self._alarms.ring(AlarmKind.CHAIN_STILL, f"no new block for {still_s:.0f} s")
        is_turn = now - self._left_at >= longest_s
        self._left_at = now if is_turn else self._left_at
        return is_turn

    def graces(self, owed: Mapping[ChannelKey, ChannelState], moment: Callable[[], Moment]) -> None:
        """Ring for each due close as its grace period runs (F-64).

        `moment` is called only if a close is due: before that no block may be known.
        """
        named = {f"0x{key.channel_id.hex()}": state for key, state in owed.items()}
        for alarm in self._alarms.ringing:
            if alarm.kind is AlarmKind.GRACE_RUNS and alarm.subject not in named:
                self._alarms.end(AlarmKind.GRACE_RUNS, subject=alarm.subject)
        for name, state in named.items():
            stage = grace_stage(state, moment())
            if not stage:  # the request was cancelled; the decided close stays due
                self._alarms.end(AlarmKind.GRACE_RUNS, subject=name)
            else:
                self._alarms.ring(
                    AlarmKind.GRACE_RUNS,
                    f"{stage} % of the grace period of channel {name} has passed, "
                    f"{value_at_risk(state)} at risk",
                    subject=name,
                    level=stage,
                )

    def books(self, behind: Iterable[ChannelState]) -> None:
        """Ring for each channel with more settled than the ledger knows (SETTLE-05).

        `behind` must hold all of them at each sweep, also after a restart.
        """
        named = {f"0x{state.key.channel_id.hex()}": state for state in behind}
        for alarm in self._alarms.ringing:
            if alarm.kind is AlarmKind.BOOKS_BEHIND and alarm.subject not in named:
                self._alarms.end(AlarmKind.BOOKS_BEHIND, subject=alarm.subject)
        for name, state in named.items():
            text = (
                f"{state.settled} is settled, the ledger knows of {state.accepted}: an old backup"
            )
            self._alarms.ring(AlarmKind.BOOKS_BEHIND, text, subject=name)

    def grace_period(self, grace_period_s: int) -> None:
        """Ring when the escrow's grace period is below the minimum (F-69)."""
        if grace_period_s < GRACE_PERIOD_S_MIN:
            self._alarms.ring(
                AlarmKind.GRACE_SHORT,
                f"the escrow's grace period is {grace_period_s} s, below {GRACE_PERIOD_S_MIN}",
            )
        else:
            self._alarms.end(AlarmKind.GRACE_SHORT)

    def behind(self, head_number: int, *, is_behind: bool) -> bool:
        """Ring when a node lags for long; return whether to ask another node."""
        if not is_behind:
            self._behind_since = None
            self._alarms.end(AlarmKind.NODE_BEHIND)
            return False
        now = asyncio.get_running_loop().time()
        self._behind_since = self._behind_since or now
        if now - self._behind_since < self._away_s_max:
            return False
        self._alarms.ring(AlarmKind.NODE_BEHIND, f"the node is behind block {head_number}")
        return True

    def skew(self, skew_s: float) -> None:
        """Ring when this machine's clock and the chain's differ (F-111)."""
        if abs(skew_s) > self._skew_s_max:
            self._alarms.ring(
                AlarmKind.CLOCK_SKEW, f"this machine's clock is {skew_s:+.0f} s off the chain's"
            )
        else:
            self._alarms.end(AlarmKind.CLOCK_SKEW)

    def grown(self, head_number: int) -> None:
        """Record the chain's height: a deep reorg is over once as many blocks were built again."""
        if head_number >= self._deep_until:
            self._alarms.end(AlarmKind.DEEP_REORG)

    def reorg(self, forked_at: int, *, head_number: int, is_deep: bool) -> None:
        """Log a reorg; ring if it removed blocks deep enough to count."""
        _log.warning("a reorg removed the blocks above %d", forked_at)
        if is_deep:
            self._deep_reorgs += 1
            self._deep_until = 2 * head_number - forked_at
            self._alarms.ring(
                AlarmKind.DEEP_REORG,
                f"a reorg removed the blocks above {forked_at}, deeper than a deposit must be",
                level=self._deep_reorgs,
            )
