"""What is left of a budget is the least that either of its sums leaves."""

import pytest

from channel.client.policy.budget import Budget, require_within
from channel.errors import BudgetExceededError

ORIGIN = "https://api.example:443"
BOTH = Budget(origin_max=100, total_max=250, window_s=60)


@pytest.mark.parametrize(
    ("origin_used", "total_used", "increase"), [(0, 0, 100), (70, 240, 10), (99, 99, 1)]
)
def test_what_fits_both_sums_is_allowed(origin_used: int, total_used: int, increase: int) -> None:
    """F-96: to the last base unit."""
    bounds = BOTH.bounds(origin_used=origin_used, total_used=total_used)
    require_within(bounds, increase, ORIGIN)
    with pytest.raises(BudgetExceededError):
        require_within(bounds, increase + 1, ORIGIN)


def test_a_refusal_names_the_sum_that_is_used_up() -> None:
    """F-96."""
    with pytest.raises(BudgetExceededError, match="for all origins within 60 s to 251") as caught:
        require_within(BOTH.bounds(origin_used=0, total_used=250), 1, ORIGIN)
    assert (caught.value.asked, caught.value.allowed, caught.value.origin) == (251, 250, ORIGIN)


def test_what_is_overdrawn_leaves_nothing() -> None:
    """A budget may be made smaller than what was signed before."""
    (bound,) = Budget(origin_max=10, window_s=60).bounds(origin_used=30, total_used=90)
    assert bound.left == 0
    require_within([bound], 0, ORIGIN)
