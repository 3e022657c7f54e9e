"""`mpp-session channels`: money that a person can read, and that nothing cuts."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from mpp_session.testing.chain import TestChain
from tests.mpp_session.cli.conftest import Run
from tests.mpp_session.cli.test_status import make_ledger, owe, variables


@pytest.fixture
def books(tmp_path: Path, devnet: TestChain) -> Path:
    path = tmp_path / "books.db"
    asyncio.run(make_ledger(path))
    asyncio.run(owe(path, devnet))
    return path


def test_money_has_decimals_and_symbol_and_programs_get_base_units(
    run: Run, devnet: TestChain, books: Path
) -> None:
    """O-62, O-64, O-69: also on 80 columns; whole ids; times; one channel is `1 channel`."""
    (row,) = json.loads(run("channels", "--json", **variables(devnet, books)).stdout)
    assert (row["accepted"], row["spent"], row["at_risk"]) == ("250000", "40", "40")
    symbol = devnet.values.token_symbol
    shown = run("channels", COLUMNS="80", **variables(devnet, books)).stdout
    assert f"0.250000 {symbol}" in shown
    assert f"1 channel, 0.000040 {symbol} at risk" in shown
    assert row["channel_id"] in shown
    assert row["payer"] in shown
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", shown)
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


def test_without_a_node_amounts_are_base_units(run: Run, books: Path) -> None:
    """O-64: the books alone do not say what the token calls itself."""
    shown = run("channels", "--ledger", f"sqlite:///{books}").stdout
    assert "250,000 base units" in shown
    assert "1 channel, 40 base units at risk" in shown


def test_the_books_of_a_devnets_gateway_are_found_by_its_file(
    run: Run, devnet: TestChain, books: Path, tmp_path: Path
) -> None:
    """O-68: as `status --devnet` finds them."""
    file = tmp_path / "dev.json"
    devnet.values.write(file)
    books.rename(tmp_path / "dev.ledger.db")
    shown = run("channels", "--devnet", "dev.json")
    assert f"0.250000 {devnet.values.token_symbol}" in shown.stdout, shown.stderr
