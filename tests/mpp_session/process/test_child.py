"""The settler that a gateway starts: it ends with its parent, and is kept alive."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.ledger.url import open_ledger
from mpp_session.errors import CommandError
from mpp_session.process.child import SettlerChild, start_settler
from mpp_session.settings import SettlerConfig
from mpp_session.settings.config import load_settler_config, settler_environment
from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.mpp_session.settlers import owe_close, settler_variables, until_closed
from tests.waiting import until, within

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def chain(devnet: TestChain) -> AsyncIterator[Devnet]:
    async with devnet.connect() as connected:
        yield connected


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def settings(devnet: TestChain, tmp_path: Path, **changes: str) -> SettlerConfig:
    variables = settler_variables(devnet, f"sqlite:///{tmp_path / 'ledger.db'}", **changes)
    return load_settler_config(environment=variables)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


async def test_it_is_ready_when_it_settles_and_ends_with_the_block(
    devnet: TestChain, tmp_path: Path
) -> None:
    async with start_settler(settings(devnet, tmp_path)) as child:
        await child.ready()
        pid = child.pid
        assert pid is not None
        assert is_running(pid)
    assert not is_running(pid)


async def test_what_it_refuses_keeps_its_parent_from_starting(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-81, decision 15: in the parent's own terms."""
    other = settings(devnet, tmp_path, PAYEE_ADDRESS="0x" + "33" * 20)
    async with start_settler(other) as child:
        with pytest.raises(ConfigError, match="The key is"):
            await child.ready()
    away = settings(devnet, tmp_path, CHAIN_RPC_URL="http://127.0.0.1:9")
    async with start_settler(away) as child:
        with pytest.raises(CommandError, match="the settler did not start"):
            await child.ready()


async def test_one_that_was_not_started_is_not_ready(devnet: TestChain, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="not started"):
        await SettlerChild(settings(devnet, tmp_path)).ready()


async def test_killed_it_is_started_again_and_goes_on(
    devnet: TestChain, chain: Devnet, tmp_path: Path
) -> None:
    """F-64: as often as it is killed."""
    config = settings(devnet, tmp_path)
    ledger = await open_ledger(config.ledger.url, exclusive=False)
    async with start_settler(config) as child:
        await child.ready()
        running = asyncio.create_task(child.run())
        for number in range(2):
            pid = child.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            owed = await owe_close(ledger, chain, salt=number)
            await until_closed(chain, owed)
            assert child.pid not in (None, pid)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    await ledger.close()


async def test_it_ends_when_its_parent_is_killed(devnet: TestChain, tmp_path: Path) -> None:
    """Decision 14: no settler outlives its gateway, also after kill -9."""
    program = (
        "import asyncio\n"
        "from mpp_session.settings.config import load_settler_config\n"
        "from mpp_session.process.child import start_settler\n"
        "async def main():\n"
        "    async with start_settler(load_settler_config()) as child:\n"
        "        await child.ready()\n"
        "        print(child.pid, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    variables = settler_variables(devnet, f"sqlite:///{tmp_path / 'ledger.db'}")
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        *["-c", program],
        stdout=subprocess.PIPE,
        env={**variables, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    await parent.wait()

    async def is_gone() -> bool:
        return not is_running(pid)

    async with within(10):
        await until(is_gone)


def test_it_gets_its_settings_and_no_secret_of_the_gateway(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-104: the secrets of challenges are no business of the settler's."""
    monkeypatch.setenv("MPP_SESSION_PAYMENT_SECRETS", "a secret of thirty-two bytes or more")
    config = settings(
        devnet, tmp_path, SETTLEMENT_SETTLE_VALUE="77", TOWER_EXPORT_FILE="settles.jsonl"
    )
    assert config.tower.export_file == "settles.jsonl"
    environment = settler_environment(config)
    assert "MPP_SESSION_PAYMENT_SECRETS" not in environment
    assert load_settler_config(environment=environment) == config
