"""The README is true: its snippets run, its commands exist, its output is the program's."""

import asyncio
import inspect
import os
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from mpp_session.cli.app import APP
from tests.e2e.gateways import free_port
from tests.mpp_session.demo.figures import report
from tests.mpp_session.model_server import model_server
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- runs as (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))


def test_every_python_snippet_runs_here() -> None:
    assert README.count("```python") == len(SNIPPETS) == 5


def test_every_command_and_flag_it_shows_exists() -> None:
    flags: dict[str, set[str]] = {}
    groups = {group.name for group in APP.registered_groups}
    for name, rest in re.findall(r"mpp-session ([\w-]+)((?: .*)?)", README):
        one = f"{name} {rest.split()[0]}" if name in groups and rest.split() else name
        flags.setdefault(one, set()).update(re.findall(r"--[\w-]+", rest))
    assert flags.keys() >= {"gateway", "devnet", "pay", "wallet run"}
    for name, shown in flags.items():
        done = CliRunner().invoke(APP, [*name.split(), "--help"])
        assert done.exit_code == 0, name
        assert [flag for flag in shown if flag not in done.stdout] == []


def test_the_extras_it_names_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.findall(r"'\.\[(\w+)\]'", README)
    assert set(named) == {"devnet", "testing"} <= extras.keys()


def test_the_table_it_shows_is_the_demos() -> None:
    shown = re.findall(r"(?m)^│ (.+?) +│", README)
    figures = report()
    assert shown == [name for name, _ in figures.rows()]
    for sentence in ("All of it", "Chain, provider and agent agree to the base unit."):
        assert sentence in README


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


COMMANDS = [line.partition("  #")[0].strip() for line in re.findall(r"(?m)^\$ (.+)$", README)]
"""Every command it shows, in the order of the page."""
ELSEWHERE = {  # command: what runs it
    "scripts/demo": "tests/e2e/test_demo.py runs the program behind it",
    "scripts/test": "this test is run by it",
    "pip install '.[testing]' fastapi openai": "scripts/release, in a clean environment",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, snippet in SNIPPETS.items():
        (tmp_path / name).write_text(snippet)
    return tmp_path


class Shell:
    """Runs commands as the README prints them, in one folder, but for the ports of this machine."""

    def __init__(self, folder: Path) -> None:
        self.ran: list[str] = []
        self._folder = folder
        self._places: dict[str, str] = {}
        bin_ = Path(sys.executable).parent
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
        self._variables = {**kept, "PYTHONPATH": str(ROOT), "PATH": f"{bin_}:{os.environ['PATH']}"}

    def move(self, printed: str, here: str) -> None:
        """Have an address that the README prints be another one here, in its programs too."""
        self._places[printed] = here
        for name in SNIPPETS:
            program = self._folder / name
            program.write_text(program.read_text().replace(printed, here))

    async def run(self, start: str) -> str:
        """Run the command that starts so to its end, and return what it printed."""
        process = await self._begin(start, (), asyncio.subprocess.PIPE)
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 0, output.decode()
        return output.decode()

    @asynccontextmanager
    async def running(
        self, start: str, *more: str, until_: Callable[[], bool | Awaitable[bool]]
    ) -> AsyncIterator[None]:
        """Run the command that starts so in a shell of its own, and stop it by Ctrl-C."""
        log = self._folder / f"{start.replace('/', '-')}.log"
        with log.open("wb") as output:
            process = await self._begin(start, more, output)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await is_so(until_):
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield
            process.send_signal(signal.SIGINT)
            code = await asyncio.wait_for(process.wait(), PATIENCE_S)
            assert code in {0, 130, -signal.SIGINT}, log.read_text()
            assert "ERROR" not in log.read_text()
            assert "Traceback" not in log.read_text()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _begin(
        self, start: str, more: tuple[str, ...], output: Any
    ) -> asyncio.subprocess.Process:
        (command,) = [line for line in COMMANDS if line.startswith(start)]
        self.ran.append(command)
        for printed, here in self._places.items():
            command = command.replace(printed, here)
        return await asyncio.create_subprocess_exec(
            *shlex.split(command),
            *more,
            cwd=self._folder,
            env=self._variables,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
        )


async def is_so(condition: Callable[[], bool | Awaitable[bool]]) -> bool:
    answer = condition()
    return await answer if inspect.isawaitable(answer) else answer


async def answers(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(url)).status_code == 402
        except httpx.TransportError:
            return False


@pytest.mark.timeout(240)
async def test_what_it_prints_works_together_on_one_devnet(folder: Path) -> None:
    """O-61: a devnet, a provider, a payer, an agent, a test, a gateway, in the page's order."""
    shell = Shell(folder)
    ports = free_port(), free_port()
    provider, gateway = (f"127.0.0.1:{port}" for port in ports)
    shell.move("127.0.0.1:8000", provider)
    shell.move("127.0.0.1:8402", gateway)
    has_devnet = (folder / "devnet.json").exists
    async with (
        model_server() as model,
        shell.running("mpp-session devnet", "--port=0", until_=has_devnet),
    ):
        shell.move("127.0.0.1:8080", model.url.removeprefix("http://"))
        serving = shell.running(
            "uvicorn", f"--port={ports[0]}", until_=lambda: answers(f"http://{provider}/joke")
        )
        async with serving:
            paid = await shell.run("mpp-session pay http://127.0.0.1:8000/joke")
            assert "A payer walks into a channel." in paid
            assert "0.000250 dUSD" in paid
            output = await shell.run("python agent.py")
            assert output.startswith("A payer walks into a channel.\n")
            assert "data: token\n" in output
            assert f"paid {250 + 8 * 25}, refunded {100_000 - 450}" in output
            await use_the_wallet(shell, folder)
            assert "1 passed" in await shell.run("pytest")
        assert "Application shutdown complete" in (folder / "uvicorn.log").read_text()
        serving = shell.running(
            "mpp-session gateway --devnet",
            f"--port={ports[1]}",
            until_=lambda: is_served(f"http://{gateway}/v1/models"),
        )
        async with serving:
            assert "one two three" in await shell.run("mpp-session pay http://127.0.0.1:8402")
            assert "one two three\npaid 75, refunded" in await shell.run("python ask.py")
    assert shell.ran == [command for command in COMMANDS if command not in ELSEWHERE]


async def use_the_wallet(shell: Shell, folder: Path) -> None:
    """Buy through a wallet, read its trail, and freeze it: then the same program buys nothing."""
    has_door = (folder / "wallet/agents/wallet.sock").exists
    async with shell.running("mpp-session wallet run", until_=has_door):
        assert await shell.run("python scout.py") == "A payer walks into a channel.\n"
        assert "jokes" in await shell.run("mpp-session audit report")
        assert "frozen" in await shell.run("mpp-session wallet freeze")
        with pytest.raises(AssertionError, match="PolicyRefusedError: the whole wallet is frozen"):
            await shell.run("python scout.py")
        shell.ran.pop()  # the page shows it once


async def is_served(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(url)).is_success
        except httpx.TransportError:
            return False
