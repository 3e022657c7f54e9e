"""Which channel to settle or close, when, and with which voucher (pure).

Two questions with different answers. A payer who asked for the rest leaves a deadline: those
channels are closed, the latest grace quarter first and the most valuable first within it (F-66).
All others are settled when it pays: enough is unsettled, for long enough, or the bound on
what may be unsettled comes near. A live channel is never settled above `spent` (decision 5).
"""

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.commands import Idle
from channel.state.ladder import settling_voucher
from channel.types import ChannelKey

__all__ = [
    "Action",
    "Due",
    "Moment",
    "Reason",
    "SettlePolicy",
    "Watched",
    "choose",
    "decide",
    "grace_stage",
    "owes_close",
    "value_at_risk",
]

_PERCENT: Final = 100
_STAGES: Final = (25, 50, 75, 100)


class Action(enum.Enum):
    """What is sent to the escrow."""

    SETTLE = "settle"
    CLOSE = "close"


class Reason(enum.Enum):
    """Why now."""

    PROMISED = "a close was decided"
    FORCED_CLOSE = "its payer asked for the rest"
    EXPOSURE = "as much is unsettled as may be"
    VALUE = "enough is unsettled"
    UNITS = "enough units are unsettled"
    AGE = "it is unsettled for long enough"
    WALLET = "its signer is a contract, which may change its mind"
    IDLE = "nothing was bought for long enough"

    @property
    def is_escalating(self) -> bool:
        """Whether waiting for cheaper gas would cost more than gas."""
        return self not in (Reason.VALUE, Reason.UNITS, Reason.AGE, Reason.IDLE)


class SettlePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When settling and closing pays. Amounts in base units of the token."""

    settle_value: int = 1_000_000
    settle_age_s: int = 24 * 3600
    settle_units: int | None = None
    unit_price: int = 1
    """What one unit costs, where settling is asked for by units."""
    wallet_share_percent: int = 10
    """Of the bounds above, for a signer that is a contract (F-19, SEC-08)."""
    exposure_max: int | None = None
    """Most that may be unsettled on one channel; settling begins at `exposure_share_percent`."""
    exposure_share_percent: int = 50
    close_idle_s: int | None = 30 * 24 * 3600
    defend_min: int = 1
    """Least at risk for which a requested close is answered by ours."""
    patience_s: int = 120
    """How long after a close was asked for, in block time, what runs may still end by itself."""
    deadline_share_percent: int = 75
    """Of the grace period; behind it nothing is waited for."""
    gas_share_max_percent: int = 5
    """Of what is settled, for gas, unless it presses; then all of it (F-78)."""
    token_price_wei: int | None = None
    """What one whole token is worth in wei; None: gas is not weighed."""
    token_decimals: int = 6
    gas_per_entry: int = 26_000
    """Of one channel in a batch."""
    gas_per_batch: int = 60_000

    def gas_cost(self, gas: int, gas_price_wei: int) -> int:
        """Return what so much gas costs in base units of the token; 0 when it is not weighed."""
        if self.token_price_wei is None:
            return 0
        return int(gas * gas_price_wei * 10**self.token_decimals // self.token_price_wei)


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand."""

    now: int
    """The chain's time in Unix seconds: deadlines are the escrow's (F-111)."""
    earliest: int | None = None
    """The least that the clocks say, of a node and of this machine; `now` if None.

    What is only a matter of age is done by this one: one node's word on the time costs nothing.
    """
    grace_period_s: int
    gas_price_wei: int = 0
    is_crowded: bool = False
    """All channels together come near the bound on what may be unsettled."""

    def age_s(self, since: int) -> int:
        """Return how many seconds have surely passed since then."""
        return (self.now if self.earliest is None else self.earliest) - since


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """A channel, and what the books do not say about it."""

    state: ChannelState
    unsettled_since: int | None = None
    """Chain time since when something of it is unsettled."""
    is_wallet: bool = False
    """Its signer is a contract."""
    is_crowded: bool = False
    """What its signer promised in all comes near the bound on that."""


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do."""

    key: ChannelKey
    action: Action
    reason: Reason
    value: int
    """What it brings the payee."""
    voucher: LadderVoucher | None = None
    """What to settle with. A close decides its own once nothing runs."""
    deadline: int | None = None
    """Chain time at which the payer may take everything."""
    stage: int = 0
    """How much of the grace period is gone: 0, 25, 50, 75 or 100 per cent."""
    ends_reservations: bool = False
    """Whatever still runs is not waited for."""
    idle: Idle | None = None
    """For a close of what nobody uses: how it stood when that was found."""
    is_late: bool = False
    """If the escrow refuses the close, a settle saves at least what was delivered (F-86)."""


def value_at_risk(state: ChannelState) -> int:
    """Return what was delivered or is promised to a running stream, and is not settled."""
    return max(0, state.spent + state.reserved - state.settled)


def grace_stage(state: ChannelState, moment: Moment) -> int:
    """Return how much of the grace period is gone: 0, 25, 50, 75 or 100 per cent (F-64)."""
    if not state.close_requested_at or state.is_finalized:
        return 0
    gone = _PERCENT * (moment.now - state.close_requested_at) // max(1, moment.grace_period_s)
    return max((stage for stage in _STAGES if gone >= stage), default=0)


def owes_close(state: ChannelState, policy: SettlePolicy) -> bool:
    """Whether a close is owed: one that was decided, or a payer's exit that would cost us.

    When nothing beyond `settled` was delivered, the payer may just withdraw.
    """
    if state.is_finalized:
        return False
    if state.closing_with is not None:
        return True
    return state.close_requested_at != 0 and value_at_risk(state) >= policy.defend_min


def decide(watched: Watched, moment: Moment, policy: SettlePolicy) -> Due | None:
    """Return what to do about one channel now, or None. Gas is weighed in `choose`."""
    state = watched.state
    if state.is_finalized:
        return None
    if owes_close(state, policy):
        return _defend(state, moment, policy)
    if state.is_stopped or state.is_closing or state.close_requested_at:
        return None
    idle = _close_idle(state, moment, policy)
    return idle or _settle(watched, moment, policy)


def choose(dues: Sequence[Due], moment: Moment, policy: SettlePolicy) -> list[Due]:
    """Return what of all that is due is done now, the most urgent first.

    What does not press is left out while its gas would cost too large a share of it, alone or
    together with the others that would share its transaction.
    """
    escalating = [
        due for due in dues if due.reason.is_escalating and _is_worth(due, moment, policy)
    ]
    others = [due for due in dues if not due.reason.is_escalating]
    chosen = escalating + _affordable(others, moment, policy)
    return sorted(chosen, key=_urgency)


def _defend(state: ChannelState, moment: Moment, policy: SettlePolicy) -> Due:
    asked_at, gone_s = state.close_requested_at, moment.now - state.close_requested_at
    is_late = asked_at != 0 and (
        _PERCENT * gone_s >= policy.deadline_share_percent * moment.grace_period_s
    )
    return Due(
        key=state.key,
        action=Action.CLOSE,
        reason=Reason.PROMISED if state.closing_with is not None else Reason.FORCED_CLOSE,
        value=value_at_risk(state),
        deadline=asked_at + moment.grace_period_s if asked_at else None,
        stage=grace_stage(state, moment),
        ends_reservations=is_late or (asked_at != 0 and gone_s > policy.patience_s),
        is_late=is_late,
    )


def _close_idle(state: ChannelState, moment: Moment, policy: SettlePolicy) -> Due | None:
    """A channel nobody uses gives its deposit back (F-101, SETTLE-01)."""
    if policy.close_idle_s is None or state.reservations or not state.deposit:
        return None
    if moment.age_s(state.active_at) < policy.close_idle_s:
        return None
    return Due(
        key=state.key,
        action=Action.CLOSE,
        reason=Reason.IDLE,
        value=state.deposit - state.settled,
        idle=Idle(state.active_at, state.spent),
    )


def _settle(watched: Watched, moment: Moment, policy: SettlePolicy) -> Due | None:
    state = watched.state
    voucher = settling_voucher(state)
    if voucher is None or voucher.cumulative_amount > state.deposit:
        return None
    value = voucher.cumulative_amount - state.settled
    reason = _why_settle(watched, value, moment, policy)
    if reason is None:
        return None
    return Due(
        key=state.key,
        action=Action.SETTLE,
        reason=reason,
        value=value,
        voucher=voucher,
    )


def _why_settle(
    watched: Watched, value: int, moment: Moment, policy: SettlePolicy
) -> Reason | None:
    """Return the first reason that applies, the most pressing first."""
    unsettled = watched.state.accepted - watched.state.settled
    bound = policy.exposure_max
    if bound is not None and _PERCENT * unsettled >= policy.exposure_share_percent * bound:
        return Reason.EXPOSURE
    if moment.is_crowded or watched.is_crowded:
        return Reason.EXPOSURE
    since = watched.unsettled_since
    age_s = 0 if since is None else moment.age_s(since)
    if watched.is_wallet:
        share = policy.wallet_share_percent
        if _PERCENT * value >= share * policy.settle_value or (
            _PERCENT * age_s >= share * policy.settle_age_s
        ):
            return Reason.WALLET
    if value >= policy.settle_value:
        return Reason.VALUE
    if policy.settle_units is not None and value >= policy.settle_units * policy.unit_price:
        return Reason.UNITS
    return Reason.AGE if age_s >= policy.settle_age_s else None


def _is_worth(due: Due, moment: Moment, policy: SettlePolicy) -> bool:
    """Whether it brings more than its gas. A close that was decided is owed, whatever it costs."""
    if due.reason is Reason.PROMISED:
        return True
    return due.value >= policy.gas_cost(policy.gas_per_entry, moment.gas_price_wei)


def _affordable(dues: Sequence[Due], moment: Moment, policy: SettlePolicy) -> list[Due]:
    """Return those whose gas is a small enough share of their value, in a batch together."""
    each = policy.gas_cost(policy.gas_per_entry, moment.gas_price_wei)
    share = policy.gas_share_max_percent
    cheap = [due for due in dues if share * due.value >= _PERCENT * each]
    spare = sum(share * due.value - _PERCENT * each for due in cheap)
    overhead = policy.gas_cost(policy.gas_per_batch, moment.gas_price_wei)
    return cheap if spare >= _PERCENT * overhead else []


def _urgency(due: Due) -> tuple[object, ...]:
    """Deadlines first, the latest quarter of the grace first, then by value (F-66)."""
    deadline = due.deadline if due.deadline is not None else 0
    has_none = due.deadline is None
    return (has_none, -due.stage, not due.reason.is_escalating, -due.value, deadline, due.key)
