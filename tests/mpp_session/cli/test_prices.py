"""`mpp-session prices`: what an operator reads, checks and imports before a gateway sells by it."""

import json
import tomllib
from pathlib import Path

import pytest

from mpp_session.testing.chain import TestChain
from tests.mpp_session.cli.conftest import Run

PLAIN = """
[[prices]]
model = "small"
per_unit = 7

[[prices]]
per_unit = 25
valid_from = 2026-12-01T00:00:00Z

[[prices]]
per_unit = 20
"""
DOLLARS = """
[[prices]]
model = "small"
input = "0.10"
output = "0.40"
"""


def settings(devnet: TestChain, folder: Path, prices: str) -> str:
    values = devnet.values
    path = folder / "gateway.toml"
    path.write_text(
        f'[chain]\nrpc_url = "{values.rpc_url}"\nid = {values.chain_id}\n'
        f'token = "0x{values.token.hex()}"\n{prices}'
    )
    return str(path)


def test_valid_prices_are_counted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(PLAIN)
    done = run("prices", "check", "--config", "gateway.toml")
    assert (done.returncode, done.stdout) == (0, "3 prices, all valid\n"), done.stderr
    done = run("prices", "check", "--config", "gateway.toml", "--json")
    assert json.loads(done.stdout) == {"rows": 3}


def test_a_row_that_is_not_valid_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(PLAIN.replace("per_unit = 25", "per_unit = 0"))
    done = run("prices", "check", "--config", "gateway.toml")
    assert done.returncode == 2
    assert "`prices` row 2" in done.stderr
    assert "per_unit" in done.stderr


def test_prices_in_money_need_the_token(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(DOLLARS)
    done = run("prices", "check", "--config", "gateway.toml")
    assert done.returncode == 1
    assert "check `chain.rpc_url` and `chain.token`" in " ".join(done.stderr.split())


def test_prices_are_shown_in_the_token(run: Run, devnet: TestChain, tmp_path: Path) -> None:
    done = run("prices", "show", "--config", settings(devnet, tmp_path, DOLLARS))
    assert done.returncode == 0, done.stderr
    assert "0.10 dUSD / 1M input tokens, 0.40 dUSD / 1M output tokens" in done.stdout
    assert "valid_from" not in done.stdout
    done = run("prices", "show", "--config", settings(devnet, tmp_path, PLAIN), "--json")
    shown = json.loads(done.stdout)
    assert [row["valid_from"] for row in shown] == ["", "2026-12-01T00:00:00+00:00", ""]
    assert [row["model"] for row in shown] == ["small", "*", "*"]
    assert shown[0]["tariff"]["rates"][0]["amount"] == "7"
    done = run("prices", "show", "--config", settings(devnet, tmp_path, PLAIN))
    assert "2026-12-01T00:00:00+00:00" in done.stdout


def test_a_reload_without_a_gateway_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(f'[ledger]\nurl = "sqlite:///books.db"\n{PLAIN}')
    state = str(tmp_path / "state")
    done = run("prices", "reload", "--config", "gateway.toml", XDG_STATE_HOME=state)
    assert done.returncode in (1, 2)
    assert "gateway" in done.stderr


def test_a_public_list_becomes_rows(run: Run, tmp_path: Path) -> None:
    listed = {
        "small": {
            "input_cost_per_token": 1.5e-7,
            "output_cost_per_token": 6e-7,
            "mode": "chat",
            "litellm_provider": "local",
        },
        "free": {
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "mode": "chat",
            "litellm_provider": "local",
        },
    }
    (tmp_path / "map.json").write_text(json.dumps(listed))
    done = run("prices", "import", "map.json", "--multiplier", "2")
    assert done.returncode == 0, done.stderr
    (row,) = tomllib.loads(done.stdout)["prices"]
    assert (row["model"], row["input"], row["output"]) == ("small", "0.3", "1.2")
    assert "skipped free:" in done.stderr
    assert "1 row, 1 skipped" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none.json"], 2, "none.json cannot be read"),
        (["map.json", "--multiplier", "much"], 2, "expected --multiplier as a number"),
        (["map.json", "--only", "other*"], 1, "0 rows"),
    ],
)
def test_an_import_of_nothing_says_why(
    run: Run, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    priced = {
        "input_cost_per_token": 1e-7,
        "output_cost_per_token": 4e-7,
        "mode": "chat",
        "litellm_provider": "local",
    }
    (tmp_path / "map.json").write_text(json.dumps({"small": priced}))
    done = run("prices", "import", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())
