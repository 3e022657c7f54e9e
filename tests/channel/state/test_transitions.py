"""What each command does and when it is refused; a refusal changes nothing."""

import pytest
from msgspec.structs import replace

from channel.errors import (
    AmountExceedsDepositError,
    ChannelFinalizedError,
    ChannelNotFoundError,
    ChannelStoppedError,
    DeltaTooSmallError,
    InsufficientBalanceError,
    InvariantError,
    RequestInFlightError,
    ReservationEndedError,
    StreamActiveError,
    StreamReplacedError,
    TooManyRequestsError,
)
from channel.limits import AMOUNT_MAX, RESERVATIONS_PER_CHANNEL_MAX
from channel.state import commands as c
from channel.state.channel_state import LadderVoucher
from channel.state.transitions import required_cumulative, transition
from channel.types import ChannelFact, VerifiedVoucher
from tests.channel.books import (
    DEPOSIT,
    KEY,
    LEASE,
    NOW,
    TERMS,
    accepting,
    fact,
    key_of,
    opening,
    reserving,
    run,
    signature,
    streaming,
    voucher,
)

CLOSING: list[c.Command] = [accepting(100), c.BeginClose()]


def extending(name: bytes, amount: int, *, amount_min: int = 1) -> c.Extend:
    return c.Extend(name, amount_min, amount, 1, LEASE)


def closing(amount: int) -> c.CommitClose:
    return c.CommitClose(LadderVoucher(amount, signature(amount)))


class TestOpen:
    def test_a_new_channel_starts_from_what_the_chain_settled(self) -> None:
        """F-25: `spent` seeded from `settled`, or the deposit could be spent again."""
        state = run(opening(50, seen=fact(settled=30)))
        assert (state.accepted, state.spent, state.published) == (50, 30, 30)
        assert (state.deposit, state.settled, state.fact_block) == (DEPOSIT, 30, 100)
        assert (state.highest, state.terms, state.active_at) == (
            LadderVoucher(50, signature(50)),
            TERMS,
            NOW,
        )

    def test_a_voucher_below_settled_opens_a_channel_with_nothing_available(self) -> None:
        state = run(opening(20, seen=fact(settled=30)))
        assert (state.accepted, state.available, state.is_stopped) == (30, 0, False)

    def test_a_repeated_open_only_raises_accepted(self) -> None:
        """F-25, OPEN-10."""
        state = run(opening(50), reserving(b"r", 40), c.Spend(b"r", 40))
        again = run(opening(80, seen=fact(block=120)), state=state)
        assert (again.accepted, again.spent, again.reservations) == (80, 40, state.reservations)
        assert run(opening(50, seen=fact(block=120)), state=again) == again

    def test_a_first_voucher_above_the_deposit_is_refused(self) -> None:
        with pytest.raises(AmountExceedsDepositError):
            run(opening(DEPOSIT + 1))

    @pytest.mark.parametrize("seen", [fact(close_requested_at=5), fact(is_finalized=True)])
    def test_a_channel_that_is_ending_is_not_opened(self, seen: ChannelFact) -> None:
        """F-34: a finalized channel never comes back."""
        with pytest.raises(ChannelFinalizedError):
            run(opening(10, seen=seen))

    def test_every_other_command_needs_a_known_channel(self) -> None:
        with pytest.raises(ChannelNotFoundError):
            transition(None, accepting(1))


