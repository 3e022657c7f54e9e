"""Decides which settle a tower should hold for a channel, and when to renew it (pure).

A tower settles only for a payer that requested a close, when the deadline is near and the payee has
not settled. By decision 5 it should then use the lowest voucher at or above `spent`. But anyone who
obtains the file can send what is in it, and while the channel is live nothing above `spent` may be
settled. Therefore:

- While the channel is live, a tower gets the highest voucher at or below `spent`, which may be
  settled at any time, as long as at most `uncovered_max` of the delivered amount is not covered.
- Beyond that, and once its payer has requested a close, it gets the lowest voucher that covers
  `spent`. Otherwise a payer that signs in large steps would be served for nothing during an outage.
"""

import msgspec

from channel.errors import ConfigError
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.ladder import forced_settling_voucher, settling_voucher

__all__ = ["CoverPolicy", "Covered", "covering_voucher", "is_newer_due", "uncovered"]


class CoverPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How much may be uncovered and for how long, and how long a presigned settle is valid."""

    uncovered_max: int = 100_000
    """Base units delivered on a channel without a presigned settle."""
    uncovered_age_s: int = 300
    """Seconds for which a smaller amount may be uncovered before a newer settle is signed."""
    life_s: int = 30 * 24 * 3600
    """Seconds from signing to deadline; renewed when half of it has passed."""

    def require_outlives(self, grace_period_s: int) -> None:
        """Check that a presigned settle outlives an outage and the grace period after it.

        At least half of its life remains. A payer may request a close at the end of that, so it
        must be several grace periods long.

        Raises:
            ConfigError: `life_s` is too short.
        """
        least = 8 * grace_period_s
        if self.life_s < least:
            raise ConfigError(
                f"`tower.life_s` is {self.life_s}, too short for an outage and the grace period of "
                f"{grace_period_s} s: set it to {least} or more."
            )


class Covered(msgspec.Struct, frozen=True, gc=False):
    """The settle that the tower holds for a channel."""

    cumulative_amount: int = 0
    deadline: int = 0


def covering_voucher(state: ChannelState, policy: CoverPolicy) -> LadderVoucher | None:
    """Return the voucher a tower should be able to settle with; None if all is settled."""
    if state.is_finalized:
        return None
    within = settling_voucher(state)
    covered = state.settled if within is None else within.cumulative_amount
    if not state.close_requested_at and state.spent - covered <= policy.uncovered_max:
        return within
    return forced_settling_voucher(state)


def uncovered(state: ChannelState, last: Covered) -> int:
    """Return what was delivered and neither settled nor covered by the tower, in base units."""
    return max(0, state.spent - max(last.cumulative_amount, state.settled))


def is_newer_due(
    state: ChannelState,
    voucher: LadderVoucher,
    last: Covered,
    policy: CoverPolicy,
    *,
    now: int,
    uncovered_since: int,
) -> bool:
    """Whether a settle with this voucher must be signed and handed out now.

    `now` is the chain's time, `uncovered_since` the time since which an amount is uncovered.
    """
    if 2 * (last.deadline - now) < policy.life_s and last.cumulative_amount > state.settled:
        return True  # renewed, with the voucher that is right by now
    if voucher.cumulative_amount <= last.cumulative_amount:
        return False
    if state.close_requested_at:
        return True
    missing = uncovered(state, last)
    if missing > policy.uncovered_max:
        return True
    return missing > 0 and now - uncovered_since >= policy.uncovered_age_s
