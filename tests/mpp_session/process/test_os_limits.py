"""What the operating system is asked for: more open files, and no copy of the keys."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpp_session.process.os_limits import raise_open_files

ROOT = Path(__file__).parents[3]


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program with the highest limit of core files that this user may set."""
    return subprocess.run(  # noqa: S603 -- ours
        [
            sys.executable,
            "-c",
            f"import mpp_session.process.os_limits as p, ctypes, os, resource\n{code}",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=_allow_core_files,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _allow_core_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def test_a_crash_leaves_no_memory_behind(tmp_path: Path) -> None:
    """O-92: neither in a file nor with a program that the kernel pipes dumps to."""
    done = run("p.forbid_core_files(); os.abort()", tmp_path)
    assert done.returncode == -signal.SIGABRT
    assert not [*tmp_path.iterdir()]
    asked = (
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    if sys.platform == "linux":
        assert run(f"p.forbid_core_files(); {asked}", tmp_path).stdout == "(0, 0) 0\n"


@pytest.mark.parametrize("command", ["mpp_session.cli", "mpp_session.gateway.worker"])
def test_each_of_our_programs_forbids_it_first(command: str) -> None:
    """O-92: gateway, worker, settler, watchtower, `pay`: before a key is read."""
    code = (
        "import sys, runpy, resource\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__')\n"
        "except BaseException: pass\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), file=sys.stderr)"
    )
    done = run(code, ROOT)
    assert done.stderr.endswith("(0, 0)\n"), done.stderr


def test_as_many_files_may_be_open_as_the_system_lets_us() -> None:
    """O-26: a service manager's soft limit of 1,024 is not ours to keep."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), hard))
        assert raise_open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raise_open_files() >= min(hard, 65_536) if hard > 0 else True
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
