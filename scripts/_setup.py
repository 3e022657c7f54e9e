"""What the scripts need, made inside the checkout from the locked versions.

Only Python 3.11 to 3.13 is taken for granted. `.venv` holds the Python packages and this project
(editable), `contracts/node_modules` Anvil and the compilers, `tests/foreign/node_modules` other
people's clients, `.cache` logs and two environments of their own: `docs-venv`, what builds the
documentation, and `langchain-venv`, a client that does not fit beside the others. Deleting the four
undoes everything. A step writes its stamp last, so one that was interrupted is done again, and one
whose lock file, `pyproject.toml` or Python has changed is done anew.

This file must parse on any Python 3, to be able to say that a newer one is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

__all__ = [
    "BIN",
    "DOCS_VENV",
    "LANGCHAIN_VENV",
    "ROOT",
    "SetupError",
    "cache",
    "enter",
    "main",
    "prepare",
    "report",
]

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
PYTHON = BIN / "python"
CONTRACTS = ROOT / "contracts"
FOREIGN = ROOT / "tests" / "foreign"
LOCKS = ROOT / "requirements"
NODE_MODULES = CONTRACTS / "node_modules"
UNFINISHED = VENV / "unfinished"
DOCS_VENV = ROOT / ".cache" / "docs-venv"
LANGCHAIN_VENV = ROOT / ".cache" / "langchain-venv"

PYTHON_MIN, PYTHON_END = (3, 11), (3, 14)
NODE_MIN = 20
GROUPS = {
    "run": ("environment", "build", "run", "project", "anvil"),
    "test": (
        "environment",
        "build",
        "test",
        "project",
        "contracts",
        "demo",
        "model",
        "foreign",
        "langchain",
    ),
    "demo": ("environment", "build", "run", "project", "anvil", "demo", "model"),
    "rails": ("environment", "build", "test", "project", "anvil", "foreign"),
    "bench": ("environment", "build", "test", "project", "contracts", "bench"),
    "docs": ("docs",),  # touches no `.venv`: one that is out of date stays as it is
}
LOCKED = {
    "build": "build tools",
    "run": "Python packages",
    "test": "packages for the tests",
    "demo": "packages for the demo",
    "model": "language model",
    "bench": "packages for the measurements",
}


class SetupError(Exception):
    """A step failed; the message is one line and says what to do."""


def main(arguments: list[str]) -> None:
    """Set up the named groups (all of them when none is named)."""
    unknown = sorted(set(arguments) - set(GROUPS))
    if unknown:
        sys.exit(f"usage: scripts/setup [{'] ['.join(GROUPS)}] (unknown: {', '.join(unknown)})")
    prepare(*(arguments or GROUPS))


def enter(*groups: str) -> None:
    """Prepare `groups` and go on with the calling script under the environment's Python."""
    prepare(*groups)
    if Path(sys.prefix) != VENV:
        os.execv(PYTHON, [str(PYTHON), *sys.argv])  # noqa: S606 - no shell wanted


def prepare(*groups: str) -> None:
    """Set up the missing steps of `groups`, and put the environment first on PATH.

    Exits with one line on standard error if a step fails.
    """
    _require_python()
    steps = dict.fromkeys(step for group in groups for step in GROUPS[group])
    wanted = [step for step in steps if INCLUDED_IN.get(step) not in steps]
    try:
        if not _all_ready(wanted):
            with _one_at_a_time():
                _make(wanted)
    except SetupError as error:
        sys.exit(f"set-up: {error}")
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ["VIRTUAL_ENV"] = str(VENV)


def cache(name: str) -> Path:
    """A path under `.cache`, its folder made."""
    path = ROOT / ".cache" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def report(what: str, began: float) -> None:
    """One progress line: what was done and how many seconds it took."""
    print(f"{what:.<48} {time.monotonic() - began:6.1f} s", file=sys.stderr, flush=True)


# -- which steps are done

MADE_FROM = {
    "environment": (),
    "project": ("pyproject.toml",),
    "anvil": ("contracts/package.json", "contracts/package-lock.json"),
    "contracts": ("contracts/package.json", "contracts/package-lock.json"),
    "foreign": ("tests/foreign/package.json", "tests/foreign/package-lock.json"),
}
FOLDERS = {
    "anvil": NODE_MODULES,
    "contracts": NODE_MODULES,
    "foreign": FOREIGN / "node_modules",
    "docs": DOCS_VENV,
    "langchain": LANGCHAIN_VENV,
}
"""Where the stamp of a step is, if not in `.venv`."""
INCLUDED_IN = {"run": "test", "anvil": "contracts"}  # the first is a part of the second


