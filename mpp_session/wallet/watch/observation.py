"""What a profile learns from and is asked about: one commitment of money (pure)."""

from typing import Literal

import msgspec

__all__ = ["KEY_BYTES", "Finding", "Observation"]

KEY_BYTES = 8
"""Of the digests that stand for requests and recipients in a profile."""


class Observation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One commitment of money of an agent to an origin. Amounts are base units of one token."""

    at: float
    is_deposit: bool = False
    """Whether it is locked in a channel, rather than signed or charged."""
    is_charge: bool = False
    """Whether it pays one request by one transfer."""
    amount: int
    """What is added. 0: nothing new is paid."""
    total: int
    """With it: the channel's deposit, or what the request has cost so far."""
    is_first: bool = True
    """Whether this is the first commitment of its request."""
    request: bytes
    """Equal for all commitments of one request."""
    payee: bytes
    prices: tuple[tuple[str, float], ...] = ()
    """The price of one unit of each kind."""

    @property
    def spent(self) -> int:
        """What is spent with it: a deposit spends nothing, yet shows what was spent before."""
        return 0 if self.is_deposit else self.amount


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is unusual about an observation."""

    statistic: Literal[
        "payee",
        "price",
        "newcomer",
        "deposit",
        "amount",
        "rate",
        "day",
        "excess",
        "hours",
        "repeat",
    ]
    is_origin: bool
    """Whether it is about the agent at this origin, rather than the agent as a whole."""
    seen: float
    limit: float
    """Above it, `seen` is unusual."""
    text: str
    """In one sentence, for people."""
