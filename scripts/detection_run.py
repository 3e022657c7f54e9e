"""Run detectors through normal weeks, and from copies of them through every attack."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, Self

import msgspec

from detection_world import ATTACKS, CENT, KINDS, MONDAY, Event, World, attack
from mpp_session.wallet.policy.compiled import Breaker, Trip
from mpp_session.wallet.watch.breaker import BreakerState, Outcome, note, open_until
from mpp_session.wallet.watch.judge import Case, judge, learn
from mpp_session.wallet.watch.observation import Finding
from mpp_session.wallet.watch.profile import Profile
from mpp_session.wallet.watch.repeats import (
    Repeats,
    accept_repeats,
    judge_repeats,
    note_request,
)
from mpp_session.wallet.watch.sample import DAY_S

__all__ = ["Caps", "Detector", "Fork", "Report", "Result", "Watching", "evaluate", "forks"]

WARM_DAYS: Final = 21
"""Attacks begin after these, at random, and four weeks before the end if there are so many."""
WARM_UP: Final = 30
BREAKER: Final = Breaker(
    repeated_402=Trip(3, 60, 300), paid_errors=Trip(3, 600, 1_800), same_request=Trip(20, 600, 300)
)
"""The defaults of a policy."""
SUMS: Final = frozenset({"rate", "day", "excess", "hour"})
"""Questions about sums, which an attack is a part of wherever they are asked."""
ONE_REQUEST: Final = frozenset({"amount", "request", "newcomer", "deposit"})
"""Questions about one payment, which do not reveal a price that creeps."""


class Detector(Protocol):
    """Looks at one event after the other, and can be copied."""

    def look(self, event: Event) -> str:
        """Return why the event is held, empty if it is not."""

    def approve(self, event: Event) -> None:
        """The owner says that the held event is right."""

    def copy(self) -> Self:
        """Return one that knows the same."""


class Watching:
    """The wallet's own: what `store.Watch` and a policy do, without a file.

    With `action = "ask"`, deposits and charges are held, and a voucher is signed although it is
    unusual; with "pause", vouchers are held, too. A breaker holds everything.
    """

    def __init__(self, *, pauses: bool = False) -> None:
        self.pauses = pauses
        self.agent = Profile()
        self.origins: dict[str, Profile] = {}
        self.breakers: dict[str, BreakerState] = {}
        self.repeats: dict[str, Repeats] = {}

    def look(self, event: Event) -> str:
        """Judge, and learn what is allowed."""
        seen, state = event.seen, self.breakers.get(event.origin)
        if state is not None and open_until(state, seen.at, BREAKER) is not None:
            return "breaker"
        finding = self._judge(event)
        if finding is not None and (self.pauses or seen.is_deposit or seen.is_charge):
            return finding.statistic
        self._learn(event, finding, is_approved=False)
        return ""

    def approve(self, event: Event) -> None:
        """Learn it as normal."""
        self._learn(event, self._judge(event), is_approved=True)

    def copy(self) -> "Watching":
        """Copy through bytes, as the file does."""
        other = Watching(pauses=self.pauses)
        other.agent = self.agent.copy()
        other.origins = {name: profile.copy() for name, profile in self.origins.items()}
        other.breakers, other.repeats = dict(self.breakers), dict(self.repeats)
        return other

    def _case(self, event: Event) -> Case:
        origin = self.origins.setdefault(event.origin, Profile())
        return Case(self.agent, origin, event.seen, _money)

    def _judge(self, event: Event) -> Finding | None:
        repeats = self.repeats.get(event.origin, Repeats())
        return judge(self._case(event), WARM_UP) or judge_repeats(repeats, WARM_UP)

    def _learn(self, event: Event, finding: Finding | None, *, is_approved: bool) -> None:
        seen, where = event.seen, event.origin
        repeats = self.repeats.get(where, Repeats())
        if is_approved and finding is not None and finding.statistic == "repeat":
            repeats = accept_repeats(repeats, seen.at)
        learn(self._case(event), WARM_UP, finding, is_approved=is_approved)
        if event.digest:
            repeats = note_request(repeats, event.digest, seen.at, WARM_UP)
            outcome = Outcome(at=seen.at, digest=event.digest, status=200, paid=seen.amount)
            self.breakers[where] = note(self.breakers.get(where, BreakerState()), outcome, BREAKER)
        self.repeats[where] = repeats


class Caps:
    """Caps that an owner sets after three weeks: twice the highest request, deposit, hour, day."""

    FACTOR: Final = 2.0

    def __init__(self) -> None:
        self.most: dict[str, float] = {}
        self.sums: dict[str, tuple[int, float]] = {}

    def look(self, event: Event) -> str:
        """Count, and refuse above a cap once they are set."""
        is_set = event.seen.at > MONDAY + WARM_DAYS * DAY_S
        values = dict(self._values(event))
        for name, value in values.items():
            if is_set and value > self.FACTOR * self.most.get(name, 0.0):
                return name
        for name, value in values.items():
            self.sums[name] = (self._number(name, event), value)
            if not is_set:
                self.most[name] = max(value, self.most.get(name, 0.0))
        return ""

    def approve(self, event: Event) -> None:
        """Double the caps: the owner says that they are too low."""
        del event
        self.most = {name: 2 * value for name, value in self.most.items()}

    def copy(self) -> "Caps":
        """Copy both dictionaries."""
        other = Caps()
        other.most, other.sums = dict(self.most), dict(self.sums)
        return other

    def _values(self, event: Event) -> Iterator[tuple[str, float]]:
        if event.seen.is_deposit:
            yield "deposit", event.seen.amount
            return
        yield "request", event.seen.amount
        for name in ("hour", "day"):
            number, known = self.sums.get(name, (0, 0.0))
            is_same = number == self._number(name, event)
            yield name, event.seen.amount + (known if is_same else 0.0)

    @staticmethod
    def _number(name: str, event: Event) -> int:
        return int(event.seen.at // (3_600 if name == "hour" else DAY_S))


class Result(NamedTuple):
    """Of one attack on one agent."""

    kind: str
    attack: str
    reason: str
    """Why it was held; empty: it was not detected."""
    hours: float
    """Until it was held."""
    lost: float
    """Until then, in usual days."""


class Report(msgspec.Struct):
    """Over all agents."""

    results: list[Result] = []
    false: list[tuple[str, str]] = []
    """Kind of agent, and reason."""
    agents: int = 0
    weeks: int = 0
    """Of each agent, without an attack."""

    def of(self, name: str) -> list[Result]:
        """Return the results of one attack."""
        return [result for result in self.results if result.attack == name]

    def recall(self, *names: str) -> float:
        """Return the share of attacks, or of those that are named, that were detected."""
        chosen = [bool(r.reason) for r in self.results if not names or r.attack in names]
        return sum(chosen) / len(chosen)

    def false_a_week(self, kind: str = "") -> float:
        """Return false questions per agent and week."""
        agents = self.agents / (len(KINDS) if kind else 1)
        return sum(kind in ("", known) for known, _ in self.false) / agents / self.weeks

    def precision(self) -> float:
        """Return the share of right questions, if an agent is attacked once in all weeks."""
        recall = self.recall()
        return recall / (recall + len(self.false) / self.agents) if recall else 0.0


class Fork(NamedTuple):
    """One attack: from the event with this number on, these come in place of the agent's own."""

    name: str
    at_event: int
    start: float
    events: Iterable[Event]
    """To be read once."""


