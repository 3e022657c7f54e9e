"""The program in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.warm import Forge
from tests.waiting import PATIENCE_S

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parents[3]


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Return these variables and the machine's, without the machine's MPP_SESSION_ ones."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
    return {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **variables}


@pytest.fixture
def start(tmp_path: Path) -> Run:
    """Start Python and `mpp-session` in an empty folder, and return what it did."""

    def run_program(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(  # noqa: S603 -- ours
            [sys.executable, "-m", "mpp_session.cli", *arguments],
            cwd=tmp_path,
            env=environment(variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run_program


@pytest.fixture
def run(forge: Forge, tmp_path: Path) -> Run:
    """Run `mpp-session` as `start` does, but from where it is imported already."""

    def run_program(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return forge.run(list(arguments), environment(variables), tmp_path)

    return run_program
