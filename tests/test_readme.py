"""The README is true: its snippets run, its commands exist, its output is the program's."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from mpp_session.cli.app import APP
from mpp_session.testing import TestChain, TestPayer
from tests.e2e.gateways import GatewayProcess, free_port, gateway_command, gateway_variables
from tests.mpp_session.demo.figures import report
from tests.mpp_session.model_server import model_server

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- runs as (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))


def test_every_python_snippet_runs_here() -> None:
    assert README.count("```python") == len(SNIPPETS) == 3


def test_every_command_and_flag_it_shows_exists() -> None:
    flags: dict[str, set[str]] = {}
    for name, rest in re.findall(r"mpp-session (\w+)((?: .*)?)", README):
        flags.setdefault(name, set()).update(re.findall(r"--[\w-]+", rest))
    assert flags.keys() >= {"gateway", "devnet", "pay"}
    for name, shown in flags.items():
        done = CliRunner().invoke(APP, [name, "--help"])
        assert done.exit_code == 0, name
        assert [flag for flag in shown if flag not in done.stdout] == []


def test_the_table_it_shows_is_the_demos() -> None:
    shown = re.findall(r"(?m)^│ (.+?) +│", README)
    figures = report()
    assert shown == [name for name, _ in figures.rows()]
    for sentence in ("All of it", "Chain, provider and agent agree to the base unit."):
        assert sentence in README


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, snippet in SNIPPETS.items():
        (tmp_path / name).write_text(snippet)
    return tmp_path


async def run(*command: str, folder: Path) -> str:
    """Run a program in the snippets' folder and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_agent_pays_a_gateway(devnet: TestChain, folder: Path) -> None:
    await asyncio.to_thread(devnet.values.write, folder / "devnet.json")
    async with model_server() as model:
        variables = gateway_variables(
            devnet.values, model.url, folder / "ledger.db", free_port(), step_units=8
        )
        variables["MPP_SESSION_SPONSORING_FEE_PAYER"] = "true"  # as --devnet has it
        gateway = GatewayProcess(gateway_command(), variables, folder / "gateway.log")
        agent = (folder / "agent.py").read_text().replace("http://127.0.0.1:8402", gateway.url)
        (folder / "agent.py").write_text(agent)
        async with gateway.running():
            printed = await run(sys.executable, "agent.py", folder=folder)
    assert "one two three\npaid 75, refunded" in printed


async def test_the_application_is_paid(devnet: TestChain, payer: TestPayer, folder: Path) -> None:
    """`sell` under a real server: a price for a request, a price for a word, and a clean end."""
    port = free_port()
    variables = gateway_variables(devnet.values, "", folder / "ledger.db", port, step_units=8)
    variables = {k: v for k, v in variables.items() if "UPSTREAM" not in k}
    command = [sys.executable, "-m", "uvicorn", "provider:app", f"--port={port}"]
    command.append(f"--app-dir={folder}")
    provider = GatewayProcess(command, variables, folder / "provider.log")
    async with provider.running(), httpx.AsyncClient(base_url=provider.url) as stranger:
        assert (await stranger.get("/joke")).status_code == 402
        async with payer.client() as client:
            assert "payer" in (await client.get(f"{provider.url}/joke")).text
            story = await client.get(f"{provider.url}/story")
            assert "data: token" in story.text
            (channel,) = await client.payments.close(provider.url)
        assert channel.settled == 250 + 8 * 25
        assert await provider.end() in {0, -signal.SIGTERM}  # uvicorn raises it again at the end
    log = (folder / "provider.log").read_text()
    assert "Application shutdown complete" in log
    assert "ERROR" not in log


async def test_the_fixtures_work_in_somebody_elses_tests(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mpp_session.testing", "test_payment.py"]
    options = ["-o", "asyncio_mode=strict", "-p", "no:cacheprovider"]  # as it is by default
    assert "1 passed" in await run(*command, *options, folder=folder)
