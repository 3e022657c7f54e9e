"""What may be at risk: bounds that refuse, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import ExposureLimitError, OpeningsPausedError
from channel.types import Address, ChannelId, ChannelKey
from settlement.exposure import (
    Exposure,
    ExposureGate,
    ExposureLimits,
    add_up,
    exposure_of,
    gas_reserve_wei,
)
from settlement.schedule import Watched
from tests.settlement.test_schedule import channel, channels

KEY = ChannelKey(1, Address(b"e" * 20), ChannelId(b"c" * 32))
OTHER = ChannelKey(1, Address(b"e" * 20), ChannelId(b"d" * 32))


def test_both_sides_are_exposed_to_what_was_promised() -> None:
    state = channel(vouchers=(900,), spent=600, settled=200)
    assert exposure_of(state) == Exposure(payee=700, payer=300)
    assert add_up([state, state]) == Exposure(payee=1400, payer=600)


@given(channels())
def test_exposure_is_never_negative_and_ends_with_the_channel(each: Watched) -> None:
    state = each.state
    seen = exposure_of(state)
    assert seen.payee >= 0
    assert seen.payer >= 0
    if state.is_finalized:
        assert seen == Exposure()


def test_without_bounds_everything_is_taken() -> None:
    gate = ExposureGate()
    gate.require_room(KEY, 2**128 - 1, accepted=0, settled=0)
    gate.require_openings()
    assert not gate.is_full
    assert not gate.is_crowded


def test_a_channel_is_bounded_by_what_is_unsettled_and_told_what_is_taken() -> None:
    """F-64: settling makes room."""
    gate = ExposureGate(ExposureLimits(channel_max=100))
    gate.require_room(KEY, 100, accepted=90, settled=0)
    with pytest.raises(ExposureLimitError, match="up to 140 is taken now"):
        gate.require_room(KEY, 141, accepted=100, settled=40)
    gate.require_room(KEY, 140, accepted=100, settled=40)
    gate.require_room(KEY, 141, accepted=100, settled=41)


def test_a_repeat_is_never_refused() -> None:
    """VCH-04: it promises nothing new."""
    gate = ExposureGate(ExposureLimits(channel_max=10, total_max=10))
    gate.require_room(KEY, 500, accepted=500, settled=0)


def test_all_channels_together_are_bounded_between_two_sweeps_too() -> None:
    """F-66: what this process takes counts at once, not only with the next sweep."""
    gate = ExposureGate(ExposureLimits(total_max=1000))
    gate.take(400)
    assert not gate.is_crowded
    gate.require_room(KEY, 300, accepted=0, settled=0)
    assert gate.is_crowded
    with pytest.raises(ExposureLimitError, match="a settle is on its way"):
        gate.require_room(OTHER, 301, accepted=0, settled=0)
    gate.require_room(OTHER, 300, accepted=0, settled=0)
    assert gate.is_full
    gate.take(0)
    gate.require_room(OTHER, 1000, accepted=0, settled=0)


def test_room_that_was_not_used_is_given_back() -> None:
    """F-98: a voucher that is refused in the end keeps nobody else's out."""
    gate = ExposureGate(ExposureLimits(total_max=1000))
    room = gate.require_room(KEY, 1000, accepted=0, settled=0)
    assert (room, gate.is_full) == (1000, True)
    gate.give_back(room)
    assert gate.total == 0
    gate.take(400)
    gate.give_back(room)
    assert gate.total == 400


def test_what_is_settled_already_is_no_rise() -> None:
    gate = ExposureGate(ExposureLimits(total_max=10))
    gate.require_room(KEY, 510, accepted=300, settled=500)
    assert gate.total == 10


def test_a_blocked_channel_is_served_nothing_and_can_be_let_go_on() -> None:
    """F-19: what its wallet signs may be worth nothing."""
    gate = ExposureGate()
    gate.block(KEY)
    with pytest.raises(ExposureLimitError, match="wallet"):
        gate.require_room(KEY, 5, accepted=5, settled=0)
    gate.require_room(OTHER, 5, accepted=0, settled=0)
    gate.unblock(KEY)
    gate.require_room(KEY, 5, accepted=5, settled=0)


def test_openings_are_refused_while_gas_is_low() -> None:
    """F-65."""
    gate = ExposureGate()
    gate.is_gas_low = True
    with pytest.raises(OpeningsPausedError) as refused:
        gate.require_openings()
    assert (refused.value.status, refused.value.retry_after_s) == (503, 60)
    gate.require_room(KEY, 5, accepted=0, settled=0)


def test_the_reserve_is_for_so_many_closes_at_twice_todays_price() -> None:
    assert gas_reserve_wei(10, gas_per_close=80_000, base_fee_wei=10**9) == 1_600_000 * 10**9


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from([KEY, OTHER]), st.integers(0, 400)), max_size=20),
)
def test_the_total_never_passes_its_bound(
    swept: int, promises: list[tuple[ChannelKey, int]]
) -> None:
    gate = ExposureGate(ExposureLimits(total_max=1000))
    gate.take(swept)
    accepted = {KEY: 0, OTHER: 0}
    for key, amount in promises:
        try:
            gate.require_room(key, amount, accepted=accepted[key], settled=0)
        except ExposureLimitError:
            continue
        accepted[key] = max(accepted[key], amount)
        assert gate.total == swept + sum(accepted.values()) <= 1000
