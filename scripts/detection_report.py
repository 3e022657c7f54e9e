"""The table of scripts/detection."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import _setup
from detection_river import evaluate_river
from detection_run import Caps, Detector, Report, Watching, evaluate
from detection_world import ATTACKS, KINDS

__all__ = ["main"]

TRAINING: Final = range(10)
HELD_OUT: Final = range(1_000, 1_010)
RIVER_TRAINING: Final = 3
DETECTORS: Final[dict[str, Callable[[], Detector]]] = {
    "watch, ask": Watching,
    "watch, pause": lambda: Watching(pauses=True),
    "caps alone": Caps,
}
GOALS: Final = (("drain", "loop", "slow loop"), 0.95, 1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what the wallet's watch finds.")
    parser.add_argument("--agents", type=int, default=10, help="of each kind, at most 10")
    parser.add_argument("--river", action="store_true", help="beside river's half-space trees")
    parser.add_argument("--training", action="store_true", help="over the training agents")
    given = parser.parse_args()
    seeds = (TRAINING if given.training else HELD_OUT)[: given.agents]
    reports = {}
    for name, make in DETECTORS.items():
        began = time.monotonic()
        reports[name] = evaluate(seeds, make)
        _setup.report(name, began)
    if given.river:
        began = time.monotonic()
        reports["half-space trees"] = evaluate_river(TRAINING[:RIVER_TRAINING], seeds)
        _setup.report("half-space trees", began)
    print("\n".join(table(reports)))


def table(reports: dict[str, Report]) -> Sequence[str]:
    """Return the lines of the page: a row for each attack, then of questions."""
    names = list(reports)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for attack in ATTACKS:
        cells = [_attack(reports[name], attack) for name in names]
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    for kind in ("", *KINDS):
        cells = [f"{reports[name].false_a_week(kind):.2f}" for name in names]
        lines.append(f"| false questions a week, {kind or 'all agents'} | {' | '.join(cells)} |")
    cells = [f"{reports[name].false_a_week() / 7:.3f}" for name in names]
    lines.append(f"| the same a day | {' | '.join(cells)} |")
    cells = [f"{reports[name].precision():.2f}" for name in names]
    lines.append(f"| precision | {' | '.join(cells)} |")
    agents = sum(report.agents for report in list(reports.values())[:1])
    lines += ["", f"{agents} agents; recall, then usual days lost: median and 90th percentile"]
    attacks, recall, false = GOALS
    for name, report in reports.items():
        is_met = report.recall(*attacks) >= recall and report.false_a_week() <= false
        lines.append(f"{name}: goals {'met' if is_met else 'missed'}")
    return lines


def _attack(report: Report, attack: str) -> str:
    found = report.of(attack)
    lost = sorted(result.lost for result in found)
    worst = lost[int(0.9 * (len(lost) - 1))]
    recall = sum(bool(result.reason) for result in found) / len(found)
    return f"{recall:.2f}; {statistics.median(lost):.2f}, {worst:.2f}"
