"""The same agents and attacks through river's half-space trees, in an environment of their own.

The trees get of an event what a profile gets, as numbers. One threshold for all agents is chosen
on the training agents, the lowest with at most one false question per agent and week; after a
question that was wrong, the owner is not asked for a day.
"""

import json
import math
import subprocess
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

from bench_peers import Peer, install
from detection_run import Fork, Report, Result, forks
from detection_world import ATTACKS, KINDS, Event, World
from mpp_session.wallet.watch.sample import DAY_S

__all__ = ["evaluate_river"]

PEER: Final = Peer("river", ("river==0.26.1",), "river_half_space_trees.py")
FALSE_A_WEEK: Final = 1.0
STEPS: Final = 400
LONGEST: Final = 4_000
"""Events of an attack that are scored."""


class Scored:
    """One agent with its scores."""

    def __init__(self, kind: str, events: list[Event], usual: float, planned: list[Fork]) -> None:
        self.kind, self.events, self.usual, self.planned = kind, events, usual, planned
        self.scores: list[float] = []
        self.forked: list[list[float]] = []

    def false(self, threshold: float, weeks_from: float = 1.0) -> int:
        """Count false questions, after the first week, in which the trees see the first events."""
        begin = self.events[0].seen.at + 7 * weeks_from * DAY_S
        number, quiet = 0, begin
        for event, score in zip(self.events, self.scores, strict=True):
            if score > threshold and event.seen.at >= quiet:
                number, quiet = number + 1, event.seen.at + DAY_S
        return number

    def results(self, threshold: float) -> Iterable[Result]:
        """Yield what became of each attack."""
        for fork, scores in zip(self.planned, self.forked, strict=True):
            lost, found = 0, Result(self.kind, fork.name, "", 0.0, 0.0)
            for event, score in zip(fork.events, scores, strict=True):
                if score > threshold and event.loss is not None:
                    hours = (event.seen.at - fork.start) / 3_600
                    found = found._replace(reason="score", hours=hours)
                    break
                lost += event.loss or 0
            yield found._replace(lost=lost / self.usual)


def evaluate_river(training: Sequence[int], held_out: Sequence[int], weeks: int = 8) -> Report:
    """Choose the threshold on some agents and measure on others."""
    chosen = _choose([scored for seed in training for scored in _score(seed, weeks, ())])
    report = Report(agents=len(held_out) * len(KINDS), weeks=weeks)
    for seed in held_out:
        for scored in _score(seed, weeks, ATTACKS):
            report.false += [(scored.kind, "score")] * scored.false(chosen)
            report.results += scored.results(chosen)
    return report


def _choose(agents: list[Scored]) -> float:
    weeks = sum((a.events[-1].seen.at - a.events[0].seen.at) / 7 / DAY_S for a in agents)
    for step in range(STEPS + 1):
        threshold = step / STEPS
        if sum(agent.false(threshold) for agent in agents) <= FALSE_A_WEEK * weeks:
            return threshold
    return 1.0


def _score(seed: int, weeks: int, attacks: Sequence[str]) -> list[Scored]:
    agents, lines = [], []
    for kind in KINDS:
        world = World(kind, seed, weeks)
        events = world.normal()
        usual, planned = forks(world, events, attacks)
        planned = [fork._replace(events=list(islice(fork.events, LONGEST))) for fork in planned]
        agents.append(Scored(kind, events, usual, planned))
        document = {
            "events": _features(events),
            "forks": [
                [fork.at_event, _features(list(fork.events), events[: fork.at_event])]
                for fork in planned
            ],
        }
        lines.append(json.dumps(document))
    done = subprocess.run(
        install(PEER), input="\n".join(lines), capture_output=True, text=True, check=True
    )
    for agent, line in zip(agents, done.stdout.splitlines(), strict=True):
        answer: dict[str, Any] = json.loads(line)
        agent.scores, agent.forked = answer["events"], answer["forks"]
    return agents


def _features(events: list[Event], before: Sequence[Event] = ()) -> list[list[float]]:
    """Return amount, rate, gap, price, hour and novelty of each event."""
    last: dict[str, float] = {}
    payees: set[bytes] = set()
    rate, at = 0.0, 0.0
    found = []
    for number, event in enumerate([*before, *events]):
        seen = event.seen
        spent = 0 if seen.is_deposit else seen.amount
        rate, at = rate * math.exp(-max(0.0, seen.at - at) / 3_600) + spent, seen.at
        gap = max(0.0, seen.at - last.get(event.origin, seen.at - DAY_S))
        angle = 2 * math.pi * (seen.at % DAY_S) / DAY_S
        price = seen.prices[0][1] if seen.prices else 0.0
        is_new = seen.payee not in payees
        payees.add(seen.payee)
        last[event.origin] = seen.at
        if number >= len(before):
            row = (math.log(seen.amount), math.log1p(rate), math.log1p(gap), price)
            found.append([*row, math.sin(angle), math.cos(angle), float(is_new)])
    return found
