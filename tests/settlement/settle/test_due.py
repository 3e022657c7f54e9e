"""What is due, from one sweep to the next: what is owed, and since when something is unsettled."""

from msgspec.structs import replace

from channel.methods.evm.method import EVM
from settlement.settle.due import DueList, SweepState
from settlement.settle.schedule import Action, Moment, Reason, SettlePolicy
from tests.settlement.settle.test_schedule import NOW, channel

HOUR_S = 3600
POLICY = SettlePolicy(
    settle_value=10**9, settle_age_s=HOUR_S, close_idle_s=None, wallet_share_percent=100
)


def moment(after_s: int = 0) -> Moment:
    return Moment(now=NOW + after_s, grace_period_s=900)


def due_list() -> DueList:
    return DueList(POLICY, half_closed_s_max=0.0, domain=EVM.escrow.domain)


def test_what_is_unsettled_ages_from_when_it_was_first_seen() -> None:
    """SETTLE-01: and anew after each settle."""
    known, state = due_list(), channel(vouchers=(900,), spent=900, active_at=NOW)
    assert known.take(state, moment()) == []
    assert known.take(state, moment(HOUR_S - 1)) == []
    (due,) = known.take(state, moment(HOUR_S))
    assert due.action is Action.SETTLE
    settled = replace(channel(vouchers=(900, 950), spent=950, settled=900), active_at=NOW + HOUR_S)
    assert known.take(settled, moment(HOUR_S)) == []
    (due,) = known.take(settled, moment(2 * HOUR_S))
    assert due.action is Action.SETTLE


def test_an_exit_is_owed_until_it_has_ended_or_was_taken_back() -> None:
    """F-64, TOPUP-05."""
    known, leaving = due_list(), channel(vouchers=(900,), spent=900, asked_at=NOW)
    (due,) = known.take(leaving, moment())
    assert due.reason is Reason.FORCED_CLOSE
    assert dict(known.owed) == {leaving.key: leaving}
    known.take(replace(leaving, close_requested_at=0), moment())
    assert not known.owed
    known.take(leaving, moment())
    known.take(replace(leaving, is_finalized=True), moment())
    assert not known.owed


async def test_what_a_sweep_does_not_see_again_is_forgotten() -> None:
    known = due_list()
    gone = channel(number=1, vouchers=(900,), spent=900, asked_at=NOW)
    stays = channel(number=2, vouchers=(900,), spent=900, asked_at=NOW)
    for seen in ([gone, stays], [stays]):
        found = SweepState()
        for state in seen:
            known.take_in_round(state, moment(), found)
        known.end_round(found)
    assert set(known.owed) == {stays.key}


async def test_a_sweep_counts_what_is_at_risk_and_must_be_defended() -> None:
    """F-65, F-66: what was delivered or is held; not what was promised."""
    known, found = due_list(), SweepState()
    for state in (
        channel(number=1, vouchers=(900,), spent=600, settled=200, reserved=50),
        channel(number=2, vouchers=(900,), spent=0),
        channel(number=3, vouchers=(900,), spent=900, settled=900),
        replace(channel(number=4, vouchers=(900,), spent=900), is_finalized=True),
    ):
        known.take_in_round(state, moment(), found)
    assert (found.totals.at_risk, found.totals.defended) == (450, 1)


async def test_a_close_that_stays_undecided_is_reported_after_a_while() -> None:
    """F-40: its process died between the two steps."""
    half = replace(channel(vouchers=(900,), spent=900), is_closing=True)
    for longest_s, reported in ((3600.0, []), (0.0, [half.key])):
        known = DueList(POLICY, half_closed_s_max=longest_s, domain=EVM.escrow.domain)
        found = SweepState()
        known.take_in_round(half, moment(), found)
        assert known.end_round(found) == reported
