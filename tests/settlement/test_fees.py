"""What is bid for a transaction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import ConfigError
from settlement.fees import Fee, FeePolicy, choose_fee

_WEI = st.integers(min_value=0, max_value=10**14)


def test_the_bid_is_twice_the_base_fee_and_a_tip() -> None:
    """F-77."""
    policy = FeePolicy(tip_wei_min=3)
    assert choose_fee(base_fee_wei=100, suggested_tip_wei=7, policy=policy) == Fee(207, 7)


def test_a_tip_nobody_mines_is_raised() -> None:
    """F-77: a node may suggest 1 wei, or none."""
    policy = FeePolicy(tip_wei_min=50)
    assert choose_fee(base_fee_wei=100, suggested_tip_wei=1, policy=policy) == Fee(250, 50)


def test_a_bound_below_the_base_fee_is_refused() -> None:
    with pytest.raises(ConfigError, match="below the base fee"):
        choose_fee(base_fee_wei=100, suggested_tip_wei=1, policy=FeePolicy(max_fee_wei=99))


@given(base_fee=_WEI, tip=_WEI, tip_min=_WEI, bound=_WEI)
def test_a_bid_keeps_the_bound_and_can_be_mined(
    base_fee: int, tip: int, tip_min: int, bound: int
) -> None:
    """F-78."""
    policy = FeePolicy(tip_wei_min=tip_min, max_fee_wei=base_fee + bound)
    fee = choose_fee(base_fee_wei=base_fee, suggested_tip_wei=tip, policy=policy)
    assert base_fee <= fee.max_fee_wei <= base_fee + bound
    assert 0 <= fee.tip_wei <= fee.max_fee_wei
