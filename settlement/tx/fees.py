"""Transaction fees: the first bid, raised bids, and ceilings by value at risk (pure)."""

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
    "queue_ceilings",
    "raise_fee",
]

_HEADROOM: Final = 2
"""The base fee can rise by an eighth per block: doubling covers six full blocks (F-77)."""

_BUMP_DIVISOR: Final = 8
"""Nodes accept a replacement only if it raises both fee fields by an eighth."""

_UNBOUNDED_MULTIPLE: Final = 8
"""Without a budget, the multiple of the usual bid that a raised bid may reach (F-78)."""

_PERCENT: Final = 100


class Fee(msgspec.Struct, frozen=True, gc=False):
    """The two fee fields of an EIP-1559 transaction, in wei per unit of gas."""

    max_fee_wei: int
    tip_wei: int


class FeePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on bids, and how they widen as a deadline nears."""

    tip_wei_min: int = 1_000_000
    """A node may suggest 1 wei, which some chains never mine (F-77)."""
    tip_wei_max: int = 200 * 10**9
    """A node's higher suggestion is ignored: it would pay the miner for nothing."""
    max_fee_wei: int | None = None
    """Never bid more than this per unit of gas. None: no bound."""
    calm_share_percent: int = 25
    """Share of a budget that may be bid while no deadline is near."""
    calm_above_s: int = 600
    """With more seconds than this before the deadline, the calm share applies."""
    full_below_s: int = 300
    """With fewer seconds than this, the whole budget may be bid."""


class GasBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What gas may cost, by the amount at risk (F-78)."""

    floor_wei: int = 10**16
    """For each channel, even if less is at risk: a close also returns the payer's deposit."""
    token_price_wei: int | None = None
    """Price of one whole token in wei. None: the floor alone applies."""
    token_decimals: int = 6

    def cover(self, values: Iterable[int]) -> int:
        """Return the budget of one transaction for channels with these base units at risk."""
        price, unit = self.token_price_wei or 0, 10**self.token_decimals
        return sum(max(self.floor_wei, value * price // unit) for value in values)


def fee_ceiling(
    *, gas: int, budget_wei: int | None, remaining_s: int | None, policy: FeePolicy
) -> int | None:
    """Return the highest bid per unit of gas; None for no bound (F-78).

    `remaining_s` is the time before the deadline, None without one. The share of the budget that
    may be bid rises linearly between `calm_above_s` and `full_below_s`.
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
    """What an unmined transaction costs in gas, and what it is worth."""

    gas: int
    budget_wei: int | None
    remaining_s: int | None


def queue_ceilings(stakes: Sequence[Stake], policy: FeePolicy) -> list[int | None]:
    """Return the highest bid for each of a key's unmined transactions, in order of nonce.

    Nonces are mined in order, so a cheap transaction holds up every later one (F-77). A later
    transaction may therefore lend its budget to those before it, if it can pay for all of them.
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
    """Bid twice the base fee plus a tip, but never above `ceiling_wei`.

    Raises:
        ConfigError: `max_fee_wei` is below the base fee: the transaction could not be mined now.
        FeeAboveBudgetError: The ceiling is below the base fee: the budget does not cover the cost
            now.
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
    """Whether the base fee is now above the bid, so that the next block cannot take it."""
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

    None if the ceiling leaves no room: the current bid stays. Without a ceiling, eight times the
    usual bid is the ceiling.
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
