"""Decides which channel to settle or close, when, and with which voucher (pure).

There are two cases. A payer that requested a close sets a deadline: those channels are closed
first, ordered by the quarter of the grace period that has passed and then by value (F-66). Every
other channel is settled when it pays: enough is unsettled, for long enough, or a bound on unsettled
amounts is near. A live channel is never settled above `spent`, because the rest is not delivered
yet (decision 5).
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
    """The call to the escrow."""

    SETTLE = "settle"
    CLOSE = "close"


class Reason(enum.Enum):
    """Why the action is due now."""

    PROMISED = "a close was decided"
    FORCED_CLOSE = "its payer requested a close"
    EXPOSURE = "as much is unsettled as may be"
    VALUE = "enough is unsettled"
    UNITS = "enough units are unsettled"
    AGE = "it is unsettled for long enough"
    WALLET = "its signer is a contract, which may change its mind"
    IDLE = "nothing was bought for long enough"

    @property
    def is_escalating(self) -> bool:
        """Whether waiting for cheaper gas could cost more than the gas."""
        return self not in (Reason.VALUE, Reason.UNITS, Reason.AGE, Reason.IDLE)


class SettlePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When settling and closing pays. Amounts are in base units of the token."""

    settle_value: int = 1_000_000
    settle_age_s: int = 24 * 3600
    settle_units: int | None = None
    unit_price: int = 1
    """Price of one unit, if settling by units is configured."""
    wallet_share_percent: int = 10
    """Share of the bounds above for a contract signer (F-19, SEC-08)."""
    exposure_max: int | None = None
    """Bound on one channel's unsettled amount; settling starts at `exposure_share_percent`."""
    exposure_share_percent: int = 50
    close_idle_s: int | None = 30 * 24 * 3600
    defend_min: int = 1
    """Least amount at risk for which a requested close is answered with a close."""
    patience_s: int = 120
    """Seconds after a close request, in block time, that running requests may take to end."""
    deadline_share_percent: int = 75
    """Share of the grace period after which the settler waits for nothing."""
    gas_share_max_percent: int = 5
    """Share of a settled amount that gas may cost; the whole amount if urgent (F-78)."""
    token_price_wei: int | None = None
    """Price of one whole token in wei. None: gas is not weighed."""
    token_decimals: int = 6
    gas_per_entry: int = 26_000
    """Gas of one channel in a batch."""
    gas_per_batch: int = 60_000

    def gas_cost(self, gas: int, gas_price_wei: int) -> int:
        """Return the cost of gas in base units of the token; 0 if gas is not weighed."""
        if self.token_price_wei is None:
            return 0
        return int(gas * gas_price_wei * 10**self.token_decimals // self.token_price_wei)


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """The time and load at which decisions are made."""

    now: int
    """The chain's time in Unix seconds: the escrow judges deadlines by it (F-111)."""
    earliest: int | None = None
    """The earlier of the chain's time and this machine's; `now` if None.

    Decisions that depend only on age use it, so that one node's false time costs nothing.
    """
    grace_period_s: int
    gas_price_wei: int = 0
    is_crowded: bool = False
    """The sum over all channels is near its bound."""

    def age_s(self, since: int) -> int:
        """Return how many seconds have certainly passed since then."""
        return (self.now if self.earliest is None else self.earliest) - since


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """A channel, and what the ledger does not store about it."""

    state: ChannelState
    unsettled_since: int | None = None
    """Chain time since which an amount is unsettled."""
    is_wallet: bool = False
    """Its signer is a contract."""
    is_crowded: bool = False
    """The sum over its signer's channels is near its bound."""


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """One action that is due."""

    key: ChannelKey
    action: Action
    reason: Reason
    value: int
    """The amount it brings the payee, in base units."""
    voucher: LadderVoucher | None = None
    """The voucher to settle with. A close chooses its own once no request runs."""
    deadline: int | None = None
    """Chain time at which the payer may withdraw everything."""
    stage: int = 0
    """Passed part of the grace period: 0, 25, 50, 75 or 100 per cent."""
    ends_reservations: bool = False
    """Do not wait for running requests."""
    idle: Idle | None = None
    """For the close of an idle channel: its state when it was found idle."""
    is_late: bool = False
    """If the escrow refuses the close, settle at least what was delivered (F-86)."""


def value_at_risk(state: ChannelState) -> int:
    """Return what was delivered or reserved for a running stream, and is not settled."""
    return max(0, state.spent + state.reserved - state.settled)


def grace_stage(state: ChannelState, moment: Moment) -> int:
    """Return the passed part of the grace period: 0, 25, 50, 75 or 100 per cent (F-64)."""
    if not state.close_requested_at or state.is_finalized:
        return 0
    gone = _PERCENT * (moment.now - state.close_requested_at) // max(1, moment.grace_period_s)
    return max((stage for stage in _STAGES if gone >= stage), default=0)


def owes_close(state: ChannelState, policy: SettlePolicy) -> bool:
    """Whether a close is due: one that was decided, or a payer's exit that would cost the payee.

    If nothing beyond `settled` was delivered, the payer may simply withdraw.
    """
    if state.is_finalized:
        return False
    if state.closing_with is not None:
        return True
    return state.close_requested_at != 0 and value_at_risk(state) >= policy.defend_min


def decide(watched: Watched, moment: Moment, policy: SettlePolicy) -> Due | None:
    """Return the action due for one channel now, or None. `choose` weighs the gas."""
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
    """Return which due actions to take now, the most urgent first.

    An action that is not urgent is left out while its gas would cost too large a share of its
    value, alone or in a batch with others.
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
    """Close an idle channel, which returns its deposit to the payer (F-101, SETTLE-01)."""
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
    """Return the first reason that applies, the most urgent first."""
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
    """Whether the action brings more than its gas. A decided close is due at any cost."""
    if due.reason is Reason.PROMISED:
        return True
    return due.value >= policy.gas_cost(policy.gas_per_entry, moment.gas_price_wei)


def _affordable(dues: Sequence[Due], moment: Moment, policy: SettlePolicy) -> list[Due]:
    """Return the actions whose gas is a small enough share of their value, as one batch."""
    each = policy.gas_cost(policy.gas_per_entry, moment.gas_price_wei)
    share = policy.gas_share_max_percent
    cheap = [due for due in dues if share * due.value >= _PERCENT * each]
    spare = sum(share * due.value - _PERCENT * each for due in cheap)
    overhead = policy.gas_cost(policy.gas_per_batch, moment.gas_price_wei)
    return cheap if spare >= _PERCENT * overhead else []


def _urgency(due: Due) -> tuple[object, ...]:
    """Sort key: deadlines first, the latest quarter of the grace first, then value (F-66)."""
    deadline = due.deadline if due.deadline is not None else 0
    has_none = due.deadline is None
    return (has_none, -due.stage, not due.reason.is_escalating, -due.value, deadline, due.key)
