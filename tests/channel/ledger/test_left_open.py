"""O-99: a test that fails with its ledger open fails, and pytest ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ENDS_S = 60
"""Far beyond what it takes: without the fix it never ends."""

COMMON = """
import asyncio
from pathlib import Path
import pytest
from channel.ledger.sqlite import SqliteLedger

KEPT = []

async def leave_open(folder):
    KEPT.append(await SqliteLedger.open(folder / "ledger.db", exclusive=True))
"""
FAILING = """
async def test_that_fails(tmp_path):
    await leave_open(tmp_path)
    assert False

@pytest.fixture
async def books(tmp_path):
    await leave_open(tmp_path)
    raise OSError("no books")

async def test_whose_fixture_fails(books): ...

@pytest.mark.timeout(0.2, method="signal")
async def test_that_takes_too_long(tmp_path):
    await leave_open(tmp_path)
    await asyncio.Event().wait()

async def test_that_fails_amid_its_work(tmp_path):
    await leave_open(tmp_path)
    asyncio.get_running_loop().call_soon(KEPT[-1].prune(0).close)
    raise RuntimeError("amid")

async def test_that_exits(tmp_path):
    await leave_open(tmp_path)
    raise SystemExit(7)
"""
INTERRUPTED = """
async def test_that_is_interrupted(tmp_path):
    await leave_open(tmp_path)
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("tests", "code", "said"),
    [
        (FAILING, pytest.ExitCode.TESTS_FAILED, "4 failed, 1 error"),
        (INTERRUPTED, pytest.ExitCode.INTERRUPTED, "KeyboardInterrupt"),
    ],
    ids=["failing", "interrupted"],
)
def test_pytest_ends_when_a_test_leaves_its_ledger_open(
    tmp_path: Path, tests: str, code: int, said: str
) -> None:
    """O-99: the thread of a connection that nothing closes keeps no process alive."""
    (tmp_path / "test_red.py").write_text(COMMON + tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_asyncio.plugin"]
    command += ["-p", "pytest_timeout"]
    done = subprocess.run(  # noqa: S603 - a fixed program
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=ENDS_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
