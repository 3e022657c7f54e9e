"""How large a fast stream's steps become."""

from hypothesis import given
from hypothesis import strategies as st

from channel.client.policy.rate import LEAD_S, MEASURED_S_MIN, STEP_S, DeliveryRate


def run(rate: DeliveryRate, *, per_s: int, seconds: int, began: float = 0.0) -> None:
    for tenth in range(1, 10 * seconds + 1):
        rate.add(per_s // 10)
        rate.measure(began + tenth / 10 + 1e-6 * tenth)


def test_a_step_lasts_half_a_second_of_a_fast_stream() -> None:
    """VCH-09: two half steps a second each way, far from any server's limit."""
    rate = DeliveryRate(0.0)
    run(rate, per_s=1_000, seconds=3)
    assert 490 <= rate.step <= 500 == 1_000 * STEP_S
    assert 3_900 <= rate.lead <= 4_000 == 1_000 * LEAD_S


def test_a_burst_says_nothing() -> None:
    """F-94: what came in one packet is not a pace."""
    rate = DeliveryRate(0.0)
    rate.add(500)
    rate.measure(MEASURED_S_MIN / 2)
    assert (rate.step, rate.lead) == (0, 0)


def test_a_pause_does_not_count() -> None:
    """A stream that waited for our voucher is not slow."""
    rate = DeliveryRate(0.0)
    run(rate, per_s=1_000, seconds=1)
    rate.leave_out(60.0)
    run(rate, per_s=1_000, seconds=1, began=61.0)
    assert rate.step >= 490


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 10, allow_nan=False)), max_size=30))
def test_a_step_is_never_larger_than_what_was_delivered(
    events: list[tuple[int, float]],
) -> None:
    """F-94: a server gains nothing by a fast beginning."""
    now, rate = 0.0, DeliveryRate(0.0)
    for units, seconds in events:
        rate.add(units)
        now += seconds
        rate.measure(now)
        assert 0 <= rate.step <= sum(count for count, _ in events)
    assert rate.step <= sum(count for count, _ in events)