def _stamp(step: str) -> Path:
    return FOLDERS.get(step, VENV) / f".ready-{step}"


def _key(step: str) -> str:
    """Hash of everything the step is made from."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for path in MADE_FROM.get(step, (f"requirements/{step}.txt",)):
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()


def _is_ready(step: str) -> bool:
    if step in INCLUDED_IN and _is_ready(INCLUDED_IN[step]):
        return True
    stamp = _stamp(step)
    return stamp.exists() and stamp.read_text() == _key(step)


def _all_ready(steps: list[str]) -> bool:
    return not _is_spoilt(steps) and all(_is_ready(step) for step in steps)


def _is_spoilt(steps: list[str]) -> bool:
    """Whether `.venv` is used and has half an installation, an older lock's packages or none."""
    if all(FOLDERS.get(step) == DOCS_VENV for step in steps):
        return False
    stale = any(_stamp(step).exists() and not _is_ready(step) for step in LOCKED)
    return stale or UNFINISHED.exists() or not (_is_ready("environment") and PYTHON.exists())


def _make(steps: list[str]) -> None:
    if _is_spoilt(steps):
        shutil.rmtree(VENV, ignore_errors=True)
    for step in steps:
        if _is_ready(step):
            continue
        began = time.monotonic()
        what, make = MAKERS[step] if step in MAKERS else (LOCKED[step], _install_locked)
        make(step)
        _stamp(step).parent.mkdir(parents=True, exist_ok=True)
        _stamp(step).write_text(_key(step))
        report(f"set-up: {what}", began)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold a file lock: two scripts started together share one set-up.

    pip and npm inherit the lock. If this program is killed, the next one waits for them.
    """
    with cache("set-up.lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)  # noqa: FBT003 - positional only
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: waiting for another one in this checkout", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        cache("set-up.log").write_text("")
        yield


# -- the steps


def _make_environment(_step: str) -> None:
    try:
        import ensurepip  # noqa: F401, PLC0415 - Debian ships Python without it
        import venv  # noqa: F401, PLC0415
    except ImportError:
        version = "{}.{}".format(*sys.version_info)
        raise SetupError(
            f"this Python {version} has no venv and ensurepip; install them "
            f"(Debian, Ubuntu: apt install python{version}-venv) and run again"
        ) from None
    _make_venv(VENV)


def _make_venv(folder: Path) -> None:
    python = getattr(sys, "_base_executable", None) or sys.executable
    _run("the virtual environment", [python, "-m", "venv", str(folder)])


def _install_locked(step: str) -> None:
    _pip(LOCKED[step], "--require-hashes", "-r", str(LOCKS / f"{step}.txt"))


def _install_project(_step: str) -> None:
    _pip("this project", "--editable", str(ROOT))


def _install_contracts(step: str) -> None:
    _install_npm_packages(step, CONTRACTS, *(["--omit=dev"] if step == "anvil" else []))
    _require_anvil()


def _install_apart(step: str) -> None:
    """Make an environment of their own: these packages share nothing with this project's."""
    folder = FOLDERS[step]
    shutil.rmtree(folder, ignore_errors=True)
    _make_venv(folder)
    python, lock = str(folder / "bin" / "python"), str(LOCKS / f"{step}.txt")
    _run(
        MAKERS[step][0],
        [python, "-m", "pip", "install", *PIP_OPTIONS, "--require-hashes", "-r", lock],
        _pip_environment(),
    )


def _install_foreign(step: str) -> None:
    _install_npm_packages(step, FOREIGN)


def _install_npm_packages(step: str, folder: Path, *options: str) -> None:
    if not _has_node():
        _pip("node and npm", "--require-hashes", "-r", str(LOCKS / "node.txt"))
    path = os.environ.get("PATH", os.defpath)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{path}"}
    command = ["npm", "ci", "--prefix", str(folder), "--ignore-scripts", "--no-fund"]
    _run(MAKERS[step][0], [*command, "--no-audit", *options], environment)


