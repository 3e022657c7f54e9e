"""What is bid for a transaction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import ConfigError
from settlement.errors import FeeAboveBudgetError
from settlement.tx.fees import (
    Fee,
    FeePolicy,
    GasBudget,
    Stake,
    choose_fee,
    fee_ceiling,
    is_outbid,
    queue_ceilings,
    raise_fee,
)

_WEI = st.integers(min_value=0, max_value=10**14)


def test_the_bid_is_twice_the_base_fee_and_a_tip() -> None:
    """F-77."""
    policy = FeePolicy(tip_wei_min=3)
    assert choose_fee(base_fee_wei=100, suggested_tip_wei=7, policy=policy) == Fee(207, 7)


def test_a_tip_too_low_to_be_mined_is_raised() -> None:
    """F-77: a node may suggest 1 wei, or none."""
    policy = FeePolicy(tip_wei_min=50)
    assert choose_fee(base_fee_wei=100, suggested_tip_wei=1, policy=policy) == Fee(250, 50)


def test_a_tip_that_a_node_makes_up_is_not_paid() -> None:
    """F-78: without a budget it could take all that the account has."""
    policy = FeePolicy(tip_wei_min=1, tip_wei_max=50)
    fee = choose_fee(base_fee_wei=100, suggested_tip_wei=10**18, policy=policy)
    assert fee == Fee(250, 50)
    raised = raise_fee(
        fee, base_fee_wei=100, suggested_tip_wei=10**18, policy=policy, ceiling_wei=None
    )
    assert raised == Fee(282, 57)


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


# -- what a budget allows (F-78)


@pytest.mark.parametrize(
    ("remaining_s", "share"),
    [(None, 25), (10_000, 25), (600, 25), (450, 62), (300, 100), (0, 100), (-50, 100)],
)
def test_the_share_of_a_budget_rises_as_the_deadline_nears(
    remaining_s: int | None, share: int
) -> None:
    ceiling = fee_ceiling(
        gas=100, budget_wei=1_000_000, remaining_s=remaining_s, policy=FeePolicy()
    )
    assert ceiling == 10_000 * share // 100


def test_without_budget_and_bound_there_is_no_ceiling() -> None:
    assert fee_ceiling(gas=1, budget_wei=None, remaining_s=5, policy=FeePolicy()) is None
    bounded = FeePolicy(max_fee_wei=7)
    assert fee_ceiling(gas=1, budget_wei=None, remaining_s=5, policy=bounded) == 7
    assert fee_ceiling(gas=1, budget_wei=10**9, remaining_s=5, policy=bounded) == 7


def test_what_is_not_worth_its_gas_waits() -> None:
    with pytest.raises(FeeAboveBudgetError) as caught:
        choose_fee(base_fee_wei=100, suggested_tip_wei=1, policy=FeePolicy(), ceiling_wei=99)
    assert (caught.value.base_fee_wei, caught.value.ceiling_wei) == (100, 99)
    assert caught.value.status == 503


@given(base_fee=_WEI, tip=_WEI, room=_WEI, gas=st.integers(21_000, 10**7))
def test_no_bid_costs_more_than_its_budget(base_fee: int, tip: int, room: int, gas: int) -> None:
    """F-78: for every price of the market."""
    budget = (base_fee + room) * gas
    ceiling = fee_ceiling(gas=gas, budget_wei=budget, remaining_s=0, policy=FeePolicy())
    fee = choose_fee(
        base_fee_wei=base_fee, suggested_tip_wei=tip, policy=FeePolicy(), ceiling_wei=ceiling
    )
    assert base_fee <= fee.max_fee_wei
    assert fee.max_fee_wei * gas <= budget


@given(first=_WEI, tip=_WEI, base_fee=_WEI, suggested=_WEI, ceiling=st.none() | _WEI)
def test_a_raise_is_an_eighth_in_both_fields_and_within_the_ceiling(
    first: int, tip: int, base_fee: int, suggested: int, ceiling: int | None
) -> None:
    """F-77: a node takes no smaller raise as a replacement; the ceiling is never exceeded."""
    fee = Fee(max_fee_wei=max(first, tip), tip_wei=tip)
    for _ in range(5):
        raised = raise_fee(
            fee,
            base_fee_wei=base_fee,
            suggested_tip_wei=suggested,
            policy=FeePolicy(),
            ceiling_wei=ceiling,
        )
        if raised is None:
            return
        assert 8 * raised.max_fee_wei >= 9 * fee.max_fee_wei
        assert 8 * raised.tip_wei >= 9 * fee.tip_wei
        assert raised.max_fee_wei >= raised.tip_wei
        assert ceiling is None or raised.max_fee_wei <= ceiling
        fee = raised


def test_one_raise_follows_the_whole_rise_of_the_base_fee() -> None:
    raised = raise_fee(
        Fee(200, 10),
        base_fee_wei=2_000,
        suggested_tip_wei=10,
        policy=FeePolicy(tip_wei_min=1),
        ceiling_wei=10_000,
    )
    assert raised == Fee(4_012, 12)


def test_without_a_ceiling_raises_end_too() -> None:
    """F-78: a node that finds every bid too low does not take everything."""
    fee = Fee(210, 10)
    policy = FeePolicy(tip_wei_min=1)
    for _ in range(100):
        raised = raise_fee(
            fee, base_fee_wei=100, suggested_tip_wei=10, policy=policy, ceiling_wei=None
        )
        if raised is None:
            break
        fee = raised
    assert fee.max_fee_wei <= 8 * 210


def test_outbid_is_below_the_base_fee() -> None:
    assert is_outbid(Fee(99, 1), base_fee_wei=100)
    assert not is_outbid(Fee(100, 1), base_fee_wei=100)


def test_a_later_transaction_lends_its_budget_to_those_before_it() -> None:
    """F-77: a worthless one must not hold up one that is worth much, nor take all of it."""
    poor = Stake(gas=100, budget_wei=4_000, remaining_s=None)
    rich = Stake(gas=100, budget_wei=1_000_000, remaining_s=0)
    assert queue_ceilings([poor], FeePolicy()) == [10]
    assert queue_ceilings([poor, rich], FeePolicy()) == [5_000, 10_000]
    assert queue_ceilings([rich, poor], FeePolicy()) == [10_000, 10]
    unbounded = Stake(gas=1, budget_wei=None, remaining_s=None)
    assert queue_ceilings([poor, unbounded], FeePolicy()) == [None, None]
    assert queue_ceilings([], FeePolicy()) == []


@given(
    stakes=st.lists(
        st.builds(
            Stake,
            gas=st.integers(21_000, 10**6),
            budget_wei=st.integers(0, 10**20),
            remaining_s=st.none() | st.integers(-10, 1000),
        ),
        max_size=6,
    )
)
def test_no_transaction_costs_more_than_the_budgets_of_all(stakes: list[Stake]) -> None:
    """F-78: each ceiling times the gas up to the lender is within the lender's budget."""
    ceilings = queue_ceilings(stakes, FeePolicy())
    for first, ceiling in enumerate(ceilings):
        assert ceiling is not None
        lenders = range(first, len(stakes))
        assert any(
            ceiling * sum(stake.gas for stake in stakes[first : last + 1])
            <= (stakes[last].budget_wei or 0)
            for last in lenders
        )


def test_a_budget_is_what_is_at_risk_or_the_floor_for_each_channel() -> None:
    assert GasBudget(floor_wei=5).cover([0, 10**9]) == 10
    priced = GasBudget(floor_wei=5, token_price_wei=4 * 10**14, token_decimals=6)
    assert priced.cover([0, 1_000_000]) == 5 + 4 * 10**14
