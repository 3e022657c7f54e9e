"""An owner reads what is usual for an agent, in money."""

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpp_session.cli.app import APP
from mpp_session.wallet.policy import parse_policy
from mpp_session.wallet.watch.store import SCHEMA, Watch
from tests.mpp_session.wallet.watch.test_store import ORIGIN, POLICY, SIGN, ask


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A wallet's books after ten days of one agent, and its policy."""
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "policy.toml").chmod(0o600)
    db = sqlite3.connect(tmp_path / "wallet.db", isolation_level=None)
    db.executescript(SCHEMA)
    watch = Watch(parse_policy(POLICY, "policy.toml"))
    db.execute("BEGIN")
    for day in range(10):
        for number in range(40):
            cost = 10_000 + 500 * (number % 7)
            seen = ask(day * 1440 + 10 * number, amount=cost, request_total=cost)
            watch.learn(db, seen)
    db.execute("COMMIT")
    db.close()
    return tmp_path


def show(home: Path, *arguments: str) -> str:
    done = CliRunner().invoke(APP, ["wallet", "stats", "--home", str(home), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_is_usual_is_shown_in_money(home: Path) -> None:
    shown = show(home, SIGN.agent, "--policy", str(home / "policy.toml"))
    assert "research-3, all origins" in shown
    assert f"research-3, {ORIGIN}" in shown
    for line in (
        "learned from           400 requests",
        "a request costs        0.012 USDC (0.009 USDC to 0.013 USDC), unusual above 0.024 USDC",
        "between requests       10 min (10 min to 10 min)",
        "price of output_token  at most 0.00001 USDC",
        "a day costs            0.46 USDC (0.46 USDC to 0.46 USDC), unusual above 0.59 USDC",
        "recipients             1",
    ):
        assert line in shown, shown
    assert "hours of work, UTC     08 to 15; weekends 08 to 15" in shown


def test_without_a_policy_amounts_are_base_units(home: Path) -> None:
    shown = show(home)
    assert "base units" in shown
    assert ORIGIN not in shown


def test_an_agent_that_has_paid_nothing_is_named(home: Path) -> None:
    assert show(home, "other") == "nothing is known of the agent other: it has paid nothing\n"
    (agent,) = json.loads(show(home, "--json"))
    assert agent["agent"] == SIGN.agent
    assert agent["usual"]["recipients"] == "1"


def test_no_books_are_a_refusal_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(APP, ["wallet", "stats", "--home", str(tmp_path)])
    assert done.exit_code == 1
    (tmp_path / "wallet.db").write_text("something else, long enough to be read as a header" * 99)
    done = CliRunner().invoke(APP, ["wallet", "stats", "--home", str(tmp_path)])
    assert done.exit_code == 1
