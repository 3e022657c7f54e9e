"""Programs of Debian that tests run, without root and without installing them.

A program on PATH is used first. Otherwise its package, and those libraries of its dependencies
that this machine lacks, are downloaded with `apt-get download` and unpacked into `.cache/debian`.
"""

import fcntl
import functools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from _setup import ROOT, cache

__all__ = ["Found", "find_program"]

PROGRAMS: Final = {
    "nginx": ("nginx", "usr/sbin/nginx"),
    "caddy": ("caddy", "usr/bin/caddy"),
    "promtool": ("prometheus", "usr/bin/promtool"),
    "chromium": ("chromium", "usr/lib/chromium/chromium"),
}
"""The package of each program, and the program's path in it."""

DOWNLOAD_S_MAX: Final = 300
LIBRARIES: Final = ("lib", "usr/lib")


class Found(NamedTuple):
    """Where a program is, or why there is none."""

    path: Path | None
    reason: str = ""


class UnavailableError(Exception):
    """A package cannot be had; the message is one line."""


@functools.cache
def find_program(name: str) -> Found:
    """Return the program `name`: from PATH, or fetched from Debian once for this checkout.

    Raises:
        KeyError: `PROGRAMS` does not list it.
    """
    package, inside = PROGRAMS[name]
    path = shutil.which(name)
    if path is not None:
        return Found(Path(path))
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return Found(None, f"{name} is not on PATH, and this system has no apt to fetch it with")
    folder = cache(f"debian/{package}")
    with cache("debian/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not folder.is_dir():
                _fetch(package, folder)
            return Found(_launcher(name, folder, folder / inside))
        except UnavailableError as error:
            return Found(None, f"{name} is not on PATH and cannot be fetched: {error}")


def _fetch(package: str, folder: Path) -> None:
    """Unpack `package` and the libraries it needs in `folder`, wholly or not at all.

    The machine's own package lists may be missing or old. A second attempt makes a fresh list
    under `.cache`, which needs no root.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        downloads, tree = Path(made, "downloads"), Path(made, "tree")
        downloads.mkdir()
        tree.mkdir()
        try:
            _download(package, downloads, ())
        except UnavailableError:
            own_lists = _own_lists()
            _run(["apt-get", *own_lists, "update"], downloads)
            _download(package, downloads, own_lists)
        for archive in downloads.glob("*.deb"):
            _run(["dpkg", "-x", str(archive), str(tree)], downloads)
        tree.rename(folder)


def _own_lists() -> tuple[str, ...]:
    state, archives = cache("debian/state/lists/partial/x").parent, cache("debian/archives/x")
    return (
        *("-o", f"Dir::State={state.parent.parent}"),
        *("-o", "Dir::State::status=/var/lib/dpkg/status"),
        *("-o", f"Dir::Cache={archives.parent}"),
    )


def _download(package: str, folder: Path, options: tuple[str, ...]) -> None:
    plan = ["apt-get", *options, "--simulate", "--no-install-recommends", "install", package]
    missing = re.findall(r"^Inst (\S+)", _run(plan, folder), re.MULTILINE)
    wanted = {package, *(name for name in missing if _is_needed(name, package))}
    _run(["apt-get", *options, "download", *sorted(wanted)], folder)


def _is_needed(name: str, package: str) -> bool:
    """Whether a dependency is a library to load, or the other half of `package`.

    Two C libraries in one process crash it, so libc is never fetched.
    """
    if name == f"{package}-common":
        return True
    return name.startswith("lib") and not name.startswith(("libjs-", "libc6", "libc-"))


def _launcher(name: str, folder: Path, program: Path) -> Path:
    """Return a script that becomes `program`, with the unpacked libraries found first."""
    launcher = cache(f"debian/bin/{name}")
    if not program.exists():
        raise UnavailableError(f"its package has no {program.relative_to(folder)}")
    found = (path.parent for each in LIBRARIES for path in (folder / each).rglob("lib*.so*"))
    libraries = ":".join(sorted({str(path) for path in found}))
    text = (
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH={shlex.quote(libraries)}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n"
        f'exec {shlex.quote(str(program))} "$@"\n'
    )
    launcher.write_text(text)
    launcher.chmod(0o755)
    return launcher


def _run(command: list[str], folder: Path) -> str:
    """Return what `command` prints, run in `folder`.

    Raises:
        UnavailableError: It failed or took too long.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} took over {DOWNLOAD_S_MAX} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        why = lines[0].removeprefix("E: ") if lines else f"{command[0]} failed"
        raise UnavailableError(why.replace(f"{ROOT}/", ""))
    return done.stdout
