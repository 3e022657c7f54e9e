"""What to pay for a transaction (pure)."""

from typing import Final

import msgspec

from channel.errors import ConfigError

__all__ = ["Fee", "FeePolicy", "choose_fee"]

_HEADROOM: Final = 2
"""The base fee can rise by an eighth per block: twice covers six full blocks in a row (F-77)."""


class Fee(msgspec.Struct, frozen=True, gc=False):
    """The two bids of an EIP-1559 transaction, per unit of gas."""

    max_fee_wei: int
    tip_wei: int


class FeePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what is bid, per unit of gas."""

    tip_wei_min: int = 1_000_000
    """A node's own suggestion can be 1 wei, which some chains never mine (F-77)."""
    max_fee_wei: int | None = None
    """Refuse to bid more than this; None for no bound."""


def choose_fee(*, base_fee_wei: int, suggested_tip_wei: int, policy: FeePolicy) -> Fee:
    """Bid twice the base fee plus a tip.

    Raises:
        ConfigError: The policy's bound is below the base fee: it could not be mined now.
    """
    tip_wei = max(suggested_tip_wei, policy.tip_wei_min)
    bid_wei = _HEADROOM * base_fee_wei + tip_wei
    if policy.max_fee_wei is None or bid_wei <= policy.max_fee_wei:
        return Fee(max_fee_wei=bid_wei, tip_wei=tip_wei)
    if policy.max_fee_wei < base_fee_wei:
        msg = f"max_fee_wei {policy.max_fee_wei} is below the base fee {base_fee_wei}."
        raise ConfigError(msg)
    return Fee(max_fee_wei=policy.max_fee_wei, tip_wei=min(tip_wei, policy.max_fee_wei))
