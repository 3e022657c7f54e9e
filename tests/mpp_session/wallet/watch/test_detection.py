"""The goals of detection, on agents that no threshold was chosen by.

`scripts/detection` measures the same over more agents and attacks: docs/engineering/detection.md.
"""

from detection_run import Caps, Watching, evaluate

SEEDS = (2_000, 2_001)
FAST = ("drain", "loop", "slow loop", "burst")


def test_drains_and_loops_are_found_and_few_questions_are_false() -> None:
    report = evaluate(SEEDS, Watching, weeks=5, attacks=FAST)
    assert len(report.results) == len(SEEDS) * 3 * len(FAST)
    assert report.recall("drain", "loop", "slow loop") >= 0.95
    assert report.recall("burst") >= 0.95
    assert report.false_a_week() <= 1


def test_caps_alone_lose_more() -> None:
    caps = evaluate(SEEDS[:1], Caps, weeks=5, attacks=("drain", "slow loop"))
    watching = evaluate(SEEDS[:1], Watching, weeks=5, attacks=("drain", "slow loop"))
    assert sum(r.lost for r in watching.results) < sum(r.lost for r in caps.results)
