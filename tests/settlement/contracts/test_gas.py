"""The escrow costs what the committed snapshot says, to the unit of gas."""

import json

import pytest

import gas_report


@pytest.mark.timeout(300)
def test_gas_is_what_the_snapshot_says_and_within_the_goals() -> None:
    """After a change on purpose: scripts/gas --write, and say why in the changelog."""
    figures = gas_report.measure()
    assert figures == json.loads(gas_report.SNAPSHOT.read_text(encoding="utf-8"))
    for name, goal in gas_report.GOALS.items():
        assert figures[name] <= goal