class TestAccept:
    def test_a_higher_voucher_raises_accepted_and_is_kept(self) -> None:
        """VCH-02 steps 9 and 10; F-38."""
        state = run(opening(10), accepting(25))
        assert state.accepted == 25
        assert state.highest == LadderVoucher(25, signature(25))

    @pytest.mark.parametrize("amount", [0, 10, 25])
    def test_a_voucher_that_is_no_rise_changes_nothing(self, amount: int) -> None:
        """VCH-04, AMB-06, F-38."""
        state = run(opening(10), accepting(25))
        assert run(accepting(amount, min_voucher_delta=50), state=state) is state

    def test_a_rise_below_the_minimum_is_refused(self) -> None:
        with pytest.raises(DeltaTooSmallError) as refused:
            run(opening(10), accepting(14, min_voucher_delta=5))
        assert refused.value.members() == {"acceptedCumulative": "10", "minVoucherDelta": "5"}
        assert run(opening(10), accepting(15, min_voucher_delta=5)).accepted == 15

    def test_the_minimum_is_not_asked_of_a_voucher_that_reaches_the_deposit(self) -> None:
        """F-53, AMB-17."""
        state = run(opening(DEPOSIT - 1), accepting(DEPOSIT, min_voucher_delta=5))
        assert state.accepted == DEPOSIT

    def test_a_voucher_above_the_deposit_is_refused(self) -> None:
        with pytest.raises(AmountExceedsDepositError) as refused:
            run(opening(10), accepting(DEPOSIT + 1))
        assert refused.value.members() == {"deposit": str(DEPOSIT)}

    def test_the_minimum_is_asked_before_the_deposit(self) -> None:
        """VCH-02: step 7 stands before step 8."""
        with pytest.raises(DeltaTooSmallError):
            run(opening(DEPOSIT), accepting(DEPOSIT + 1, min_voucher_delta=5))

    @pytest.mark.parametrize(
        "before",
        [
            c.Observe(fact(close_requested_at=7)),
            c.Observe(fact(is_finalized=True)),
            c.BeginClose(),
        ],
    )
    def test_nothing_is_accepted_on_a_channel_that_is_ending(self, before: c.Command) -> None:
        """VCH-02 step 1, AMB-14, F-39, F-63."""
        state = run(opening(10), before)
        for command in (accepting(20), accepting(10), reserving(b"r", 1)):
            with pytest.raises(ChannelFinalizedError):
                run(command, state=state)

    @pytest.mark.parametrize("observed", [fact(deposit=9, block=101), fact(settled=11, block=101)])
    def test_nothing_is_accepted_while_books_and_chain_disagree(
        self, observed: ChannelFact
    ) -> None:
        """Decision 4; F-52, F-70, SETTLE-05."""
        state = run(opening(10), c.Observe(observed))
        assert state.is_stopped
        for command in (accepting(20), reserving(b"r", 1)):
            with pytest.raises(ChannelStoppedError):
                run(command, state=state)

    @pytest.mark.parametrize(
        "command",
        [
            accepting(20, key_of(2)),
            c.Observe(fact(key_of(2))),
            c.RecordClose(fact(key_of(2), is_finalized=True), b"t" * 32),
            opening(20, key_of(2)),
        ],
    )
    def test_what_belongs_to_another_channel_never_enters_this_one(
        self, command: c.Command
    ) -> None:
        with pytest.raises(InvariantError):
            run(opening(10), command)

    def test_a_channel_is_opened_with_its_own_voucher(self) -> None:
        with pytest.raises(InvariantError):
            run(c.OpenChannel(fact(), voucher(10, key_of(2)), NOW))


class TestReserve:
    def test_as_much_is_held_as_is_covered(self) -> None:
        state = run(opening(100), reserving(b"r", 224, amount_min=7))
        assert (state.reserved, state.available) == (100, 0)

    def test_no_more_than_asked_is_held(self) -> None:
        assert run(opening(100), reserving(b"r", 21)).reserved == 21

    def test_parallel_requests_cannot_hold_the_same_money(self) -> None:
        """F-24, F-45, ACC-05, ACC-08."""
        state = run(opening(100), reserving(b"a", 60, amount_min=60))
        with pytest.raises(InsufficientBalanceError) as refused:
            run(reserving(b"b", 60, amount_min=60), state=state)
        assert refused.value.members() == {
            "requiredCumulative": "120",
            "acceptedCumulative": "100",
            "spent": "0",
            "deposit": str(DEPOSIT),
        }

    def test_a_repeat_holds_nothing_more(self) -> None:
        state = run(opening(100), reserving(b"r", 10))
        assert run(reserving(b"r", 10), state=state) is state

    def test_an_unpaid_channel_serves_nothing(self) -> None:
        """F-54."""
        with pytest.raises(InsufficientBalanceError):
            run(opening(0), reserving(b"r", 1, presented=0))

    def test_a_public_voucher_buys_nothing(self) -> None:
        """Decision 5, VCH-04, F-32: also while value is available."""
        state = run(opening(100), c.Publish(100))
        with pytest.raises(InsufficientBalanceError) as refused:
            run(reserving(b"r", 1, presented=100), state=state)
        assert refused.value.required_cumulative == 101
        assert run(accepting(101), reserving(b"r", 1, presented=101), state=state).reserved == 1

    def test_the_number_of_reservations_is_bounded(self) -> None:
        names = [bytes([i]) for i in range(RESERVATIONS_PER_CHANNEL_MAX)]
        state = run(opening(100), *[reserving(name, 1) for name in names])
        with pytest.raises(TooManyRequestsError):
            run(reserving(b"one more", 1), state=state)

    @pytest.mark.parametrize(("least", "most"), [(-1, 1), (-2, -1), (2, 1)])
    def test_amounts_that_are_no_range_are_a_bug(self, least: int, most: int) -> None:
        with pytest.raises(InvariantError):
            run(opening(100), reserving(b"r", most, amount_min=least))