def forks(world: World, events: list[Event], attacks: Iterable[str]) -> tuple[float, list[Fork]]:
    """Return what a usual day of an agent costs, and its attacks in the order of time."""
    days: dict[int, int] = {}
    for event in events:
        if not event.seen.is_deposit:
            day = int(event.seen.at // DAY_S)
            days[day] = days.get(day, 0) + event.seen.amount
    usual = float(statistics.median(days.values()))
    last = max(WARM_DAYS + 1, (world.weeks - 4) * 7)
    drawn = [(MONDAY + world.chance.uniform(WARM_DAYS, last) * DAY_S, name) for name in attacks]
    made = []
    for start, name in sorted(drawn):
        index = next(i for i, event in enumerate(events) if event.seen.at >= start)
        made.append(Fork(name, index, start, attack(world, name, start, events[index:], usual)))
    return usual, made


def evaluate(
    seeds: Sequence[int],
    make: Callable[[], Detector],
    *,
    weeks: int = 8,
    attacks: Sequence[str] = ATTACKS,
) -> Report:
    """Run normal weeks of one agent of each kind and seed, and every attack on it."""
    report = Report(agents=len(seeds) * len(KINDS), weeks=weeks)
    for seed in seeds:
        for kind in KINDS:
            world = World(kind, seed, weeks)
            events = world.normal()
            usual, planned = forks(world, events, attacks)
            _run(kind, events, planned, make(), usual, report)
    return report


def _run(  # noqa: PLR0917 -- of `evaluate` alone
    kind: str,
    events: list[Event],
    planned: list[Fork],
    detector: Detector,
    usual: float,
    report: Report,
) -> None:
    for index, event in enumerate(events):
        while planned and planned[0].at_event == index:
            reason, at, lost = run_attack(planned[0], detector.copy())
            hours = (at - planned[0].start) / 3_600
            report.results.append(Result(kind, planned[0].name, reason, hours, lost / usual))
            planned = planned[1:]
        reason = detector.look(event)
        if reason:
            report.false.append((kind, reason))
            detector.approve(event)


def run_attack(fork: Fork, detector: Detector) -> tuple[str, float, int]:
    """Return why it was held (empty: it was not), when, and what was lost until then."""
    lost, at = 0, fork.start
    for event in fork.events:
        at, reason = event.seen.at, detector.look(event)
        if reason and is_hit(fork.name, event, reason):
            return reason, at, lost
        if reason:
            detector.approve(event)
        lost += event.loss or 0
    return "", at, lost


def is_hit(name: str, event: Event, reason: str) -> bool:
    """Whether a question reveals the attack: one about it, or about sums that it is part of."""
    if name == "creep" and reason in ONE_REQUEST:
        return False
    return event.loss is not None or reason in SUMS


def _money(value: float) -> str:
    return f"{value / 100 / CENT:.2f} usdc"
