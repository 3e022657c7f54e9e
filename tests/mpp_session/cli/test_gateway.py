"""A gateway refuses to start on what would lose money later, and says which setting it is."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from mpp_session.testing.chain import TestChain
from tests.mpp_session.cli.conftest import Run

SECRET = "a secret of thirty-two bytes or more"  # noqa: S105 -- a test's


def variables(devnet: TestChain, tmp_path: Path, **changes: Any) -> dict[str, str]:
    values = devnet.values
    payee = values.accounts["payee"]
    settings = {
        "UPSTREAM_URL": "http://127.0.0.1:9",
        "PRICE_PER_UNIT": "25",
        "PAYMENT_REALM": "tests",
        "PAYMENT_SECRETS": SECRET,
        "CHAIN_RPC_URL": values.rpc_url,
        "CHAIN_ID": str(values.chain_id),
        "CHAIN_ESCROW": "0x" + values.escrow.hex(),
        "CHAIN_TOKEN": "0x" + values.token.hex(),
        "PAYEE_ADDRESS": "0x" + payee.address.hex(),
        "PAYEE_KEY": "0x" + payee.private_key.hex(),
        "LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.db'}",
        "LISTEN_PORT": "0",
        **changes,
    }
    return {f"MPP_SESSION_{name}": value for name, value in settings.items()}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CHAIN_ID", "1337", "chain 31337"),
        ("CHAIN_ESCROW", "0x" + "11" * 20, "no escrow"),
        ("CHAIN_TOKEN", "0x" + "22" * 20, "serves token"),
        ("PAYEE_ADDRESS", "0x" + "33" * 20, "The key is"),
        ("PAYMENT_SECRETS", "short", "at least 32"),
        ("PAYEE_KEY", "0x00", "payee.key"),
        ("LEDGER_URL", "sqlite:///:memory:", "in memory"),
        ("LISTEN_WORKERS", "2", "PostgreSQL"),
    ],
)
def test_it_does_not_start(  # noqa: PLR0917 -- fixtures and cases
    run: Run, devnet: TestChain, tmp_path: Path, name: str, value: str, said: str
) -> None:
    """OPEN-09, SEC-09, F-69, F-81, F-102, F-106: a line and exit code 2, before it listens."""
    done = run("gateway", "--until-eof", **variables(devnet, tmp_path, **{name: value}))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "listening" not in done.stdout
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


def test_a_taken_port_is_one_line(run: Run, devnet: TestChain, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("gateway", **variables(devnet, tmp_path, LISTEN_PORT=port))
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_that_does_not_answer_is_one_line(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    done = run("gateway", **variables(devnet, tmp_path, CHAIN_RPC_URL="http://127.0.0.1:9"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_it_announces_itself_and_ends_with_its_input(
    start: Run, devnet: TestChain, tmp_path: Path
) -> None:
    done = start("gateway", "--until-eof", "--json", **variables(devnet, tmp_path))
    assert done.returncode == 0, done.stderr
    assert '"url": "http://127.0.0.1:' in done.stdout
    assert (tmp_path / "ledger.db").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--price", "7"], "prices: 7 dUSD / 1M llm tokens"),
        (
            ["--input-price", "0.10", "--output-price", "0.40 dUSD"],
            "prices: 0.10 dUSD / 1M input tokens, 0.40 dUSD / 1M output tokens",
        ),
    ],
)
def test_it_says_what_a_million_tokens_cost(
    start: Run, devnet: TestChain, tmp_path: Path, flags: list[str], said: str
) -> None:
    given = variables(devnet, tmp_path)
    del given["MPP_SESSION_PRICE_PER_UNIT"]
    done = start("gateway", "--until-eof", *flags, **given)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_a_price_in_another_token_is_one_line(
    start: Run, devnet: TestChain, tmp_path: Path
) -> None:
    given = variables(devnet, tmp_path)
    del given["MPP_SESSION_PRICE_PER_UNIT"]
    done = start("gateway", "--until-eof", "--output-price", "0.40 EURC", **given)
    assert done.returncode == 2
    assert "`price.output`: " in done.stderr
    assert "expected a price in dUSD, found '0.40 EURC" in done.stderr


def test_its_log_is_json_where_that_is_asked_for_and_its_settlers_is_too(
    start: Run, devnet: TestChain, tmp_path: Path
) -> None:
    """O-68: nothing else goes to standard error, whichever process writes it."""
    arguments = ("--log-json", "--log-level", "debug", "--until-eof")
    done = start("gateway", *arguments, **variables(devnet, tmp_path))
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"mpp_session.process.child"} <= {line["logger"] for line in lines}
    assert all(line["level"] in ("debug", "info", "warning") for line in lines)


@pytest.mark.parametrize("command", ["gateway", "settle"])
def test_a_level_that_is_none_is_refused(run: Run, command: str) -> None:
    """O-68."""
    done = run(command, "--log-level", "loud")
    assert done.returncode == 2
    assert "loud" in done.stderr
