"""The devnet as a command: one file for its owner, and nothing left behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from mpp_session.cli.devnet import _forget, _forget_earlier, _require_ours
from mpp_session.devnet_file import devnet_settings, read_devnet
from mpp_session.errors import CommandError
from mpp_session.testing.chain import TestChain
from tests.e2e.warm import Forge
from tests.mpp_session.cli.conftest import ROOT, Run, environment
from tests.waiting import PATIENCE_S


@contextmanager
def started(folder: Path, *arguments: str, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """A devnet that does not outlive the block, however that ends."""
    command = [sys.executable, "-m", "mpp_session.cli", "devnet", "--port=0", *arguments]
    with subprocess.Popen(  # noqa: S603 -- ours
        command,
        cwd=folder,
        env=variables or {**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_writes_its_file_and_takes_the_chain_with_it(
    forge: Forge, tmp_path: Path, number: int
) -> None:
    path, shown, said = (tmp_path / name for name in ("devnet.json", "shown", "said"))
    (tmp_path / "devnet.ledger.db").write_bytes(b"SQLite format 3\0 of an earlier chain")
    process = forge.start(
        ["devnet", "--port=0", "--json"], environment({}), shown, errors=said, folder=tmp_path
    )
    try:
        until(path.exists)
        values = read_devnet(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        asked = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
        assert httpx.post(values.rpc_url, json=asked).json()["result"] == hex(values.chain_id)
        process.send_signal(number)
        until(lambda: process.returncode is not None)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    _until_gone(values.rpc_url)
    assert not (tmp_path / "devnet.ledger.db").exists()
    if number != signal.SIGKILL:
        assert process.returncode == 0
        assert not path.exists()
        assert json.loads(shown.read_text())["escrow"] == "0x" + values.escrow.hex()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stores of an earlier devnet, and files of the user's with names like theirs."""
    for name in ("devnet.ledger.db", "devnet.agent.db", "other.ledger.db", "devnet.copy.ledger.db"):
        (tmp_path / name).write_bytes(b"SQLite format 3\0")
    for name in ("devnet.ledger.db-wal", "devnet.agent.db-claims", "devnet.ledger.db.lock"):
        (tmp_path / name).touch()
    for name in (
        "devnet.my.db.backup",
        "devnet.ledger.db.backup",
        "devnet.ledger.db-old",
        "devnet.agent.dbx",
    ):
        (tmp_path / name).write_text("mine")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_deletes_what_an_earlier_one_made_and_nothing_else(folder: Path) -> None:
    """O-30: the user's backup has a name like it."""
    before = names(folder)
    _forget_earlier(folder / "devnet.json")
    gone = {"devnet.ledger.db", "devnet.agent.db"}
    gone |= {"devnet.ledger.db-wal", "devnet.agent.db-claims", "devnet.ledger.db.lock"}
    assert names(folder) == before - gone


@pytest.mark.parametrize("kind", ["text", "folder", "link"])
def test_what_only_has_the_name_of_a_store_is_kept(tmp_path: Path, kind: str) -> None:
    """O-30."""
    store = tmp_path / "devnet.ledger.db"
    if kind == "folder":
        store.mkdir()
    elif kind == "text":
        store.write_text("mine")
    else:
        (tmp_path / "mine").write_bytes(b"SQLite format 3\0")
        store.symlink_to(tmp_path / "mine")
    before = names(tmp_path)
    _forget_earlier(tmp_path / "devnet.json")
    assert names(tmp_path) == before


@pytest.mark.parametrize("written", ["mine", "link"])
def test_it_writes_over_no_file_but_a_devnets(tmp_path: Path, written: str) -> None:
    """O-30: `--out` names what is there already."""
    out = tmp_path / "settings.json"
    if written == "link":
        out.symlink_to(tmp_path / "none")
    else:
        out.write_text('{"mine": true}')
    with pytest.raises(CommandError, match="settings"):
        _require_ours(out)
    _require_ours(tmp_path / "devnet.json")


def test_it_leaves_the_file_of_a_later_one(tmp_path: Path) -> None:
    """O-30."""
    out = tmp_path / "devnet.json"
    _forget(out, b"first")
    out.write_bytes(b"second")
    _forget(out, b"first")
    assert out.read_bytes() == b"second"
    _forget(out, b"second")
    assert not out.exists()


def test_it_can_be_interrupted_while_it_installs(tmp_path: Path) -> None:
    """Where no chain is there yet: npm takes its time, or for ever."""
    for package in ("channel", "settlement", "mpp_session"):  # a checkout without contracts/
        (tmp_path / package).symlink_to(ROOT / package)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("npm", "node"):
        (programs / name).write_text("#!/bin/sh\ntouch npm.started; exec sleep 60\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:/usr/bin:/bin"
    with started(tmp_path, PATH=path, HOME=str(tmp_path), PYTHONPATH=".") as process:
        until((tmp_path / "npm.started").exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def test_a_folder_it_cannot_write_to_is_said(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "none" / "devnet.json"
    done = run("devnet", "--port=0", f"--out={out}")
    assert done.returncode == 1
    assert f"{out} cannot be written" in done.stderr


def _until_gone(url: str) -> None:
    def is_gone() -> bool:
        try:
            httpx.post(url, json={})
        except httpx.TransportError:
            return True
        return False

    until(is_gone)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"rpc_url": "0xzz"}'])
def test_nothing_else_passes_for_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "devnet.json").write_text(content)
    with pytest.raises(CommandError, match="was not written by"):
        read_devnet(tmp_path / "devnet.json")


def test_a_devnets_settings_name_its_payee(devnet: TestChain, tmp_path: Path) -> None:
    path = tmp_path / "devnet.json"
    devnet.values.write(path)
    assert read_devnet(path) == devnet.values
    payee = devnet.values.accounts["payee"].address
    assert devnet_settings(read_devnet(path))["payee.address"] == "0x" + payee.hex()


def test_a_devnets_gateway_does_not_count_the_deposits_of_an_hour(devnet: TestChain) -> None:
    """O-60: a developer opens many channels in tests, and the ether is worth nothing."""
    settings = devnet_settings(devnet.values)
    for name in ("deposits_per_payer", "deposits_per_address"):
        assert settings[f"sponsoring.{name}"] >= 10**6
    assert settings["sponsoring.gas_budget_wei"] >= 10**18
