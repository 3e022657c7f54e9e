"""The wheel and the sdist: how they are built, and what must be in them.

scripts/wheel, scripts/release and a test share it.
"""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["PACKAGES", "build", "find_faults", "names_in"]

PACKAGES = ("channel", "settlement", "mpp_session")
SHIPPED = {".py", ".sql", ".json", ".typed", ".css", ".js", ".mjs", ".svg"}
"""What a package is made of: modules, queries and migrations, contracts, the mark of its types."""


def build(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build the project in `source` into `folder`; return the wheel and the sdist."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder.resolve())]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"cannot build: {done.stdout}{done.stderr}")
    version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
    stem = f"mpp_session-{version}"
    return folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz"


def names_in(archive: Path) -> set[str]:
    """Every file of a wheel or of an sdist, by its path below the archive's own folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as opened:
        files = [member.name for member in opened.getmembers() if member.isfile()]
    return {name.partition("/")[2] for name in files}


def find_faults(built: Sequence[Path], source: Path) -> list[str]:
    """What a wheel or an sdist lacks of the packages, and what else it brings."""
    wanted = set(_files_of_packages(source))
    return [fault for archive in built for fault in _faults_of(archive, wanted)]


def _files_of_packages(source: Path) -> Iterator[str]:
    for package in PACKAGES:
        for path in (source / package).rglob("*"):
            if path.suffix in SHIPPED:
                yield path.relative_to(source).as_posix()


def _faults_of(archive: Path, wanted: set[str]) -> Iterator[str]:
    found = names_in(archive)
    for name in sorted(wanted - found):
        yield f"{archive.name} lacks {name}"
    for name in sorted(found - wanted):
        if archive.suffix == ".whl" and ".dist-info/" not in name:
            yield f"{archive.name} has {name}, which is in no package"
