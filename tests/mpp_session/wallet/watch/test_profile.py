"""What is normal is learned within bounds, and what is unusual does not become normal by itself."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mpp_session.wallet.watch.judge import Case, judge, learn
from mpp_session.wallet.watch.observation import Finding, Observation
from mpp_session.wallet.watch.profile import Profile
from mpp_session.wallet.watch.repeats import Repeats, judge_repeats, note_request
from mpp_session.wallet.watch.sample import DAY_S, Sample

MONDAY = 1_767_571_200.0
WARM_UP = 30
PAYEE = b"payee---"

observations = st.builds(
    Observation,
    at=st.floats(MONDAY, MONDAY + 100 * DAY_S),
    is_deposit=st.booleans(),
    is_charge=st.booleans(),
    amount=st.integers(0, 2**128 - 1) | st.integers(0, 1000),
    total=st.integers(0, 2**128 - 1) | st.integers(0, 1000),
    is_first=st.booleans(),
    request=st.binary(min_size=8, max_size=8),
    payee=st.sampled_from([PAYEE, b"other---"]) | st.binary(min_size=8, max_size=8),
    prices=st.lists(
        st.tuples(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.floats(1e-9, 1e30)), max_size=4
    ).map(tuple),
)


class Agent:
    """Two profiles with a policy that asks, or notes only."""

    def __init__(self) -> None:
        self.agent, self.origin = Profile(), Profile()
        self.number = 0

    def see(self, at: float, amount: int = 100, *, approves: bool = False) -> Finding | None:
        self.number += 1
        request = self.number.to_bytes(8, "big")
        seen = Observation(at=at, amount=amount, total=amount, request=request, payee=PAYEE)
        case = Case(self.agent, self.origin, seen, str)
        finding = judge(case, WARM_UP)
        learn(case, WARM_UP, finding, is_approved=approves)
        return finding

    def day(self, day: int, factor: float = 1.0, *, approves: bool = False) -> int:
        """Return the findings of one working day: 60 requests of varying cost."""
        found = 0
        for number in range(60):
            amount = round(100 * factor * (1 + 0.5 * ((number * 7 + day) % 5) / 5))
            at = MONDAY + day * DAY_S + (8 * 60 + number * 10) * 60
            found += self.see(at, amount, approves=approves) is not None
        return found


@pytest.fixture
def grown() -> Agent:
    agent = Agent()
    assert sum(agent.day(day) for day in range(21)) == 0
    return agent


@settings(max_examples=40, deadline=None)
@given(st.lists(observations, min_size=1, max_size=60), st.data())
def test_every_observation_is_judged_and_a_profile_has_bounds(
    seen: list[Observation], data: st.DataObject
) -> None:
    """In any order of times, with any amounts; what was stored is what goes on."""
    agent, origin = Profile(), Profile()
    for number, each in enumerate(seen):
        case = Case(agent, origin, each, str)
        finding = judge(case, 3)
        learn(case, 3, finding, is_approved=data.draw(st.booleans()))
        if number % 7 == 0:
            packed = agent.to_bytes()
            again = Profile.from_bytes(packed)
            assert again.to_bytes() == packed
            assert judge(Case(again, origin.copy(), each, str), 3) == judge(
                Case(again, origin.copy(), each, str), 3
            )
            agent = again
    assert len(agent.to_bytes()) <= 3 * 1024


def test_an_agent_that_warms_up_is_not_judged() -> None:
    agent = Agent()
    assert [agent.see(MONDAY + number, 10**number) for number in range(WARM_UP)] == [None] * WARM_UP


@pytest.mark.parametrize(("factor", "most"), [(2.0, 8), (3.0, 10), (10.0, 18)])
def test_a_lasting_change_is_taken_over_after_few_questions(
    grown: Agent, factor: float, most: int
) -> None:
    """river#948: a filter that never learns what it flags is frozen by a change of level."""
    questions = [grown.day(day, factor, approves=True) for day in range(21, 49)]
    assert 1 <= sum(questions) <= most
    assert sum(questions[-14:]) == 0


def test_a_lasting_change_is_taken_over_although_nobody_answers(grown: Agent) -> None:
    """Slowly: days of it teach next to nothing, and after weeks it is normal."""
    assert grown.day(21, 3.0) > 0
    assert grown.day(22, 3.0) > 0
    left = [grown.day(day, 3.0) for day in range(23, 120)]
    assert sum(left[-7:]) == 0


def test_anomalies_in_a_pack_do_not_hide_each_other(grown: Agent) -> None:
    """river#260: a model that learns from each soon finds the pack normal."""
    at = MONDAY + 21 * DAY_S + 10 * 3_600
    found = [grown.see(at + number, 5_000) for number in range(400)]
    assert all(found)


def test_amounts_just_below_the_limit_do_not_raise_it(grown: Agent) -> None:
    before = grown.origin.amounts.limit()
    at = MONDAY + 21 * DAY_S + 10 * 3_600
    for number in range(200):
        grown.see(at + number, int(grown.origin.amounts.limit()))
    assert grown.origin.amounts.limit() <= 2 * 1.1 * before / 1.3


def test_two_agents_that_call_each_other_are_found_on_the_first_day(grown: Agent) -> None:
    """fak#3273: for eleven days, each request different and paid for as usual."""
    start, seen = MONDAY + 21 * DAY_S + 12 * 3_600, 0
    for number in range(11 * 24 * 60):
        if grown.see(start + 60 * number) is not None:
            break
        seen += 1
    assert seen <= 3 * 60  # three usual days' requests would be 180


def test_what_a_profile_learned_goes_on_after_a_restart(grown: Agent) -> None:
    other = Agent()
    other.agent, other.origin = grown.agent.copy(), grown.origin.copy()
    for day, factor in ((21, 1.0), (22, 1.4), (23, 3.0)):
        assert other.day(day, factor) == grown.day(day, factor)


def test_bytes_of_another_version_begin_anew(grown: Agent) -> None:
    packed = bytearray(grown.agent.to_bytes())
    packed[1] = 99
    assert Profile.from_bytes(bytes(packed)).requests == 0


def test_what_was_not_seen_for_long_is_forgotten() -> None:
    sample = Sample(8)
    for value in (100, 100, 100, 1_000):
        sample.add(value, MONDAY, is_free=True)
    for day in range(1, 200):
        sample.add(100, MONDAY + day * DAY_S)
    assert sample.top == pytest.approx(100)
    assert sample.limit() == pytest.approx(130)


def digests(pattern: str) -> Iterator[tuple[bytes, float]]:
    for number, letter in enumerate(pattern):
        yield letter.encode(), MONDAY + 600.0 * number


def test_repetitions_that_an_agent_is_known_for_are_usual() -> None:
    """A job that polls one path is not a loop."""
    state = Repeats()
    for digest, at in digests("aaabaaacaaad" * 20):
        state = note_request(state, digest, at, WARM_UP)
        assert judge_repeats(state, WARM_UP) is None


def test_an_observation_says_what_it_spends() -> None:
    seen = Observation(at=0, amount=7, total=9, request=b"", payee=b"")
    assert seen.spent == 7
    assert replace(seen, is_deposit=True).spent == 0
