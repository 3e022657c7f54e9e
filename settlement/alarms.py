"""Alarms for the operator: one log line a change, by name, so that a monitor can match it.

An ongoing alarm is not repeated. An alarm logs again when its level rises, and when it ends.
docs/guide/operating.md says under the same names what to do.
"""

import enum
import logging
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

__all__ = ["Alarm", "AlarmKind", "Alarms"]

_log: Final = logging.getLogger(__name__)


class AlarmKind(enum.Enum):
    """Every kind of alarm."""

    GRACE_RUNS = "grace-runs"
    """A payer requested a close, and the payee's close is not mined: 25, 50, 75, 100 % (F-64)."""
    CHANNEL_LOST = "channel-lost"
    """A channel was closed for less than was delivered."""
    CHAIN_AWAY = "chain-away"
    """No node answers."""
    CHAIN_STILL = "chain-still"
    """A node answers but shows no new block: the node or the chain is stuck (F-73)."""
    NODE_BEHIND = "node-behind"
    """A node lags far behind the other nodes, or behind the newest block seen."""
    NODES_DISAGREE = "nodes-disagree"
    """Two nodes show different blocks at a depth at which they should agree."""
    DEEP_REORG = "deep-reorg"
    """A reorg removed blocks that were deep enough to count."""
    CLOCK_SKEW = "clock-skew"
    """This machine's clock differs from the chain's (F-111)."""
    BOOKS_BEHIND = "books-behind"
    """The chain shows more settled than the ledger knows: an old backup (SETTLE-05)."""
    BOOKS_AWAY = "books-away"
    """The database accepts no writes: the settler cannot record a settle or close, so sends
    none."""
    BOOKS_UNSAFE = "books-unsafe"
    """The database may lose, or has lost, acknowledged writes: vouchers are not accepted."""
    MARKER_LOST = "marker-lost"
    """The marker outside the ledger, which detects an old backup, cannot be written."""
    STANDBY_ASYNC = "standby-async"
    """A standby database is connected but not synchronous: a failover loses commits."""
    SIGNER_CHANGED = "signer-changed"
    """A contract wallet no longer accepts the voucher it signed (F-19)."""
    REFUSED = "refused"
    """The chain keeps refusing to settle or close an amount due (F-79, F-87)."""
    PAYOUT_REFUSED = "payout-refused"
    """The token would refuse a payout now: paused, or a blacklist (F-87, O-13)."""
    FOREIGN_PAYOUT = "foreign-payout"
    """The payee's key settled or closed a channel outside this ledger (O-89)."""
    NONCE_GAP = "nonce-gap"
    """Transactions wait for a nonce that no transaction has; no settle or close is mined."""
    GAS_LOW = "gas-low"
    """Not enough ether to close the channels that may need closing (F-65)."""
    GAS_HOUR = "gas-hour"
    """Settles and closes have used up the gas limit of the hour (O-88)."""
    EXPOSURE_FULL = "exposure-full"
    """The total of unsettled amounts has reached its limit."""
    TOWER_UNFED = "tower-unfed"
    """Settles signed ahead do not reach the tower, or the tower gets none from its provider."""
    TOWER_ACTS = "tower-acts"
    """A channel's deadline is near and its payee has not settled: the tower settles it."""
    GRACE_SHORT = "grace-short"
    """The escrow's grace period is below the minimum for accepting channels (F-69)."""


class Alarm(msgspec.Struct, frozen=True):
    """One ringing alarm."""

    kind: AlarmKind
    subject: str
    """The channel, node or account concerned; empty if there is only one."""
    level: int
    """Severity on the kind's own scale: a percentage, or 0."""
    text: str


OnChange: TypeAlias = Callable[[Alarm, bool], None]
"""Takes an alarm that rings or rises, with True, and one that ends, with False."""


class Alarms:
    """The alarms that ring now."""

    def __init__(self) -> None:
        self._ringing: dict[tuple[AlarmKind, str], Alarm] = {}
        self.on_change: OnChange | None = None
        """Called with each change. It must not raise."""

    @property
    def ringing(self) -> list[Alarm]:
        """Every ringing alarm, in the order they began."""
        return list(self._ringing.values())

    def ring(self, kind: AlarmKind, text: str, *, subject: str = "", level: int = 0) -> None:
        """Start an alarm or raise its level; logged once for each level."""
        before = self._ringing.get((kind, subject))
        if before is None or before.level < level:
            alarm = self._ringing[kind, subject] = Alarm(kind, subject, level, text)
            _log.error("alarm %s%s: %s", kind.value, _named(subject), text)
            if self.on_change is not None:
                self.on_change(alarm, True)  # noqa: FBT003 - positional in the callback's type

    def end(self, kind: AlarmKind, *, subject: str = "") -> None:
        """End an alarm. Nothing happens if it does not ring."""
        alarm = self._ringing.pop((kind, subject), None)
        if alarm is not None:
            _log.warning("alarm %s%s: over", kind.value, _named(subject))
            if self.on_change is not None:
                self.on_change(alarm, False)  # noqa: FBT003 - as above


def _named(subject: str) -> str:
    return f" ({subject})" if subject else ""
