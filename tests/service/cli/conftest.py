"""The program as its users start it: in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `mpp-session` in an empty folder, without variables of ours, and return what it did."""

    def run_program(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
        return subprocess.run(  # noqa: S603 -- ours
            [sys.executable, "-m", "service.cli", *arguments],
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_program
