"""`mpp-session doctor` shows each fault as a line with a remedy, and the remedy ends the fault."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpp_session.testing.chain import TestChain
from settlement.node.rpc import Rpc
from tests.e2e.warm import Forge
from tests.mpp_session.cli.conftest import Run, environment
from tests.mpp_session.cli.test_gateway import SECRET, variables
from tests.mpp_session.gateway.real_model import real_model
from tests.mpp_session.model_server import model_server
from tests.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with real_model() as url:
        yield url


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in document["checks"]}


def check_of(document: dict[str, Any], name: str) -> dict[str, str]:
    return next(check for check in document["checks"] if check["name"] == name)


def test_where_all_is_well_nothing_is_a_fault(
    run: Run, devnet: TestChain, tmp_path: Path, model_url: str
) -> None:
    """Before the first start: no books yet, no settler yet, a real model server."""
    devnet.advance(1)
    done = run("doctor", "--json", **variables(devnet, tmp_path, UPSTREAM_URL=model_url))
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert document["ok"] is True
    assert verdicts(document) == {
        "settings": "ok",
        "secrets": "ok",
        "key": "ok",
        "nodes": "ok",
        "clock": "ok",
        "escrow": "ok",
        "token": "ok",
        "price": "ok",
        "gas": "ok",
        "disk": "ok",
        "books": "ok",
        "settler": "skipped",
        "watchtower": "skipped",
        "model server": "ok",
        "tokenizer": "skipped",
        "proxy": "skipped",
    }
    assert "counted as llama.cpp" in check_of(document, "model server")["found"]
    assert not (tmp_path / "ledger.db").exists()


async def test_a_server_of_which_only_paths_are_sold_is_asked_for_no_model(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    prices = '[[prices]]\nmethod = "GET"\npath = "/a"\nrates = { request = 25 }\n'
    (tmp_path / "gateway.toml").write_text(prices)
    async with model_server() as server:
        settings = variables(devnet, tmp_path, UPSTREAM_URL=server.url)
        del settings["MPP_SESSION_PRICE_PER_UNIT"]
        arguments = ("doctor", "--json", "--config", str(tmp_path / "gateway.toml"))
        done = await asyncio.to_thread(run, *arguments, **settings)
        document = json.loads(done.stdout)
        assert check_of(document, "server")["verdict"] == "ok", done.stdout
        assert "1 path sold, and no model" in check_of(document, "server")["found"]
        assert "GET /a: 0.000025 dUSD / request" in check_of(document, "price")["found"]
        assert not any(one.path.startswith("/v1/chat") for one in server.seen)


@pytest.mark.parametrize(
    ("name", "value", "check", "said"),
    [
        ("CHAIN_RPC_URL", "http://127.0.0.1:1", "nodes", "cannot be reached"),
        ("CHAIN_ID", "1337", "nodes", "chain 31337"),
        ("CHAIN_ESCROW", "0x" + "11" * 20, "escrow", "no escrow"),
        ("CHAIN_TOKEN", "0x" + "22" * 20, "escrow", "serves token"),
        ("PAYEE_ADDRESS", "0x" + "33" * 20, "key", "The key is"),
        ("PAYEE_KEY", "0x00", "key", "payee.key"),
        ("PAYMENT_SECRETS", "ab" * 32, "secrets", "repeats"),
        ("LEDGER_URL", "sqlite:////nowhere/at/all/books.db", "disk", "cannot write"),
        ("UPSTREAM_URL", "http://127.0.0.1:9", "model server", "http://127.0.0.1:9"),
    ],
)
def test_a_fault_is_one_line_with_a_remedy_and_the_exit_code_says_so(  # noqa: PLR0917 -- cases
    run: Run, devnet: TestChain, tmp_path: Path, name: str, value: str, check: str, said: str
) -> None:
    shown = run("doctor", **variables(devnet, tmp_path, **{name: value}))
    assert shown.returncode == 1
    line, _, rest = shown.stdout.partition(f"fault   {check}: ")[2].partition("\n")
    assert said in line
    assert rest.startswith("        > ")
    assert SECRET not in shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_price_finer_than_the_token_is_a_fault(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    """Only the chain states how fine the token is."""
    given = variables(devnet, tmp_path, PRICE_OUTPUT="0.40", PRICE_MINIMUM="0.0000001")
    del given["MPP_SESSION_PRICE_PER_UNIT"]
    found = check_of(json.loads(run("doctor", "--json", **given).stdout), "price")
    assert found["verdict"] == "fault"
    assert "`price.minimum`" in found["found"]


def test_invalid_settings_are_the_only_fault_and_exit_with_two(run: Run) -> None:
    """Without settings there is nothing else to check; the line names the missing setting."""
    done = run("doctor", "--json", MPP_SESSION_UPSTREAM_URL="http://127.0.0.1:9")
    document = json.loads(done.stdout)
    assert done.returncode == 2
    assert [check["name"] for check in document["checks"]] == ["settings"]
    assert "`chain.rpc_url`" in document["checks"][0]["found"]


async def set_balance(devnet: TestChain, account: str, wei: int) -> None:
    async with await Rpc.connect(devnet.values.rpc_url, chain_id=31337) as rpc:
        address = "0x" + devnet.values.accounts[account].address.hex()
        await rpc.command("anvil_setBalance", address, hex(wei))


async def test_the_remedy_for_missing_gas_ends_the_fault(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    """The amount that the line asks for is enough."""
    given = variables(devnet, tmp_path)
    await set_balance(devnet, "payee", 0)
    poor = check_of(json.loads(run("doctor", "--json", **given).stdout), "gas")
    assert poor["verdict"] == "fault"
    amount = poor["remedy"].split()[3]
    await set_balance(devnet, "payee", int(float(amount) * 1e18 * 1.01))
    rich = check_of(json.loads(run("doctor", "--json", **given).stdout), "gas")
    assert rich["verdict"] == "ok"


def test_the_remedy_for_a_readable_file_of_secrets_ends_the_advice(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    given = variables(devnet, tmp_path)
    del given["MPP_SESSION_PAYMENT_SECRETS"]
    file = tmp_path / "gateway.toml"
    file.write_text(f'[payment]\nsecrets = ["{SECRET}"]\n')
    file.chmod(0o644)
    ask = ("doctor", "--json", "--config", str(file))
    before = check_of(json.loads(run(*ask, **given).stdout), "secrets")
    assert before["verdict"] == "advice"
    assert before["remedy"] == f"chmod 600 {file}"
    file.chmod(0o600)
    assert check_of(json.loads(run(*ask, **given).stdout), "secrets")["verdict"] == "ok"


def test_priced_input_is_counted_by_a_server_with_a_tokenizer(
    run: Run, devnet: TestChain, tmp_path: Path, model_url: str
) -> None:
    given = variables(devnet, tmp_path, UPSTREAM_URL=model_url, PRICE_OUTPUT="1", PRICE_INPUT="1")
    del given["MPP_SESSION_PRICE_PER_UNIT"]
    found = check_of(json.loads(run("doctor", "--json", **given).stdout), "tokenizer")
    assert found["verdict"] == "ok", found


async def test_the_remedy_for_a_server_without_a_tokenizer_is_one_that_has_it(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    async with model_server() as model:
        given = variables(
            devnet, tmp_path, UPSTREAM_URL=model.url, PRICE_OUTPUT="1", PRICE_INPUT="1"
        )
        del given["MPP_SESSION_PRICE_PER_UNIT"]
        without = await asyncio.to_thread(run, "doctor", "--json", **given)
        found = check_of(json.loads(without.stdout), "tokenizer")
        assert found["verdict"] == "advice"
        assert "vLLM" in found["remedy"]
        model.tokens = 9
        having = await asyncio.to_thread(run, "doctor", "--json", **given)
    assert check_of(json.loads(having.stdout), "tokenizer")["verdict"] == "ok"


def test_the_remedy_for_a_tower_that_gets_nothing_is_a_settler(
    run: Run, devnet: TestChain, tmp_path: Path, forge: Forge
) -> None:
    """The file has not grown for an hour; the settler that the line names makes it grow."""
    file = tmp_path / "settles.jsonl"
    given = variables(devnet, tmp_path, TOWER_EXPORT_FILE=str(file))
    file.write_text("{}\n")
    file.chmod(0o600)
    hour_ago = time.time() - 3600
    os.utime(file, (hour_ago, hour_ago))
    old = check_of(json.loads(run("doctor", "--json", **given).stdout), "watchtower")
    assert old["verdict"] == "fault"
    assert re.search(r"got no line for 36\d\d s", old["found"])
    assert old["remedy"].startswith("start `mpp-session settle`")
    settler = forge.start(["settle"], environment(given), tmp_path / "settler.log")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while file.stat().st_mtime <= hour_ago and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        settler.send_signal(signal.SIGTERM)
        asyncio.run(settler.wait())
    fresh = check_of(json.loads(run("doctor", "--json", **given).stdout), "watchtower")
    assert fresh["verdict"] == "ok", fresh


def test_a_tower_s_file_that_the_first_settler_makes_is_no_fault_before_it(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    given = variables(devnet, tmp_path, TOWER_EXPORT_FILE=str(tmp_path / "settles.jsonl"))
    found = check_of(json.loads(run("doctor", "--json", **given).stdout), "watchtower")
    assert found["verdict"] == "skipped"


def test_books_that_are_no_ledger_are_a_fault(run: Run, devnet: TestChain, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database" * 1000)
    found = check_of(
        json.loads(run("doctor", "--json", **variables(devnet, tmp_path)).stdout), "books"
    )
    assert found["verdict"] == "fault"
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT 1 FROM channels")


def test_the_report_for_support_has_no_secret_and_no_key_of_a_url(
    run: Run, devnet: TestChain, tmp_path: Path
) -> None:
    """Nodes and databases have keys and passwords in their URLs."""
    given = variables(
        devnet,
        tmp_path,
        CHAIN_MORE_RPC_URLS="https://node.example/v3/0123456789abcdef",
        LEDGER_URL="postgresql://seller:hunter2@127.0.0.1:1/books",
        UPSTREAM_API_KEY="sk-0123456789",
    )
    report = tmp_path / "report.json"
    done = run("doctor", "--bundle", str(report), **given)
    text = report.read_text()
    key = given["MPP_SESSION_PAYEE_KEY"]
    for secret in (SECRET, key, key[2:], "hunter2", "0123456789abcdef", "sk-0123456789"):
        assert secret not in text
        assert secret not in done.stdout + done.stderr
    document = json.loads(text)
    assert document["settings"]["payment"]["realm"] == "tests"
    assert document["settings"]["ledger"]["url"] == "postgresql://127.0.0.1"
    assert document["checks"][0]["name"] == "settings"
