"""What somebody must be told: one line a change, by name, so that a monitor can match it.

An alarm that goes on is not repeated; one that gets worse is; one that is over says so. What to
do when each rings is in docs/guide/operating.md, under the same names.
"""

import enum
import logging
from typing import Final

import msgspec

__all__ = ["Alarm", "AlarmKind", "Alarms"]

_log: Final = logging.getLogger(__name__)


class AlarmKind(enum.Enum):
    """Every alarm there is."""

    GRACE_RUNS = "grace-runs"
    """A payer has asked for the rest and our close is not mined: 25, 50, 75, 100 % (F-64)."""
    CHANNEL_LOST = "channel-lost"
    """A channel ended for less than was delivered."""
    CHAIN_AWAY = "chain-away"
    """No node answers."""
    CHAIN_STILL = "chain-still"
    """A node answers, and shows no new block: it is stuck, or the chain is (F-73)."""
    NODE_BEHIND = "node-behind"
    """A node lags far behind the others, or behind what we have seen."""
    NODES_DISAGREE = "nodes-disagree"
    """Two nodes show different blocks at a depth where they should not."""
    DEEP_REORG = "deep-reorg"
    """The chain took back blocks that were deep enough to count."""
    CLOCK_SKEW = "clock-skew"
    """This machine's clock and the chain's differ (F-111)."""
    BOOKS_BEHIND = "books-behind"
    """More is settled than the books know of: an old backup (SETTLE-05)."""
    BOOKS_AWAY = "books-away"
    """The database takes nothing: no settle and no close can be written down, so none is sent."""
    BOOKS_UNSAFE = "books-unsafe"
    """The database may lose what it acknowledges, or has lost some of it: nothing is accepted."""
    MARKER_LOST = "marker-lost"
    """What shows old books as old cannot be written outside them."""
    STANDBY_ASYNC = "standby-async"
    """A standby is connected and none is synchronous: a failover loses commits."""
    SIGNER_CHANGED = "signer-changed"
    """A contract wallet no longer takes the voucher it signed (F-19)."""
    REFUSED = "refused"
    """The chain refuses to settle or close what is owed, again and again (F-79, F-87)."""
    PAYOUT_REFUSED = "payout-refused"
    """The token would not pay us out now: paused, or a blacklist (F-87, O-13)."""
    FOREIGN_PAYOUT = "foreign-payout"
    """A channel was settled or closed with the payee's key, and not by these books (O-89)."""
    NONCE_GAP = "nonce-gap"
    """Transactions wait for a nonce that none has, so that nothing is settled or closed."""
    GAS_LOW = "gas-low"
    """Not enough ether to close what may have to be closed (F-65)."""
    GAS_HOUR = "gas-hour"
    """Settles and closes have cost as much within the hour as is allowed (O-88)."""
    EXPOSURE_FULL = "exposure-full"
    """As much is unsettled as is allowed in total."""
    TOWER_UNFED = "tower-unfed"
    """Settles signed ahead do not reach the tower, or it hears nothing from its provider."""
    TOWER_ACTS = "tower-acts"
    """Time runs out for a channel that its payee has not settled: the tower does it instead."""
    GRACE_SHORT = "grace-short"
    """The escrow's grace period is below what a channel may be accepted with (F-69)."""


class Alarm(msgspec.Struct, frozen=True):
    """One alarm that is ringing."""

    kind: AlarmKind
    subject: str
    """Which channel, node or account; empty where there is only one."""
    level: int
    """How bad, on the kind's own scale: a percentage, or 0."""
    text: str


class Alarms:
    """The alarms that ring now."""

    def __init__(self) -> None:
        self._ringing: dict[tuple[AlarmKind, str], Alarm] = {}

    @property
    def ringing(self) -> list[Alarm]:
        """Every alarm that rings, in the order they began."""
        return list(self._ringing.values())

    def ring(self, kind: AlarmKind, text: str, *, subject: str = "", level: int = 0) -> None:
        """Begin an alarm, or make it worse; said once for each level."""
        before = self._ringing.get((kind, subject))
        if before is None or before.level < level:
            self._ringing[kind, subject] = Alarm(kind, subject, level, text)
            _log.error("alarm %s%s: %s", kind.value, _named(subject), text)

    def end(self, kind: AlarmKind, *, subject: str = "") -> None:
        """End an alarm; nothing happens when it does not ring."""
        if self._ringing.pop((kind, subject), None) is not None:
            _log.warning("alarm %s%s: over", kind.value, _named(subject))


def _named(subject: str) -> str:
    return f" ({subject})" if subject else ""