class TestRequiredCumulative:
    def test_it_covers_what_is_spent_held_and_asked(self) -> None:
        state = run(opening(50), reserving(b"a", 20), reserving(b"b", 10), c.Spend(b"a", 20))
        assert required_cumulative(state, 100, 1) == 20 + 10 + 100

    def test_it_rises_by_the_minimum(self) -> None:
        """F-53, SSE-02."""
        assert required_cumulative(run(opening(50)), 1, 30) == 80

    def test_the_tail_of_a_deposit_can_be_spent(self) -> None:
        """F-53, AMB-17."""
        assert required_cumulative(run(opening(DEPOSIT - 10)), DEPOSIT, 30) == DEPOSIT

    def test_a_cost_beyond_the_deposit_asks_for_a_top_up(self) -> None:
        assert required_cumulative(run(opening(50)), DEPOSIT + 5, 1) == DEPOSIT + 5

    @pytest.mark.parametrize("published", [60, DEPOSIT])
    def test_it_is_above_every_public_voucher(self, published: int) -> None:
        """Decision 5: an amount that buys nothing is never asked for, or the payer would loop."""
        state = run(opening(50), c.Publish(published))
        assert required_cumulative(state, 1, 1) == published + 1


class TestStream:
    def test_a_reservation_is_filled_up_again(self) -> None:
        state = run(opening(100), streaming(b"s", 32), c.Spend(b"s", 20), extending(b"s", 32))
        assert (state.spent, state.reserved) == (20, 32)

    def test_a_full_reservation_keeps_its_amount_and_gets_a_new_lease(self) -> None:
        later = c.Extend(b"s", 1, 32, 1, LEASE + 9)
        state = run(opening(100), streaming(b"s", 32), later)
        assert (state.reserved, state.reservations[0].lease_expires_at) == (32, LEASE + 9)

    @pytest.mark.parametrize(("most", "held"), [(3, 5), (5, 5), (6, 6), (12, 10)])
    def test_it_is_filled_as_far_as_asked_and_covered_and_never_shrinks(
        self, most: int, held: int
    ) -> None:
        """Decision 8: what is at risk is what was asked for."""
        state = run(opening(10), streaming(b"s", 5), extending(b"s", most))
        assert state.reserved == held

    def test_less_than_the_least_is_not_held(self) -> None:
        """ACC-05, SSE-02: 3 of the 8 are held already."""
        state = run(opening(7), streaming(b"s", 3))
        with pytest.raises(InsufficientBalanceError) as refused:
            run(extending(b"s", 32, amount_min=8), state=state)
        assert refused.value.required_cumulative == 8

    def test_a_stream_at_zero_learns_what_it_needs(self) -> None:
        """ACC-05, SSE-02."""
        state = run(opening(10), streaming(b"s", 10), c.Spend(b"s", 10))
        with pytest.raises(InsufficientBalanceError) as refused:
            run(extending(b"s", 32), state=state)
        assert refused.value.required_cumulative == 11

    def test_a_new_stream_ends_the_one_before_it_for_good(self) -> None:
        """ACC-06: the old one may use what it holds, and gets no more when the new one is gone."""
        state = run(opening(100), streaming(b"old", 5), streaming(b"new", 5), c.Spend(b"old", 5))
        for now in (state, run(c.Release(b"new"), state=state)):
            with pytest.raises(StreamReplacedError):
                run(extending(b"old", 5), state=now)
        assert run(extending(b"new", 6), state=state).reserved == 6

    def test_a_stream_does_not_end_a_request(self) -> None:
        state = run(opening(100), reserving(b"r", 5), streaming(b"s", 5))
        assert not state.reservations[0].is_replaced

    def test_a_stream_may_be_refused_instead(self) -> None:
        state = run(opening(100), streaming(b"old", 5))
        with pytest.raises(StreamActiveError):
            run(streaming(b"new", 5, policy=c.StreamPolicy.REJECT), state=state)
        ended = run(c.Release(b"old"), state=state)
        assert run(streaming(b"new", 5, policy=c.StreamPolicy.REJECT), state=ended).reserved == 5

    @pytest.mark.parametrize("first", [c.StreamPolicy.ALLOW, c.StreamPolicy.REPLACE])
    def test_streams_may_run_side_by_side(self, first: c.StreamPolicy) -> None:
        state = run(
            opening(100),
            streaming(b"a", 5, policy=first),
            streaming(b"b", 5, policy=c.StreamPolicy.ALLOW),
            extending(b"a", 6),
            extending(b"b", 6),
        )
        assert state.reserved == 12

    def test_a_lease_is_renewed_without_money(self) -> None:
        state = run(opening(100), streaming(b"s", 5), c.Renew(b"s", LEASE + 30))
        assert (state.reserved, state.reservations[0].lease_expires_at) == (5, LEASE + 30)


