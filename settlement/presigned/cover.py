"""Which settle a tower should have for a channel, and when it needs a newer one (pure).

A tower settles only for a payer who has asked for the rest, when time runs out and nobody else
has settled. By decision 5 that is the lowest voucher at or above `spent`. But what was handed out
can be sent by whoever has it, and while the channel lives nothing above `spent` may be settled. So:

- while the channel lives a tower gets the greatest voucher at or below `spent`, which may be
  settled at any time, as long as no more than `uncovered_max` of what was delivered goes without;
- beyond that, and as soon as its payer has asked for the rest, the lowest that covers `spent`: a
  payer who signs in large steps would else be served for nothing while we are away.
"""

import msgspec

from channel.errors import ConfigError
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.ladder import forced_settling_voucher, settling_voucher

__all__ = ["CoverPolicy", "Covered", "covering_voucher", "is_newer_due", "uncovered"]


class CoverPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How much may be without a settle signed ahead, for how long, and how long one lives."""

    uncovered_max: int = 100_000
    """In base units, of what was delivered on a channel."""
    uncovered_age_s: int = 300
    """How long less than that may be, before a newer one is signed all the same."""
    life_s: int = 30 * 24 * 3600
    """From signing to deadline; renewed when half of it is gone."""

    def require_outlives(self, grace_period_s: int) -> None:
        """Check that one signed ahead is good for the whole grace period after any outage.

        Half of its life is what it has left at least. A payer may ask for the rest at the end of
        that, so it must be several grace periods long.

        Raises:
            ConfigError: It is not.
        """
        least = 8 * grace_period_s
        if self.life_s < least:
            raise ConfigError(
                f"`tower.life_s` is {self.life_s}: a settle signed ahead would not outlive an "
                f"outage and the grace period of {grace_period_s} s; at least {least}"
            )


class Covered(msgspec.Struct, frozen=True, gc=False):
    """What the tower was given last for a channel."""

    cumulative_amount: int = 0
    deadline: int = 0


def covering_voucher(state: ChannelState, policy: CoverPolicy) -> LadderVoucher | None:
    """Return what a tower should be able to settle with; None: nothing beyond what is settled."""
    if state.is_finalized:
        return None
    within = settling_voucher(state)
    covered = state.settled if within is None else within.cumulative_amount
    if not state.close_requested_at and state.spent - covered <= policy.uncovered_max:
        return within
    return forced_settling_voucher(state)


def uncovered(state: ChannelState, last: Covered) -> int:
    """Return what was delivered and neither settled nor in the tower's hands."""
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
    """Whether this voucher is to be signed for and handed out now.

    `now` is the chain's time, `uncovered_since` that at which something was first without one.
    """
    if 2 * (last.deadline - now) < policy.life_s and last.cumulative_amount > state.settled:
        return True  # renewed, with whatever voucher is right by now
    if voucher.cumulative_amount <= last.cumulative_amount:
        return False
    if state.close_requested_at:
        return True
    missing = uncovered(state, last)
    if missing > policy.uncovered_max:
        return True
    return missing > 0 and now - uncovered_since >= policy.uncovered_age_s
