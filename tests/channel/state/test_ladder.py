"""Which voucher goes to the chain: never more than was delivered, unless nothing less covers it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.commands import Observe, Release, Repair, Spend
from channel.state.ladder import (
    bracketing_vouchers,
    closing_voucher,
    forced_settling_voucher,
    settling_voucher,
)
from tests.channel.books import accepting, fact, opening, reserving, run, signature, voucher


def spent_to(spent: int, *amounts: int, settled: int = 0) -> ChannelState:
    """Return a channel that accepted `amounts` in order and delivered `spent`."""
    vouchers = [accepting(amount) for amount in amounts]
    state = run(opening(0), *vouchers)
    if spent:
        state = run(reserving(b"r", spent), Spend(b"r", spent), Release(b"r"), state=state)
    return run(Observe(fact(settled=settled, block=200)), state=state) if settled else state


def amount_of(kept: LadderVoucher | None) -> int | None:
    return None if kept is None else kept.cumulative_amount


@given(st.integers(0, 50), st.lists(st.none() | st.integers(0, 50), max_size=4))
def test_the_steps_are_the_nearest_kept_vouchers_on_each_side(
    spent: int, amounts: list[int | None]
) -> None:
    kept = [None if amount is None else LadderVoucher(amount, b"") for amount in amounts]
    below, above = bracketing_vouchers(spent, *kept)
    known = [amount for amount in amounts if amount is not None]
    assert amount_of(below) == max([a for a in known if a <= spent], default=None)
    assert amount_of(above) == min([a for a in known if a > spent], default=None)


def test_a_live_channel_settles_with_what_was_delivered_at_most() -> None:
    """F-46: the highest voucher would collect what was never delivered."""
    state = spent_to(15, 10, 20, 30)
    assert settling_voucher(state) == LadderVoucher(10, signature(10))


def test_vouchers_that_run_ahead_of_service_keep_the_lowest_step() -> None:
    """F-46: a voucher that equals `spent` must not push the next step out of the ladder."""
    state = spent_to(10, 10)
    ahead = run(accepting(20), accepting(30), reserving(b"s", 5), Spend(b"s", 5), state=state)
    assert amount_of(ahead.at_or_above_spent) == 20


def test_nothing_is_settled_twice() -> None:
    assert settling_voucher(spent_to(15, 10, 20, settled=10)) is None


def test_a_forced_settle_takes_all_that_was_delivered_and_as_little_more_as_is_kept() -> None:
    assert amount_of(forced_settling_voucher(spent_to(5, 10, 20, 30))) == 10
    assert amount_of(forced_settling_voucher(spent_to(10, 10, 20, 30))) == 10


@pytest.mark.parametrize(("spent", "settled"), [(0, 0), (10, 10), (5, 8)])
def test_a_forced_settle_takes_nothing_when_all_that_was_delivered_is_settled(
    spent: int, settled: int
) -> None:
    """F-46: a payer who asks for the rest before using anything gets all of it back."""
    assert forced_settling_voucher(spent_to(spent, 10, 20, settled=settled)) is None


def test_our_own_close_takes_the_lowest_kept_voucher_that_covers_spent() -> None:
    """CLOSE-02, AMB-08."""
    assert closing_voucher(spent_to(5, 10, 20, 30), None) == LadderVoucher(10, signature(10))


@pytest.mark.parametrize(("presented", "taken"), [(5, 5), (7, 7), (30, 30), (4, 10)])
def test_the_payers_close_is_taken_when_it_covers_spent(presented: int, taken: int) -> None:
    """CLOSE-02, F-68: a close below `spent` is replaced by a voucher that covers it."""
    state = spent_to(5, 10, 20, 30)
    assert closing_voucher(state, voucher(presented)).cumulative_amount == taken


def test_a_public_close_is_taken_only_when_it_equals_spent() -> None:
    """CLOSE-02: a stranger could have sent an amount that was on chain."""
    state = run(Observe(fact(settled=8, block=200)), state=spent_to(5, 10, 20))
    assert closing_voucher(state, voucher(8)) == LadderVoucher(8, b"")
    spent = spent_to(12, 10, 20)
    assert closing_voucher(spent, voucher(12)).cumulative_amount == 12


def test_what_is_settled_already_is_closed_by_the_forfeit_path() -> None:
    """CLOSE-07, F-33: no signature is needed and the payer gets the rest."""
    assert closing_voucher(spent_to(10, 10, settled=10), None) == LadderVoucher(10, b"")
    assert closing_voucher(spent_to(0, 10), None) == LadderVoucher(0, b"")


def test_a_close_takes_the_best_voucher_there_is_when_none_covers_spent() -> None:
    """SETTLE-05: an operator may have raised `spent` above every voucher that was kept."""
    state = run(Repair(accepted=50, spent=50), state=spent_to(5, 10))
    assert closing_voucher(state, None).cumulative_amount == 10
