"""What a tower should have for a channel: decision 5, for one who is not there to ask."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.errors import ConfigError
from channel.state.channel_state import LadderVoucher
from settlement.presigned.cover import (
    Covered,
    CoverPolicy,
    covering_voucher,
    is_newer_due,
    uncovered,
)
from settlement.settle.schedule import Watched
from tests.settlement.settle.test_schedule import NOW, channel, channels

POLICY = CoverPolicy(uncovered_max=100, uncovered_age_s=300, life_s=100_000)
FRESH = NOW + POLICY.life_s


def amount(*, policy: CoverPolicy = POLICY, **of: object) -> int | None:
    voucher = covering_voucher(channel(**of), policy)  # type: ignore[arg-type]
    return None if voucher is None else voucher.cumulative_amount


def is_due(
    voucher_amount: int,
    *,
    last: int = 0,
    deadline: int = FRESH,
    since: int = NOW,
    **of: object,
) -> bool:
    return is_newer_due(
        channel(**of),  # type: ignore[arg-type]
        LadderVoucher(voucher_amount, b""),
        Covered(last, deadline),
        POLICY,
        now=NOW,
        uncovered_since=since,
    )


def test_a_live_channel_is_covered_by_what_was_delivered() -> None:
    """Decision 5: the greatest at or below `spent`."""
    assert amount(vouchers=(500, 900), spent=550) == 500
    assert amount(vouchers=(500, 900), spent=600) == 500
    assert amount(vouchers=(900,), spent=900) == 900
    assert amount(vouchers=(900,), spent=50) is None


def test_one_who_signs_in_large_steps_is_covered_above_what_was_delivered() -> None:
    """F-46: the lowest that covers it; else nothing would, until the step is used up."""
    assert amount(vouchers=(500, 900), spent=601) == 900
    assert amount(vouchers=(900,), spent=101) == 900
    assert amount(vouchers=(900,), spent=501, settled=400) == 900


def test_whose_payer_leaves_is_covered_in_full() -> None:
    """F-64, decision 5."""
    assert amount(vouchers=(500, 900), spent=501, asked_at=NOW) == 900
    assert amount(vouchers=(500,), spent=500, asked_at=NOW) == 500
    assert amount(vouchers=(500, 900), spent=500, settled=500, asked_at=NOW) is None


@given(channels(), st.integers(1, 10**12))
def test_never_above_delivered_while_little_goes_without(each: Watched, uncovered_max: int) -> None:
    """Decision 5: what is above `spent` is signed ahead only where else more would be lost."""
    state, policy = each.state, CoverPolicy(uncovered_max=uncovered_max)
    voucher = covering_voucher(state, policy)
    if voucher is None:
        return
    assert voucher.cumulative_amount > state.settled
    assert voucher.cumulative_amount <= state.accepted
    if voucher.cumulative_amount > state.spent:
        kept = state.at_or_below_spent
        covered = max(state.settled, 0 if kept is None else kept.cumulative_amount)
        assert state.close_requested_at or state.spent - covered > uncovered_max


@given(channels(), st.integers(1, 10**12))
def test_no_more_than_allowed_goes_without(each: Watched, uncovered_max: int) -> None:
    """F-64: as far as any voucher of the payer's reaches."""
    state, policy = each.state, CoverPolicy(uncovered_max=uncovered_max)
    if state.is_finalized or state.highest.cumulative_amount < state.spent:
        return
    voucher = covering_voucher(state, policy)
    covered = Covered() if voucher is None else Covered(voucher.cumulative_amount)
    assert uncovered(state, covered) <= (0 if state.close_requested_at else uncovered_max)


def test_a_newer_one_is_due_by_amount() -> None:
    assert not is_due(600, last=500, vouchers=(500, 600), spent=600)
    assert is_due(601, last=500, vouchers=(500, 601), spent=601)
    assert not is_due(500, last=500, vouchers=(500,), spent=500)


def test_a_newer_one_is_due_by_age() -> None:
    assert not is_due(510, last=500, vouchers=(510,), spent=510, since=NOW - 299)
    assert is_due(510, last=500, vouchers=(510,), spent=510, since=NOW - 300)


def test_a_newer_one_is_due_immediately_when_the_payer_leaves() -> None:
    assert is_due(501, last=500, vouchers=(501,), spent=501, asked_at=NOW)
    assert not is_due(501, last=501, vouchers=(501,), spent=501, asked_at=NOW)


def test_half_of_its_life_is_always_left() -> None:
    """RELAY-04: short enough to end, long enough to outlive an outage and the grace after it."""
    half = NOW + POLICY.life_s // 2
    assert not is_due(500, last=500, deadline=half, vouchers=(500,), spent=500)
    assert is_due(500, last=500, deadline=half - 1, vouchers=(500,), spent=500)
    settled = channel(vouchers=(500,), spent=500, settled=500)
    assert covering_voucher(settled, POLICY) is None, "what is settled needs no renewal"


def test_a_life_that_an_outage_would_outlast_is_refused() -> None:
    """Decision 15: half of it must cover an outage and the grace period after it."""
    replace(POLICY, life_s=7200).require_outlives(900)
    with pytest.raises(ConfigError, match="too short for an outage and the grace period"):
        replace(POLICY, life_s=7199).require_outlives(900)
