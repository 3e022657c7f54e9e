"""The goals of detection, on agents that no threshold was chosen by.

`scripts/detection` measures the same over more agents and attacks: docs/engineering/detection.md.
"""

from detection_run import Caps, Watching, evaluate

SEEDS = (2_000, 2_001)
ATTACKS = ("drain", "loop", "slow loop")


def test_drains_and_loops_are_found_and_few_questions_are_false() -> None:
    """Of three kinds of agents; caps alone lose more until they refuse."""
    report = evaluate(SEEDS, Watching, weeks=4, attacks=ATTACKS)
    assert len(report.results) == len(SEEDS) * 3 * len(ATTACKS)
    assert report.recall() >= 0.95
    assert report.false_a_week() <= 1
    caps = evaluate(SEEDS, Caps, weeks=4, attacks=ATTACKS)
    assert sum(each.lost for each in report.results) < sum(each.lost for each in caps.results) / 2