class TestSpendAndRelease:
    def test_spending_moves_held_money_and_steps_the_ladder(self) -> None:
        state = run(opening(10), accepting(20), accepting(30), reserving(b"r", 15))
        state = run(c.Spend(b"r", 15), state=state)
        assert (state.spent, state.reserved, state.available) == (15, 0, 15)
        assert state.at_or_below_spent == LadderVoucher(10, signature(10))
        assert state.above_spent == LadderVoucher(30, signature(30))

    def test_the_same_money_is_never_spent_twice(self) -> None:
        state = run(opening(100), reserving(b"r", 10), c.Spend(b"r", 10), c.Release(b"r"))
        with pytest.raises(ReservationEndedError):
            run(c.Spend(b"r", 10), state=state)

    @pytest.mark.parametrize("amount", [-1, 11])
    def test_spending_what_is_not_held_is_a_bug(self, amount: int) -> None:
        with pytest.raises(InvariantError):
            run(opening(100), reserving(b"r", 10), c.Spend(b"r", amount))

    def test_a_release_gives_back_what_is_left_and_may_be_repeated(self) -> None:
        """F-48."""
        state = run(opening(100), reserving(b"r", 10), c.Spend(b"r", 4), c.Release(b"r"))
        assert (state.spent, state.available, state.reservations) == (4, 96, ())
        assert run(c.Release(b"r"), state=state) is state

    def test_a_dead_stream_is_charged_and_a_dead_request_is_not(self) -> None:
        """Decision 8, F-48, F-56."""
        state = run(opening(100), reserving(b"r", 10), streaming(b"s", 5))
        for ended in (
            run(c.ExpireReservations(LEASE), state=state),
            run(c.EndReservations(), state=state),
        ):
            assert (ended.spent, ended.available, ended.reservations) == (5, 95, ())

    def test_a_lease_that_still_runs_is_left_alone(self) -> None:
        state = run(opening(100), streaming(b"s", 5), streaming(b"t", 5, lease=LEASE + 1))
        assert run(c.ExpireReservations(LEASE - 1), state=state) is state
        assert run(c.ExpireReservations(LEASE), state=state).reserved == 5
        assert run(c.EndReservations(), state=run(opening(1))) == run(opening(1))

    @pytest.mark.parametrize(
        "command", [c.Spend(b"s", 1), c.Renew(b"s", LEASE), extending(b"s", 5)]
    )
    def test_the_owner_of_an_ended_reservation_learns_it(self, command: c.Command) -> None:
        """F-43: the fence is checked by the change it protects."""
        with pytest.raises(ReservationEndedError):
            run(opening(100), streaming(b"s", 5), c.ExpireReservations(LEASE), command)