def _has_node() -> bool:
    """Whether npm and a recent enough node are on PATH."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return False
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"v(\d+)\.", version.stdout)
    return found is not None and int(found.group(1)) >= NODE_MIN


def _require_anvil() -> None:
    """Report now, rather than in the first test, that Anvil cannot run on this machine."""
    candidates = (NODE_MODULES / "@foundry-rs").glob("anvil-*/bin/anvil")
    anvil = shutil.which("anvil") or next(map(str, candidates), None)
    if anvil is None:
        raise SetupError(
            f"Anvil has no build for {platform.system()} {platform.machine()}; "
            "install Foundry so that `anvil` is on PATH and run again"
        )
    if subprocess.run([anvil, "--version"], capture_output=True, check=False).returncode:
        raise SetupError(
            "Anvil does not start here (it needs glibc 2.35 or newer); "
            "install Foundry so that `anvil` is on PATH and run again"
        )


MAKERS: dict[str, tuple[str, Callable[[str], None]]] = {
    "environment": ("virtual environment", _make_environment),
    "project": ("mpp-session itself", _install_project),
    "anvil": ("Anvil", _install_contracts),
    "contracts": ("Anvil and the Solidity compilers", _install_contracts),
    "foreign": ("other people's clients", _install_foreign),
    "docs": ("what builds the documentation", _install_apart),
    "langchain": ("LangChain", _install_apart),
}


# -- commands

PIP_OPTIONS = ("--disable-pip-version-check", "--no-input", "--progress-bar=off", "--no-deps")


def _pip(what: str, *arguments: str) -> None:
    """Install with pip. If pip is killed, its mark stays and `.venv` is made again."""
    UNFINISHED.write_text(what)
    options = [*PIP_OPTIONS, "--no-build-isolation", "--use-pep517"]
    _run(
        what,
        [str(PYTHON), "-m", "pip", "install", *options, *arguments],
        _pip_environment(),
    )
    UNFINISHED.unlink()


def _pip_environment() -> dict[str, str]:
    ignored = ("PIP_PREFIX", "PIP_TARGET", "PIP_USER", "PYTHONHOME", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in ignored}


def _run(what: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    with cache("set-up.log").open("a+") as log:
        print("$", *command, file=log, flush=True)
        began = log.tell()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=False,  # the lock
            check=False,
        )
        log.seek(began)
        output = log.read()
    if done.returncode:
        raise SetupError(f"{what} cannot be installed: {_reason(output)} (see .cache/set-up.log)")


NO_NETWORK = r"NameResolution|Temporary failure in name|NewConnection|unreachable|ENOTFOUND"
NO_ANSWER = r"EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ConnectTimeout|ReadTimeout|ProxyError"
CONNECT = "connect to the network, or name a mirror in the settings of pip and npm, and run again"
REASONS = {
    r"DO NOT MATCH THE HASHES|EINTEGRITY": "a download differs from its locked hash; report it",
    r"No space left|ENOSPC": "the disk is full; make room and run again",
    r"CERTIFICATE|_CERT_|SELF_SIGNED": "the index's certificate is not trusted here; "
    "name its authority in PIP_CERT and NODE_EXTRA_CA_CERTS and run again",
    NO_NETWORK + "|" + NO_ANSWER: f"no index can be reached; {CONNECT}",
    r"Python\.h|(gcc|cc|clang)' failed|error: command": "it has to be compiled here; "
    "install a C compiler and Python's headers and run again",
}


def _reason(output: str) -> str:
    """Return cause and remedy in one line, from the output of pip or npm."""
    for pattern, reason in REASONS.items():
        if re.search(pattern, output):
            return reason
    error = re.search(r"^(npm )?error.*", output, re.IGNORECASE | re.MULTILINE)
    return error.group().strip() if error else "the command failed"


# -- which Python


def _require_python() -> None:
    """Restart under a supported Python, or exit with a message."""
    if PYTHON_MIN <= sys.version_info[:2] < PYTHON_END:
        return
    for minor in range(PYTHON_END[1] - 1, PYTHON_MIN[1] - 1, -1):
        python = shutil.which(f"python3.{minor}")
        if python is not None and _starts(python):
            os.execv(python, [python, *sys.argv])  # noqa: S606 - no shell wanted
    _fail_for_python()


def _starts(python: str) -> bool:
    """Whether the program is a real Python; version managers leave stubs that only fail."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def _fail_for_python() -> NoReturn:
    found = "{}.{}".format(*sys.version_info)
    sys.exit(
        f"set-up: Python 3.11, 3.12 or 3.13 is needed and this is {found}; "
        "install one so that `python3` or `python3.13` is on PATH and run again"
    )
