"""Random histories of one channel, held against a second, simpler account of what happened."""

from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from channel.errors import ProblemError
from channel.state import commands as c
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.charges import ChargeEnd, ChargeOutcome
from channel.state.charging import CHARGING, charges_of
from channel.state.ladder import closing_voucher, forced_settling_voucher, settling_voucher
from channel.state.transitions import required_cumulative, transition
from channel.types import ChannelFact
from tests.channel.books import NOW, accepting, fact, opening, reserving, run, signature, voucher

STEPS_MIN = 10_000
EXAMPLES, STEPS_EACH = 125, 100

amounts = st.integers(0, 120)
units = st.integers(0, 40)
prices = st.integers(1, 5)
names = st.sampled_from([b"a", b"b", b"c", b"d"])
kinds = st.sampled_from(ReservationKind)
policies = st.sampled_from(c.StreamPolicy)
rarely = st.sampled_from([False] * 9 + [True])
times = st.integers(NOW, NOW + 50)
ends = st.none() | st.builds(
    ChargeEnd, st.sampled_from(ChargeOutcome), st.just({"output_token": 1})
)


class Channel(RuleBasedStateMachine):
    """One channel between a payer, a provider and a chain that each do as they please.

    Beside the state there are: what the escrow holds, every voucher that was ever accepted, and
    what was delivered, counted where it happens.
    """

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.state: ChannelState = run(opening(0, seen=fact(deposit=60)))
        self.deposit = 60
        self.settled = 0
        self.block = 100
        self.vouchers = {0}
        self.delivered = 0
        self.charged = 0
        """The sum of all entries of the accounts."""
        self.public = 0
        self.shown: set[bytes] = set()
        """Signatures that were handed to the chain."""
        self.asked: set[bytes] = set()
        """Signatures that asked for a close: the ledger takes each once."""

    @initialize(amount=st.integers(0, 60))
    def open(self, amount: int) -> None:
        self.state = run(opening(amount, seen=fact(deposit=60)))
        self.vouchers = {amount}

    def do(self, command: c.Command) -> bool:
        """Run a command; a refusal must leave the state as it is."""
        before = self.state
        try:
            after = transition(before, command)
        except ProblemError:
            assert self.state is before
            return False
        assert after.spent >= before.spent
        assert after.accepted >= before.accepted
        assert after.published >= before.published
        assert after.is_finalized or not before.is_finalized or isinstance(command, c.Observe)
        if type(command) in CHARGING:
            self.charged += sum(charge.amount for charge in charges_of(before, command, after))
        self.state = after
        return True

    def held(self) -> dict[bytes, int]:
        return {held.reservation_id: held.amount for held in self.state.reservations}

    def fact(self, close_requested_at: int) -> ChannelFact:
        return fact(
            deposit=self.deposit,
            settled=self.settled,
            block=self.block,
            is_finalized=self.state.is_finalized,
            close_requested_at=close_requested_at,
        )

    @rule(amount=amounts, delta=st.integers(0, 10))
    def accept(self, amount: int, delta: int) -> None:
        before = self.state.accepted
        if self.do(accepting(amount, min_voucher_delta=delta)) and amount > before:
            assert self.state.accepted == amount <= self.deposit
            assert amount - before >= delta or amount == self.deposit
            self.vouchers.add(amount)

    @rule(name=names, kind=kinds, price=prices, several=st.tuples(units, units, times, policies))
    def reserve(
        self,
        name: bytes,
        kind: ReservationKind,
        price: int,
        several: tuple[int, int, int, c.StreamPolicy],
    ) -> None:
        low, high, lease, how = several
        low, high = sorted((low * price, high * price))
        known = self.held()
        presented = self.state.highest.cumulative_amount
        asked = reserving(
            name,
            high,
            amount_min=low,
            kind=kind,
            lease=lease,
            policy=how,
            presented=presented,
        )
        available = self.state.available
        if self.do(asked) and name not in known:
            assert low <= self.held()[name] == min(available, high)
            assert presented > self.public, "a public voucher bought something"

    @rule(name=names, price=prices, several=st.tuples(units, units, times, policies))
    def begin_a_stream(
        self, name: bytes, price: int, several: tuple[int, int, int, c.StreamPolicy]
    ) -> None:
        """A request's reservation becomes a stream's, and its charge stays one."""
        low, high, lease, how = several
        low, high = sorted((low * price, high * price))
        known = self.state.find_reservation(name)
        asked = c.Reserve(
            name, ReservationKind.STREAM, low, high, 2**127, 1, lease, how, b"", replaces=True
        )
        available = self.state.available + (0 if known is None else known.amount)
        if self.do(asked):
            assert low <= self.held()[name] == min(available, high)

    @rule(more=st.integers(0, 20))
    def repair(self, more: int) -> None:
        """An operator raises `spent`; rarely, so that most histories are without."""
        if more > 2:
            return
        spent = self.state.spent + more
        if self.do(c.Repair(self.state.accepted, spent)):
            self.delivered = spent

    @rule(name=names, low=amounts, high=amounts, lease=times)
    def extend(self, name: bytes, low: int, high: int, lease: int) -> None:
        before, available = self.held().get(name, 0), self.state.available
        if self.do(c.Extend(name, low, high, 1, lease)):
            assert low <= self.held()[name] == max(before, min(high, before + available))

    @rule(name=names, part=st.integers(0, 40))
    def spend(self, name: bytes, part: int) -> None:
        amount = min(part, self.held().get(name, 0))
        if self.do(c.Spend(name, amount)):
            self.delivered += amount

    @rule(name=names, end=ends)
    def release(self, name: bytes, end: ChargeEnd | None) -> None:
        assert self.do(c.Release(name, end))
        assert name not in self.held()
        assert transition(self.state, c.Release(name)) is self.state

    @rule(now=times)
    def expire(self, now: int) -> None:
        self.delivered += self.streams_held(now)
        assert self.do(c.ExpireReservations(now))

    @rule()
    def restart(self) -> None:
        self.delivered += self.streams_held(2**62)
        assert self.do(c.EndReservations())
        assert self.state.reserved == 0

    def streams_held(self, until: int) -> int:
        return sum(
            held.amount
            for held in self.state.reservations
            if held.kind is ReservationKind.STREAM and held.lease_expires_at <= until
        )

    @rule(more=st.integers(0, 30), requested=rarely)
    def mine(self, more: int, requested: bool) -> None:  # noqa: FBT001
        """The payer tops up, or asks for the rest."""
        self.block += 1
        self.deposit += more
        seen = self.fact(NOW if requested else 0)
        assert self.do(c.Observe(seen))
        assert transition(self.state, c.Observe(seen)) is self.state

    @rule(forced=st.booleans())
    def settle(self, forced: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        chosen = (forced_settling_voucher if forced else settling_voucher)(self.state)
        if chosen is None or self.state.is_finalized:
            return
        assert chosen.cumulative_amount in self.vouchers
        assert self.settled < chosen.cumulative_amount <= self.deposit
        assert forced or chosen.cumulative_amount <= self.delivered
        assert not forced or self.delivered > self.settled
        assert self.do(c.Publish(chosen.cumulative_amount))
        self.public = max(self.public, chosen.cumulative_amount)
        self.shown.add(chosen.signature)
        self.settled, self.block = chosen.cumulative_amount, self.block + 1
        assert self.do(c.Observe(self.fact(self.state.close_requested_at)))

    @rule(presented=st.none() | amounts, is_new=st.booleans(), is_mined=rarely)
    def close(self, presented: int | None, is_new: bool, is_mined: bool) -> None:  # noqa: FBT001
        """A close waits for nothing here: what runs is ended. It is mined, or given up.

        O-21: nothing that the chain has seen is a payer's consent; a new signature over `spent` is.
        """
        if self.state.is_finalized or self.state.is_stopped:
            return
        promised = None if presented is None else voucher(presented, is_new=is_new)
        if promised is not None and promised.signature in self.asked:
            return
        if not self.do(c.BeginClose(promised)):
            assert presented is not None
            assert presented <= self.public
            assert not (is_new and presented == self.delivered > self.settled)
            return
        if promised is not None:
            assert promised.signature not in self.shown
            self.asked.add(promised.signature)
            if promised.cumulative_amount > self.deposit:
                promised = None
        self.restart()
        chosen = closing_voucher(self.state, promised)
        amount = chosen.cumulative_amount
        assert amount >= max(self.settled, self.delivered)
        assert amount in self.vouchers | {self.settled, presented}
        assert self.do(c.CommitClose(chosen))
        self.shown.add(chosen.signature)
        self.public = max(self.public, amount)
        if not is_mined:
            assert self.do(c.AbortClose())
            return
        self.settled, self.block = amount, self.block + 1
        ended = fact(deposit=self.deposit, settled=amount, block=self.block, is_finalized=True)
        assert self.do(c.RecordClose(ended, b"t" * 32))

    @invariant()
    def the_books_agree_with_what_happened(self) -> None:
        """Decision 4, ACC-07."""
        type(self).steps += 1
        state = self.state
        assert state.spent == self.delivered
        assert state.spent == self.charged + sum(held.spent for held in state.reservations)
        assert state.spent + state.reserved <= state.accepted <= state.deposit == self.deposit
        assert state.available == state.accepted - state.spent - state.reserved
        assert state.settled == self.settled <= state.deposit
        assert state.published == self.public
        assert state.accepted == max(self.vouchers)

    @invariant()
    def the_ladder_is_made_of_accepted_vouchers_in_order(self) -> None:
        """Decision 5."""
        state = self.state
        kept = [state.at_or_below_spent, state.at_or_above_spent, state.highest]
        for step in kept:
            assert step is None or step.cumulative_amount in self.vouchers
            assert step is None or step.signature == signature(step.cumulative_amount)
        assert state.highest.cumulative_amount == state.accepted
        assert state.at_or_above_spent is not None, "what was delivered could not be collected"
        assert state.spent <= state.at_or_above_spent.cumulative_amount
        below = state.at_or_below_spent
        assert below is not None or min(self.vouchers) > state.spent
        assert below is None or below.cumulative_amount <= state.spent

    @invariant()
    def what_is_asked_for_buys_what_was_refused(self) -> None:
        """SSE-02: the payer who signs what it is asked for is served, or must top up."""
        state, cost = self.state, 7
        asked = required_cumulative(state, cost, 5)
        if asked > state.deposit or state.is_closing or state.close_requested_at:
            return
        if state.is_finalized or len(state.reservations) >= 4:
            return
        paid = run(accepting(asked, min_voucher_delta=5), state=state)
        served = run(reserving(b"new", 7, amount_min=7, presented=asked), state=paid)
        assert served.reserved == state.reserved + cost


def test_ten_thousand_steps_of_random_histories_keep_the_books_right() -> None:
    """ACC-01, ACC-03, ACC-05, ACC-07, F-24, F-44, F-46, F-54."""
    Channel.steps = 0
    run_state_machine_as_test(
        Channel,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS_EACH,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Channel.steps >= STEPS_MIN