class TestObserve:
    def test_the_chains_values_are_taken_over_and_ours_stay(self) -> None:
        """F-29: absolute values, so that a fact taken twice adds nothing."""
        state = run(opening(100), reserving(b"r", 10), c.Spend(b"r", 10))
        seen = fact(deposit=2_000, settled=10, close_requested_at=9, block=120)
        after = run(c.Observe(seen), c.Observe(seen), state=state)
        assert (after.deposit, after.settled, after.close_requested_at) == (2_000, 10, 9)
        assert (after.accepted, after.spent, after.fact_block) == (100, 10, 120)
        assert after.published == 10

    def test_a_late_read_of_an_older_block_changes_nothing(self) -> None:
        """F-72."""
        state = run(opening(100), c.Observe(fact(deposit=2_000, block=120)))
        assert run(c.Observe(fact(block=119)), state=state) is state

    def test_a_fact_that_says_nothing_new_changes_nothing(self) -> None:
        """A sweep over every channel must not write every row."""
        state = run(opening(100))
        assert run(c.Observe(fact(block=5_000)), state=state) is state

    def test_a_rollback_takes_the_older_block_without_touching_spent(self) -> None:
        """Decision 11, F-70: back and forward again."""
        state = run(opening(100), reserving(b"r", 10), c.Spend(b"r", 10))
        forward = run(c.Observe(fact(deposit=2_000, block=120)), state=state)
        back = run(c.Observe(fact(block=110), is_rollback=True), state=forward)
        assert (back.deposit, back.fact_block, back.spent) == (DEPOSIT, 110, 10)
        again = run(c.Observe(fact(deposit=2_000, block=115)), state=back)
        assert (again.deposit, again.spent, again.accepted) == (2_000, 10, 100)

    def test_a_rollback_to_the_same_values_still_goes_back(self) -> None:
        state = run(opening(100, seen=fact(block=120)))
        back = run(c.Observe(fact(block=110), is_rollback=True), state=state)
        assert back.fact_block == 110

    def test_public_amounts_never_fall(self) -> None:
        state = run(opening(100), c.Publish(50), c.Publish(20))
        assert run(c.Observe(fact(settled=30, block=101)), state=state).published == 50


class TestClose:
    def test_a_closing_channel_finishes_what_runs_and_takes_nothing_new(self) -> None:
        """F-39."""
        state = run(opening(100), streaming(b"s", 5), c.BeginClose())
        assert run(c.Spend(b"s", 5), state=state).spent == 5
        for command in (accepting(200), reserving(b"r", 1), extending(b"s", 9)):
            with pytest.raises(ChannelFinalizedError):
                run(command, state=state)
        assert run(c.BeginClose(), state=state) is state

    def test_a_pending_close_of_the_payer_does_not_stop_ours(self) -> None:
        """CLOSE-03."""
        state = run(opening(100), c.Observe(fact(close_requested_at=5)), c.BeginClose())
        assert state.is_closing

    def test_the_first_decision_stands_and_is_public_before_it_is_broadcast(self) -> None:
        """F-40, decision 5."""
        state = run(opening(0), *CLOSING, closing(60))
        assert (state.closing_with, state.published) == (LadderVoucher(60, signature(60)), 60)
        assert run(closing(80), state=state) is state

    def test_a_close_that_was_given_up_opens_the_channel_again(self) -> None:
        """CLOSE-04: the amount stays public, and the payer is asked for more than that."""
        state = run(opening(0), *CLOSING, closing(150), c.AbortClose())
        assert (state.is_closing, state.closing_with, state.published) == (False, None, 150)
        with pytest.raises(InsufficientBalanceError) as refused:
            run(reserving(b"r", 1, presented=150), state=state)
        assert refused.value.required_cumulative == 151
        assert run(c.AbortClose(), state=state) is state

    @pytest.mark.parametrize(
        "before",
        [
            [accepting(100)],
            [accepting(100), c.BeginClose(), c.AbortClose()],
            [accepting(100), streaming(b"s", 5), c.BeginClose()],
            [accepting(100), reserving(b"r", 50), c.Spend(b"r", 50), c.BeginClose()],
            [
                accepting(100),
                reserving(b"r", 50),
                c.Spend(b"r", 50),
                c.Release(b"r"),
                c.BeginClose(),
            ],
        ],
    )
    def test_a_close_that_was_overtaken_is_refused_and_stops_no_worker(
        self, before: list[c.Command]
    ) -> None:
        """Two closes may race (F-40); the loser asks again."""
        with pytest.raises(RequestInFlightError):
            run(opening(0), *before, closing(40))

    def test_a_close_above_the_deposit_is_refused(self) -> None:
        """CLOSE-03: the escrow would revert."""
        with pytest.raises(AmountExceedsDepositError):
            run(opening(0), *CLOSING, closing(DEPOSIT + 1))

    def test_a_mined_close_ends_the_channel_for_ever(self) -> None:
        """CLOSE-05, F-34: the record stays."""
        mined = c.RecordClose(fact(settled=60, is_finalized=True, block=120), b"t" * 32)
        state = run(opening(0), *CLOSING, closing(60), mined)
        assert (state.is_finalized, state.settled, state.close_tx) == (True, 60, b"t" * 32)
        for command in (accepting(200), c.BeginClose(), closing(60), reserving(b"r", 1)):
            with pytest.raises(ChannelFinalizedError):
                run(command, state=state)


