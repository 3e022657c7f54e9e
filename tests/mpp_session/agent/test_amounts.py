"""People read decimals; not a base unit is lost on the way."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp_session.agent.amounts import TokenUnit

DOLLAR = TokenUnit("dUSD", 6)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.000000 dUSD"),
        (25, "0.000025 dUSD"),
        (1_000_000, "1.000000 dUSD"),
        (1_234_567_890, "1,234.567890 dUSD"),
        (-25, "-0.000025 dUSD"),
    ],
)
def test_amounts_are_exact_decimals(amount: int, text: str) -> None:
    assert DOLLAR.format(amount) == text


def test_a_change_carries_its_sign() -> None:
    assert DOLLAR.format(5, signed=True) == "+0.000005 dUSD"


def test_a_token_without_decimals_has_no_point() -> None:
    assert TokenUnit("PT", 0).format(1200) == "1,200 PT"


@given(st.integers(-(2**128), 2**128), st.integers(0, 36))
def test_every_base_unit_survives(amount: int, decimals: int) -> None:
    text = TokenUnit("T", decimals).format(amount).removesuffix(" T").replace(",", "")
    assert Fraction(text) * 10**decimals == amount
