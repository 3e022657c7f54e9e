"""The faults of tests/mutants.toml can be put in; `scripts/mutants core` sees them caught."""

from pathlib import Path

import pytest

import mutants_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutant", mutants_run.load_mutants("core"), ids=lambda mutant: mutant.name)
def test_every_fault_can_be_put_in(mutant: mutants_run.Mutant) -> None:
    assert mutant.stands
    assert mutant.new != mutant.old
    for test in mutant.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test
