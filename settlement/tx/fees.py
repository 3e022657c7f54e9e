"""What to pay for a transaction: chosen, raised, and never above what it is worth (pure)."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from channel.errors import ConfigError
from settlement.errors import FeeAboveBudgetError

__all__ = [
    "Fee",
    "FeePolicy",
    "GasBudget",
    "Stake",
    "choose_fee",
    "fee_ceiling",
    "is_outbid",
    "lane_ceilings",
    "raise_fee",
]

_HEADROOM: Final = 2
"""The base fee can rise by an eighth per block: twice covers six full blocks in a row (F-77)."""

_BUMP_DIVISOR: Final = 8
"""Nodes replace a transaction only by one that bids an eighth more, in both fields."""

_UNBOUNDED_MULTIPLE: Final = 8
"""Without a budget, how far above the usual bid a stuck transaction may be raised (F-78)."""

_PERCENT: Final = 100


class Fee(msgspec.Struct, frozen=True, gc=False):
    """The two bids of an EIP-1559 transaction, per unit of gas."""

    max_fee_wei: int
    tip_wei: int


class FeePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what is bid, and how they open as a deadline nears."""

    tip_wei_min: int = 1_000_000
    """A node's own suggestion can be 1 wei, which some chains never mine (F-77)."""
    tip_wei_max: int = 200 * 10**9
    """A node's suggestion above this is not believed: it would pay a miner, not for a place."""
    max_fee_wei: int | None = None
    """Refuse to bid more than this per unit of gas; None for no bound."""
    calm_share_percent: int = 25
    """Share of a budget that is bid while nothing presses."""
    calm_above_s: int = 600
    """With more time than this before a deadline, nothing presses."""
    full_below_s: int = 300
    """With less time than this, the whole budget is bid."""


class GasBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What gas may cost, by what is at risk (F-78)."""

    floor_wei: int = 10**16
    """For each channel, also where less is at risk: a close gives the payer's deposit back."""
    token_price_wei: int | None = None
    """What one whole token is worth in wei; None: the floor is all there is."""
    token_decimals: int = 6

    def cover(self, values: Iterable[int]) -> int:
        """Return the budget of one transaction for channels with so much at risk, in base units."""
        price, unit = self.token_price_wei or 0, 10**self.token_decimals
        return sum(max(self.floor_wei, value * price // unit) for value in values)


def fee_ceiling(
    *, gas: int, budget_wei: int | None, remaining_s: int | None, policy: FeePolicy
) -> int | None:
    """Return the most to bid per unit of gas; None for no bound (F-78).

    `remaining_s` is what is left before the deadline, None when there is none. The share of the
    budget that may be bid rises in a straight line between `calm_above_s` and `full_below_s`.
    """
    bounds = [] if policy.max_fee_wei is None else [policy.max_fee_wei]
    if budget_wei is not None:
        share = _share_percent(remaining_s, policy)
        bounds.append(budget_wei * share // (_PERCENT * max(1, gas)))
    return min(bounds) if bounds else None


def _share_percent(remaining_s: int | None, policy: FeePolicy) -> int:
    calm = policy.calm_share_percent
    if remaining_s is None or remaining_s >= policy.calm_above_s:
        return calm
    if remaining_s <= policy.full_below_s:
        return _PERCENT
    elapsed = policy.calm_above_s - remaining_s
    return calm + (_PERCENT - calm) * elapsed // (policy.calm_above_s - policy.full_below_s)


class Stake(msgspec.Struct, frozen=True, gc=False):
    """What a transaction that is not mined needs, and what it is worth."""

    gas: int
    budget_wei: int | None
    remaining_s: int | None


def lane_ceilings(stakes: Sequence[Stake], policy: FeePolicy) -> list[int | None]:
    """Return the most to bid for each of a key's unmined transactions, in order of nonce.

    Nonces are mined in order, so a cheap transaction holds up every later one (F-77). A later
    one may therefore lend its budget to those before it, as far as it pays for all of them.
    """
    ceilings: list[int | None] = []
    for first in range(len(stakes)):
        gas = 0
        best: int | None = 0
        for stake in stakes[first:]:
            gas += stake.gas
            ceiling = fee_ceiling(
                gas=gas, budget_wei=stake.budget_wei, remaining_s=stake.remaining_s, policy=policy
            )
            best = None if best is None or ceiling is None else max(best, ceiling)
        ceilings.append(best)
    return ceilings


def choose_fee(
    *,
    base_fee_wei: int,
    suggested_tip_wei: int,
    policy: FeePolicy,
    ceiling_wei: int | None = None,
) -> Fee:
    """Bid twice the base fee plus a tip, and never above `ceiling_wei`.

    Raises:
        ConfigError: The policy's own bound is below the base fee: it could not be mined now.
        FeeAboveBudgetError: The ceiling is: it is not worth what it would cost now.
    """
    tip_wei = _believed_tip(suggested_tip_wei, policy)
    bid_wei = _HEADROOM * base_fee_wei + tip_wei
    if policy.max_fee_wei is not None and policy.max_fee_wei < base_fee_wei:
        msg = f"max_fee_wei {policy.max_fee_wei} is below the base fee {base_fee_wei}."
        raise ConfigError(msg)
    if ceiling_wei is not None and ceiling_wei < base_fee_wei:
        raise FeeAboveBudgetError(base_fee_wei=base_fee_wei, ceiling_wei=ceiling_wei)
    bounds = [bound for bound in (policy.max_fee_wei, ceiling_wei) if bound is not None]
    max_fee_wei = min([bid_wei, *bounds])
    return Fee(max_fee_wei=max_fee_wei, tip_wei=min(tip_wei, max_fee_wei))


def is_outbid(fee: Fee, *, base_fee_wei: int) -> bool:
    """Whether the base fee has risen so far that the next block cannot take the transaction."""
    return fee.max_fee_wei < base_fee_wei


def raise_fee(
    previous: Fee,
    *,
    base_fee_wei: int,
    suggested_tip_wei: int,
    policy: FeePolicy,
    ceiling_wei: int | None,
) -> Fee | None:
    """Return a bid that replaces `previous`: at least an eighth more in both fields (F-77).

    None when the ceiling leaves no room for that: the bid stands and is waited for. Where no
    ceiling is set, eight times the usual bid is one.
    """
    suggested_tip_wei = _believed_tip(suggested_tip_wei, policy)
    tip_wei = max(_bumped(previous.tip_wei), suggested_tip_wei)
    wanted_wei = _HEADROOM * base_fee_wei + tip_wei
    least_wei = max(_bumped(previous.max_fee_wei), _bumped(previous.tip_wei))
    if ceiling_wei is None:
        ceiling_wei = _UNBOUNDED_MULTIPLE * (_HEADROOM * base_fee_wei + suggested_tip_wei)
    max_fee_wei = min(max(wanted_wei, least_wei), ceiling_wei)
    if max_fee_wei < least_wei:
        return None
    return Fee(max_fee_wei=max_fee_wei, tip_wei=min(tip_wei, max_fee_wei))


def _believed_tip(suggested_wei: int, policy: FeePolicy) -> int:
    return max(min(suggested_wei, policy.tip_wei_max), policy.tip_wei_min)


def _bumped(wei: int) -> int:
    return wei + max(1, -(-wei // _BUMP_DIVISOR))
