"""When to settle and when to close: properties over drawn channels, and the cases by name."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.state.channel_state import (
    ChannelState,
    LadderVoucher,
    Reservation,
    ReservationKind,
    require_invariants,
)
from channel.state.ladder import bracketing_vouchers
from channel.types import ZERO_ADDRESS, Address, ChannelId, ChannelKey, ChannelTerms
from settlement.settle.schedule import (
    Action,
    Due,
    Moment,
    Reason,
    SettlePolicy,
    Watched,
    decide,
    grace_stage,
    owes_close,
    value_at_risk,
)
from tests.settlement.planning import plan

NOW = 1_900_000_000
GRACE_S = 900
HOUR_S = 3600


def channel(  # noqa: PLR0913 -- what a case is about, by name
    *,
    number: int = 1,
    deposit: int = 10_000_000,
    vouchers: tuple[int, ...] = (),
    spent: int = 0,
    settled: int = 0,
    reserved: int = 0,
    asked_at: int = 0,
    active_at: int = NOW,
    payee: bytes = b"p" * 20,
    escrow: bytes = b"e" * 20,
) -> ChannelState:
    kept = [LadderVoucher(amount, bytes(65)) for amount in vouchers] or [LadderVoucher(0, b"")]
    below, above = bracketing_vouchers(spent, *kept)
    held = Reservation(b"r" * 16, ReservationKind.STREAM, reserved, NOW + 60)
    state = ChannelState(
        key=ChannelKey(1, Address(escrow), ChannelId(number.to_bytes(32, "big"))),
        terms=ChannelTerms(
            payer=Address(b"a" * 20),
            payee=Address(payee),
            token=Address(b"t" * 20),
            authorized_signer=ZERO_ADDRESS,
        ),
        deposit=deposit,
        settled=settled,
        accepted=max(kept[-1].cumulative_amount, settled),
        spent=spent,
        published=settled,
        close_requested_at=asked_at,
        is_finalized=False,
        fact_block=1,
        highest=kept[-1],
        at_or_below_spent=below,
        above_spent=above,
        active_at=active_at,
        reservations=(held,) if reserved else (),
    )
    require_invariants(state)
    return state


def moment(now: int = NOW, gas_price_wei: int = 0) -> Moment:
    return Moment(now=now, grace_period_s=GRACE_S, gas_price_wei=gas_price_wei)


def watched(state: ChannelState, *, age_s: int = 0, is_wallet: bool = False) -> Watched:
    return Watched(state=state, unsettled_since=NOW - age_s, is_wallet=is_wallet)


def why(
    state: ChannelState,
    policy: SettlePolicy | None = None,
    *,
    age_s: int = 0,
    is_wallet: bool = False,
) -> Reason | None:
    due = decide(
        watched(state, age_s=age_s, is_wallet=is_wallet), moment(), policy or SettlePolicy()
    )
    return None if due is None else due.reason


# -- why a live channel is settled (SETTLE-01)


def test_little_and_new_is_left_alone() -> None:
    assert why(channel(vouchers=(500,), spent=500), age_s=HOUR_S) is None


def test_enough_value_is_settled() -> None:
    assert why(channel(vouchers=(1_000_000,), spent=1_000_000)) is Reason.VALUE


def test_what_is_unsettled_for_long_is_settled() -> None:
    assert why(channel(vouchers=(500,), spent=500), age_s=24 * HOUR_S) is Reason.AGE


def test_enough_units_are_settled() -> None:
    policy = SettlePolicy(settle_units=1000, unit_price=25)
    assert why(channel(vouchers=(25_000,), spent=25_000), policy) is Reason.UNITS
    assert why(channel(vouchers=(24_999,), spent=24_999), policy) is None


def test_a_wallet_is_settled_earlier() -> None:
    """F-19, SEC-08: what it signed is worth something only as long as it says so."""
    state = channel(vouchers=(100_000,), spent=100_000)
    assert why(state) is None
    assert why(state, is_wallet=True) is Reason.WALLET
    small = channel(vouchers=(5,), spent=5)
    assert why(small, is_wallet=True) is None
    assert why(small, is_wallet=True, age_s=3 * HOUR_S) is Reason.WALLET


def test_a_bound_on_exposure_that_comes_near_is_settled() -> None:
    policy = SettlePolicy(exposure_max=1000)
    assert why(channel(vouchers=(500,), spent=500), policy) is Reason.EXPOSURE
    assert why(channel(vouchers=(499,), spent=499), policy) is None
    paid = channel(vouchers=(1_499,), spent=1_499, settled=1_000)
    assert why(paid, policy) is None


def test_what_was_promised_and_not_delivered_is_never_settled() -> None:
    """Decision 5, F-46: one big voucher up front is worth nothing before something is spent."""
    state = channel(vouchers=(5_000_000,), spent=2_000_000)
    assert why(state, age_s=99 * HOUR_S) is None


def test_an_idle_channel_is_closed() -> None:
    """F-101."""
    month_s = 30 * 24 * HOUR_S
    state = channel(vouchers=(5,), spent=5, settled=5, active_at=NOW - month_s)
    due = decide(watched(state), moment(), SettlePolicy())
    assert due is not None
    assert (due.action, due.reason, due.value) == (Action.CLOSE, Reason.IDLE, 10_000_000 - 5)
    assert why(replace(state, active_at=NOW - month_s + 1)) is None
    assert why(state, SettlePolicy(close_idle_s=None)) is None
    running = channel(vouchers=(50,), spent=5, reserved=5, active_at=NOW - month_s)
    assert why(running) is None


# -- a payer that leaves (F-63, CLOSE-08)


def test_an_exit_is_answered_by_a_close() -> None:
    state = channel(vouchers=(900,), spent=900, asked_at=NOW - 10)
    due = decide(watched(state), moment(), SettlePolicy())
    assert due is not None
    assert (due.action, due.reason) == (Action.CLOSE, Reason.FORCED_CLOSE)
    assert (due.value, due.deadline, due.ends_reservations) == (900, NOW - 10 + GRACE_S, False)


def test_an_exit_that_costs_nothing_is_the_payers_to_finish() -> None:
    assert why(channel(vouchers=(900,), spent=0, asked_at=NOW)) is None
    assert why(channel(vouchers=(900,), spent=900, settled=900, asked_at=NOW)) is None
    small = SettlePolicy(defend_min=10)
    assert why(channel(vouchers=(9,), spent=9, asked_at=NOW), small) is None


@pytest.mark.parametrize(("at_risk", "is_defended"), [(9, False), (10, True), (11, True)])
def test_an_exit_is_defended_from_the_least_amount_on(at_risk: int, *, is_defended: bool) -> None:
    """O-96: below `defend_min`, at it and above it by one."""
    state = channel(vouchers=(at_risk,), spent=at_risk, asked_at=NOW)
    assert (why(state, SettlePolicy(defend_min=10)) is not None) is is_defended


@pytest.mark.parametrize(
    ("after_s", "ends"), [(0, False), (120, False), (121, True), (GRACE_S, True)]
)
def test_what_runs_may_end_but_not_for_ever(after_s: int, *, ends: bool) -> None:
    """Decision 8, by block time (F-111)."""
    state = channel(vouchers=(900,), spent=5, reserved=5, asked_at=NOW - after_s)
    due = decide(watched(state), moment(), SettlePolicy())
    assert due is not None
    assert due.ends_reservations is ends


def test_a_short_grace_is_not_waited_out() -> None:
    patient = SettlePolicy(patience_s=GRACE_S)
    state = channel(vouchers=(900,), spent=5, reserved=5, asked_at=NOW - GRACE_S * 3 // 4)
    due = decide(watched(state), moment(), patient)
    assert due is not None
    assert due.ends_reservations


@pytest.mark.parametrize(
    ("gone_s", "stage"),
    [(0, 0), (224, 0), (225, 25), (450, 50), (675, 75), (899, 75), (900, 100), (9999, 100)],
)
def test_the_grace_period_has_four_quarters(gone_s: int, stage: int) -> None:
    """F-64."""
    assert grace_stage(channel(asked_at=NOW - gone_s), moment()) == stage


def test_in_the_last_quarter_a_refused_close_is_followed_by_a_settle() -> None:
    """F-86: what was delivered at least; the close itself is tried first, each time."""
    state = channel(vouchers=(500, 900), spent=600, asked_at=NOW - 700)
    due = decide(watched(state), moment(), SettlePolicy())
    assert due is not None
    assert (due.action, due.is_late) == (Action.CLOSE, True)
    early = decide(watched(state), moment(NOW - 600), SettlePolicy())
    assert early is not None
    assert (early.action, early.is_late) == (Action.CLOSE, False)


def test_a_close_that_was_decided_is_owed_at_any_cost() -> None:
    """SETTLE-04: the process that decided it may be dead, and the payer may hold a receipt."""
    state = replace(
        channel(vouchers=(1,), spent=1), is_closing=True, closing_with=LadderVoucher(1, bytes(65))
    )
    policy = SettlePolicy(token_price_wei=1)
    (due,) = plan([watched(state)], moment(gas_price_wei=10**9), policy)
    assert (due.action, due.reason) == (Action.CLOSE, Reason.PROMISED)


# -- what gas may cost, see F-78


def test_gas_is_weighed_against_what_it_brings() -> None:
    """A dollar token of six decimals, ether at 2,500 dollars, 26,000 gas a channel."""
    policy = SettlePolicy(token_price_wei=10**18 // 2500, gas_share_max_percent=5)
    assert policy.gas_cost(26_000, 10**9) == 65_000  # 6.5 cents
    state = channel(vouchers=(4_300_000,), spent=4_300_000)
    assert plan([watched(state)], moment(gas_price_wei=10**9), policy) != []
    assert plan([watched(state)], moment(gas_price_wei=2 * 10**9), policy) == []
    escalating = channel(vouchers=(4_300_000,), spent=4_300_000, asked_at=NOW)
    assert plan([watched(escalating)], moment(gas_price_wei=20 * 10**9), policy) != []
    assert plan([watched(escalating)], moment(gas_price_wei=80 * 10**9), policy) == []


def test_many_share_what_a_transaction_costs() -> None:
    policy = SettlePolicy(token_price_wei=10**18 // 2500, settle_value=1_000_000)
    many = [
        watched(channel(number=i, vouchers=(1_400_000,), spent=1_400_000)) for i in range(1, 60)
    ]
    cheap = moment(gas_price_wei=10**9)
    assert plan(many[:1], cheap, policy) == []
    assert len(plan(many, cheap, policy)) == 59


# -- order, see F-66


def test_deadlines_come_first_then_value() -> None:
    last_quarter = channel(number=1, vouchers=(5,), spent=5, asked_at=NOW - 700)
    small = channel(number=2, vouchers=(10,), spent=10, asked_at=NOW - 30)
    large = channel(number=3, vouchers=(900,), spent=900, asked_at=NOW - 10)
    live = channel(number=4, vouchers=(9_000_000,), spent=9_000_000)
    dues = plan([watched(each) for each in (live, small, large, last_quarter)], moment(), POLICY)
    assert [due.key.channel_id[-1] for due in dues] == [1, 3, 2, 4]


POLICY = SettlePolicy()


@st.composite
def channels(draw: st.DrawFn) -> Watched:
    amounts = st.integers(0, 3_000_000)
    vouchers = tuple(sorted(draw(st.sets(amounts, max_size=4))))
    top = vouchers[-1] if vouchers else 0
    spent = draw(st.integers(0, top))
    reserved = draw(st.integers(0, top - spent))
    settled = draw(st.integers(0, top))
    state = channel(
        number=draw(st.integers(1, 10**6)),
        vouchers=vouchers,
        spent=spent,
        reserved=reserved,
        settled=settled,
        deposit=draw(st.sampled_from([3_000_000, top, top // 2])),
        asked_at=draw(st.sampled_from([0, 0, NOW, NOW - 100, NOW - 500, NOW - 800, NOW - 2000])),
        active_at=draw(st.sampled_from([NOW, NOW - HOUR_S, NOW - 40 * 24 * HOUR_S])),
        payee=draw(st.sampled_from([b"p" * 20, b"q" * 20])),
        escrow=draw(st.sampled_from([b"e" * 20, b"f" * 20])),
    )
    if draw(st.booleans()):
        state = replace(state, is_closing=True)
        if not reserved and draw(st.booleans()):
            state = replace(state, closing_with=state.highest)
    if draw(st.integers(0, 9)) == 0:
        state = replace(state, is_finalized=True)
    return Watched(
        state=state,
        unsettled_since=draw(st.sampled_from([None, NOW, NOW - 48 * HOUR_S])),
        is_wallet=draw(st.booleans()),
    )


POLICIES = st.builds(
    SettlePolicy,
    settle_value=st.integers(1, 3_000_000),
    exposure_max=st.none() | st.integers(1, 3_000_000),
    token_price_wei=st.none() | st.just(10**18 // 2500),
    defend_min=st.sampled_from([1, 1000]),
    close_idle_s=st.none() | st.just(30 * 24 * HOUR_S),
)
MOMENTS = st.builds(moment, st.just(NOW), st.sampled_from([0, 10**9, 10**12]))


@given(channels(), MOMENTS, POLICIES)
def test_a_live_channel_is_never_settled_above_what_was_delivered(
    each: Watched, now: Moment, policy: SettlePolicy
) -> None:
    """Decision 5: and never at all while its payer leaves or a close is under way."""
    due = decide(each, now, policy)
    if due is None or due.action is Action.CLOSE:
        return
    assert due.voucher is not None
    assert due.voucher.cumulative_amount > each.state.settled
    assert due.value == due.voucher.cumulative_amount - each.state.settled
    assert due.voucher.cumulative_amount <= each.state.spent
    assert not each.state.is_closing
    assert not each.state.close_requested_at


@given(channels(), MOMENTS, POLICIES)
def test_nothing_is_done_to_what_has_ended_or_is_stopped(
    each: Watched, now: Moment, policy: SettlePolicy
) -> None:
    """F-70, SETTLE-05: books and chain contradict each other; only what is owed goes on."""
    due = decide(each, now, policy)
    if each.state.is_finalized:
        assert due is None
    if each.state.is_stopped and not owes_close(each.state, policy):
        assert due is None


@given(st.lists(channels(), max_size=12), MOMENTS, POLICIES)
def test_every_close_that_is_owed_is_planned(
    several: list[Watched], now: Moment, policy: SettlePolicy
) -> None:
    """F-63, F-64: unless its gas would cost more than it saves."""
    planned = {id(due.key) for due in plan(several, now, policy)}
    cost = policy.gas_cost(policy.gas_per_entry, now.gas_price_wei)
    for each in several:
        state = each.state
        if not owes_close(state, policy):
            continue
        due = decide(each, now, policy)
        assert due is not None
        if state.closing_with is not None or due.value >= cost:
            assert id(state.key) in planned


@given(st.lists(channels(), max_size=12), MOMENTS, POLICIES)
def test_the_most_urgent_is_first(
    several: list[Watched], now: Moment, policy: SettlePolicy
) -> None:
    """F-66: an exit before everything, the latest quarter of the grace, then the greatest value."""
    dues = plan(several, now, policy)
    for first, second in itertools.pairwise(dues):
        assert _rank(first) <= _rank(second)


def _rank(due: Due) -> tuple[bool, int, bool, int]:
    return due.deadline is None, -due.stage, not due.reason.is_escalating, -due.value


@given(channels())
def test_what_is_at_risk_is_what_was_delivered_or_promised_to_a_stream(each: Watched) -> None:
    state = each.state
    assert value_at_risk(state) == max(0, state.spent + state.reserved - state.settled)
