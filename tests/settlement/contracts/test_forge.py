"""forge's tests: a folder for each function, hostile tokens, replay, front-running, invariants."""

import pytest

import forge_runner
import mutants_run
from settlement.artifacts import ContractName, load_artifact
from solidity import CONTRACTS

FORGE_S_MAX = 600
CONTRACTS_WITH_TREES: tuple[ContractName, ...] = ("SessionEscrow", "EscrowFactory")
TESTS = CONTRACTS / "test"


@pytest.mark.timeout(FORGE_S_MAX)
def test_forge_tests_pass() -> None:
    """CONTRACT-01 to 14, RELAY-01 to 07, F-16 to F-20, F-62, F-79, F-83, F-85, F-86, F-89.

    They include 50,000 calls of all functions by all roles; FOUNDRY_PROFILE=nightly makes
    1,000,000.
    """
    done = forge_runner.run(["test"], capture=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed, 0 skipped" in done.stdout


def test_the_solidity_is_formatted() -> None:
    """`scripts/forge fmt` makes it so."""
    done = forge_runner.run(["fmt", "--check", "src", "dev", "test"], capture=True)
    assert done.returncode == 0, done.stdout


def test_every_function_that_changes_something_has_its_tree_and_its_tests() -> None:
    """A reader finds the cases of a function under its name."""
    names = {
        entry["name"]
        for contract in CONTRACTS_WITH_TREES
        for entry in load_artifact(contract).abi
        if entry["type"] == "function" and entry["stateMutability"] == "nonpayable"
    }
    assert len(names) == 18
    for name in names:
        assert (TESTS / name / f"{name}.tree").read_text(encoding="utf-8").startswith(name)
        assert (TESTS / name / f"{name}.t.sol").exists()


@pytest.mark.parametrize(
    "mutant", mutants_run.load_mutants("contract"), ids=lambda mutant: mutant.name
)
def test_every_fault_can_be_put_in(mutant: mutants_run.Mutant) -> None:
    """scripts/mutants replaces what stands in the sources once, and sees the tests fail."""
    assert mutant.stands
    assert mutant.new != mutant.old