class TestRepair:
    def test_a_channel_older_than_the_chain_goes_on_after_a_repair(self) -> None:
        """SETTLE-05, F-52."""
        state = run(opening(10), c.Observe(fact(settled=40, block=120)))
        repaired = run(c.Repair(accepted=40, spent=40), state=state)
        assert (repaired.accepted, repaired.spent, repaired.is_stopped) == (40, 40, False)
        assert run(accepting(50), reserving(b"r", 10), state=repaired).reserved == 10

    def test_a_repair_never_lowers(self) -> None:
        state = run(opening(50), reserving(b"r", 20), c.Spend(b"r", 20))
        assert run(c.Repair(accepted=1, spent=1), state=state) == state

    @pytest.mark.parametrize(
        ("accepted", "spent"), [(50, 51), (DEPOSIT + 1, 50), (50, AMOUNT_MAX + 1)]
    )
    def test_an_impossible_repair_is_refused_and_stops_no_worker(
        self, accepted: int, spent: int
    ) -> None:
        with pytest.raises(ChannelStoppedError):
            run(opening(50), c.Repair(accepted, spent))

    def test_a_repair_leaves_room_for_what_is_held(self) -> None:
        state = run(opening(50), reserving(b"r", 20))
        with pytest.raises(ChannelStoppedError):
            run(c.Repair(accepted=50, spent=31), state=state)


def test_an_amount_beyond_uint128_never_gets_into_the_books() -> None:
    """ENC-04: the last line of defence, behind the parser's."""
    with pytest.raises(InvariantError):
        run(opening(10), c.Publish(AMOUNT_MAX + 1))
    with pytest.raises(InvariantError):
        run(opening(10, seen=fact(deposit=AMOUNT_MAX + 1)))
    beyond = VerifiedVoucher(KEY, -1, b"")
    with pytest.raises(InvariantError):
        run(c.OpenChannel(fact(), beyond, NOW))


class TestRestore:
    def test_an_exported_channel_is_taken_over_where_it_is_unknown(self) -> None:
        exported = run(opening(50))
        assert transition(None, c.Restore(exported)) is exported

    def test_a_known_channel_is_newer_than_any_export(self) -> None:
        """F-25, F-52."""
        known = run(opening(50), reserving(b"r", 5), c.Spend(b"r", 5))
        assert run(c.Restore(run(opening(10))), state=known) is known

    def test_books_that_contradict_themselves_are_not_taken_over(self) -> None:
        with pytest.raises(InvariantError):
            transition(None, c.Restore(replace(run(opening(50)), spent=51)))
