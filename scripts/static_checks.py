"""The checks that read the sources and run no test: scripts/test and scripts/check share them."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_static_checks"]

TYPED = ("channel", "settlement", "mpp_session", "tests")


def run_static_checks() -> list[str]:
    """Run all checks, in parallel groups; return the names of those that failed."""
    with ThreadPoolExecutor() as pool:
        return [name for names in pool.map(_run_group, _groups()) for name in names]


def _groups() -> Iterator[list[tuple[str, list[str]]]]:
    """Groups for two cores: mypy takes as long as all the others, and the site can wait."""
    yield [("types", ["mypy", *TYPED, *_python_programs()])]
    yield [
        ("format", ["ruff", "format", "--check", "--quiet", "."]),
        ("lint", ["ruff", "check", "--quiet", "."]),
        ("spelling", ["codespell", *_files()]),
        ("layers", ["lint-imports", "--no-logo", "--cache-dir=.cache/import-linter"]),
    ]
    yield [("site", ["scripts/docs"])]


def _python_programs() -> Iterator[str]:
    """The scripts written in Python."""
    for path in sorted(Path("scripts").iterdir()):
        if path.suffix == ".py" or (path.is_file() and b"python3" in path.read_bytes()[:32]):
            yield str(path)


def _files() -> list[str]:
    """Every file that git tracks, or would: codespell reads no .gitignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and Path(name).is_file()]


def _run_group(group: list[tuple[str, list[str]]]) -> list[str]:
    """Run the checks of one group one after the other; return the names of those that failed."""
    failed = []
    for name, command in group:
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            failed.append(name)
        _setup.report(f"{name}: {'failed' if done.returncode else 'ok'}", began)
    return failed
