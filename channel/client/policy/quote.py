"""What a request can cost at most, before it is sent (pure)."""

from collections.abc import Mapping

import msgspec

from channel.client.policy.policy import TokenLimits
from channel.client.policy.usage import RequestCost
from channel.tariff import Tariff
from channel.types import TokenUnit

__all__ = ["Quote", "quote_of"]


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """The most that one request can cost under the server's current offer; in base units."""

    origin: str
    tariff: Tariff
    """The offer's prices."""
    usage: Mapping[str, int | None]
    """The most units of each kind; None where only the answer's end or the limits bound it. Kinds
    that a server may exchange for each other, such as cached input for input, each have all."""
    amounts: Mapping[str, int | None]
    """What those units of each kind cost alone, without minimum and maximum."""
    amount: int
    """The most in all: by usage and tariff, and never above what the limits allow."""
    unit: TokenUnit | None = None
    """How amounts of the token are written; None where nothing says."""

    def __str__(self) -> str:
        unit = self.unit or TokenUnit("base units", 0)
        return f"at most {unit.format(self.amount)}"


def quote_of(
    origin: str, cost: RequestCost, limits: TokenLimits, *, unit: TokenUnit | None
) -> Quote:
    """Return the quote of a request that nothing was counted of."""
    usage = cost.greatest_by_kind()
    free = Tariff(cost.tariff.rates)
    total = cost.greatest_total()
    caps = (total, limits.deposit_max, limits.cumulative_max, limits.budget, limits.budget_total)
    return Quote(
        origin=origin,
        tariff=cost.tariff,
        usage=usage,
        amounts={
            kind: None if units is None else free.cost({kind: units})
            for kind, units in usage.items()
        },
        amount=min(cap for cap in caps if cap is not None),
        unit=unit,
    )
