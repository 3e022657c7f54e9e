"""`mpp-session earnings` and `spent`: what came in, what went out (O-63)."""

import asyncio
import json
from pathlib import Path

import pytest

from mpp_session.testing.chain import TestChain
from tests.e2e.warm import Forge
from tests.mpp_session.cli.conftest import Run
from tests.mpp_session.cli.test_status import make_ledger, owe, variables
from tests.mpp_session.settlers import settler_variables


@pytest.fixture
def books(tmp_path: Path, devnet: TestChain) -> Path:
    path = tmp_path / "books.db"
    asyncio.run(make_ledger(path))
    asyncio.run(owe(path, devnet, accepted=40))
    return path


def test_what_was_earned_and_what_gas_it_took(
    run: Run, forge: Forge, devnet: TestChain, books: Path, tmp_path: Path
) -> None:
    """O-63: before and after a settle; with decimals for people, base units for programs."""
    given = variables(devnet, books)
    symbol = devnet.values.token_symbol
    before = run("earnings", **given).stdout
    assert f"0.000040 {symbol}" in before
    assert "1 channel, 1 open" in before
    assert "0 ether" in before
    settled = forge.run(
        ["settle", "--now"], settler_variables(devnet, f"sqlite:///{books}"), tmp_path
    )
    assert settled.returncode == 0, settled.stderr
    assert "settled channel 0x" in settled.stderr
    document = json.loads(run("earnings", "--json", **given).stdout)
    (row,) = document["earned"]
    assert (row["delivered"], row["settled"], row["at_risk"]) == ("40", "40", "0")
    assert int(document["gas"]["payouts_wei"]) > 0


def test_books_alone_say_it_in_base_units_and_without_gas(run: Run, books: Path) -> None:
    """O-63."""
    shown = run("earnings", "--ledger", f"sqlite:///{books}").stdout
    assert "40 base units" in shown
    assert "gas" not in shown


def test_a_store_that_is_not_there_is_not_made(run: Run, tmp_path: Path) -> None:
    """O-63."""
    done = run("spent", "--store", "none.db")
    assert done.returncode == 2
    assert "there is no store" in done.stderr
    assert not (tmp_path / "none.db").exists()
