"""Budgets: how much may be signed within a rolling window, and how much may lie in deposits.

Pure (F-96).
"""

from collections.abc import Iterable

import msgspec

from channel.errors import BudgetExceededError
from channel.limits import AMOUNT_MAX

__all__ = ["Bound", "Budget", "LockedBudget", "require_within"]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """The most that may be signed of one token, in base units."""

    origin_max: int
    """For one origin, over all its channels."""
    total_max: int | None = None
    """For all origins together; None for no bound."""
    window_s: int

    @property
    def is_unbounded(self) -> bool:
        """Whether it allows every amount there is."""
        return self.origin_max >= AMOUNT_MAX and (
            self.total_max is None or self.total_max >= AMOUNT_MAX
        )

    def bounds(self, *, origin_used: int, total_used: int) -> list["Bound"]:
        """Return the bounds with what was signed within the window."""
        bounds = [Bound(f"what is signed within {self.window_s} s", self.origin_max, origin_used)]
        if self.total_max is not None:
            limit = f"what is signed for all origins within {self.window_s} s"
            bounds.append(Bound(limit, self.total_max, total_used))
        return bounds


class LockedBudget(msgspec.Struct, frozen=True):
    """The most that may lie in deposits of one token at the same time, in base units."""

    origin_max: int
    """For one origin, over all its channels."""
    total_max: int
    """For all origins together."""

    def bounds(self, *, origin_used: int, total_used: int) -> list["Bound"]:
        """Return the bounds with what is already locked."""
        return [
            Bound("what is locked in deposits (locked_max)", self.origin_max, origin_used),
            Bound(
                "what is locked in deposits for all origins (locked_total_max)",
                self.total_max,
                total_used,
            ),
        ]


class Bound(msgspec.Struct, frozen=True):
    """One sum of a budget, in base units."""

    limit: str
    """Its name, for the text of a refusal."""
    allowed: int
    used: int

    @property
    def left(self) -> int:
        """What may still be signed; never below zero."""
        return max(0, self.allowed - self.used)


def require_within(bounds: Iterable[Bound], increase: int, origin: str) -> None:
    """Check that `increase` more may be signed.

    Raises:
        BudgetExceededError: It may not.
    """
    for bound in bounds:
        if increase > bound.left:
            raise BudgetExceededError(
                limit=bound.limit,
                asked=bound.used + increase,
                allowed=bound.allowed,
                origin=origin,
            )
