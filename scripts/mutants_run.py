"""The implementation of scripts/mutants."""

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from solidity import CONTRACTS

ROOT: Final = CONTRACTS.parent
REPORT: Final = ROOT / "docs" / "engineering" / "mutants.md"
COMPILE: Final = "import runpy, sys; sys.argv = ['compile']; runpy.run_path('compile')['main']()"
FORGE: Final = "import forge_runner, sys; sys.exit(forge_runner.run(sys.argv[1:]).returncode)"
QUICK: Final = {"FOUNDRY_FUZZ_RUNS": "24", "FOUNDRY_INVARIANT_RUNS": "10"}
COPIED: Final = ("channel", "contracts", "docs", "mpp_session", "scripts", "settlement", "tests")
AT_ONCE: Final = 2
TESTS_FAILED: Final = 1
"""pytest's exit code. Any other code, such as 4 for a missing test, is not a catch."""
HANGS_S: Final = 600.0
"""A fault that keeps the tests from ending counts as caught after this time."""


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault: `old` becomes `new` in a file.

    Attributes:
        name: The fault, in a few words.
        file: Under contracts/src for the contracts, under the checkout for Python.
        old: Text that occurs in the file exactly once.
        new: Its replacement.
        tests: For Python: what pytest runs to catch it, files or single tests.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file, from the checkout's root."""
        return Path(self.file) if self.tests else Path("contracts", "src", self.file)

    @property
    def stands(self) -> bool:
        """Whether `old` occurs in the file exactly once."""
        return (ROOT / self.path).read_text(encoding="utf-8").count(self.old) == 1


def load_mutants(kind: str) -> list[Mutant]:
    """Read the faults of one kind, `contract` or `core`."""
    folder = {"contract": "contracts", "core": "tests"}[kind]
    text = (ROOT / folder / "mutants.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text)["mutant"], list[Mutant])


def main(arguments: Sequence[str]) -> int:
    """Try the mutants asked for; 1 if one survives."""
    kinds = [kind for kind in ("contract", "core") if kind in arguments] or ["contract", "core"]
    words = [word for word in arguments if word not in {*kinds, "--report"}]
    mutants = [
        mutant
        for kind in kinds
        for mutant in load_mutants(kind)
        if all(word in mutant.name for word in words)
    ]
    with copies() as free, ThreadPoolExecutor(AT_ONCE) as pool:
        require_sound(mutants, free)
        caught = list(pool.map(lambda mutant: attempt(mutant, free), mutants))
    survivors = [mutant.name for mutant, held in zip(mutants, caught, strict=True) if not held]
    print(f"{len(survivors)} of {len(mutants)} survived" if survivors else "all caught")
    if "--report" in arguments and not words:
        REPORT.write_text(report(mutants, caught), encoding="utf-8")
    return 1 if survivors else 0


@contextmanager
def copies() -> Iterator["queue.Queue[Path]"]:
    """Copy the checkout, once for each mutant that is tried at the same time."""
    with tempfile.TemporaryDirectory() as home:
        free: queue.Queue[Path] = queue.Queue()
        for number in range(AT_ONCE):
            free.put(copy_tree(Path(home, str(number))))
        yield free


def copy_tree(home: Path) -> Path:
    """Copy what compiling and testing needs; packages are linked."""
    ignored = shutil.ignore_patterns("node_modules", "out", "cache", "__pycache__")
    for name in COPIED:
        shutil.copytree(ROOT / name, home / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, home / name)
    (home / "contracts" / "node_modules").symlink_to(CONTRACTS / "node_modules")
    (home / ".venv").symlink_to(ROOT / ".venv")
    return home


def require_sound(mutants: Sequence[Mutant], free: "queue.Queue[Path]") -> None:
    """Exit unless the tests that should catch the faults pass without them."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    if not tests:
        return
    copy = free.get()
    done = pytest(copy, tests, "--maxfail=10", "-n", str(AT_ONCE))
    free.put(copy)
    if done.returncode:
        sys.exit(f"the tests fail without a fault:\n{done.stdout.decode()[-4000:]}")


def attempt(mutant: Mutant, free: "queue.Queue[Path]") -> bool:
    """Try one mutant in a free copy, and print the result."""
    copy = free.get()
    try:
        caught = is_caught(mutant, copy)
    finally:
        free.put(copy)
    print(f"{'caught' if caught else 'SURVIVED':10}{mutant.name}", flush=True)
    return caught


def is_caught(mutant: Mutant, copy: Path) -> bool:
    """Apply the fault, and return whether the tests fail."""
    path = copy / mutant.path
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        if mutant.tests:
            return pytest(copy, mutant.tests, "-x").returncode == TESTS_FAILED
        run(copy, COMPILE).check_returncode()
        return run(copy, FORGE, "test", "--fail-fast").returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(sound, encoding="utf-8")


def pytest(copy: Path, tests: Sequence[str], *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run tests of the copy on the copy's sources."""
    command = [sys.executable, "-m", "pytest", "-q", *options, *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=copy, env=environment, check=False, capture_output=True, timeout=HANGS_S
    )


def run(copy: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python in the copy's scripts folder, on the copy's packages."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=copy / "scripts",
        env={**os.environ, **QUICK, "PYTHONPATH": f"{copy / 'scripts'}{os.pathsep}{copy}"},
        check=False,
        capture_output=True,
    )


def report(mutants: Sequence[Mutant], caught: Sequence[bool]) -> str:
    """The page that says which faults were tried and what caught them."""
    lines = [
        "# Faults that the tests catch",
        "",
        "`scripts/mutants core` puts each fault of `tests/mutants.toml` into a copy of the sources",
        "and runs the tests that it names; `scripts/mutants contract` does so for the escrow.",
        f"`--report` wrote this page: the tests caught {sum(caught)} of {len(mutants)} faults.",
        "",
        "| file | fault | caught by |",
        "|---|---|---|",
    ]
    for mutant, held in zip(mutants, caught, strict=True):
        by = "forge" if not mutant.tests else ", ".join(f"`{test}`" for test in mutant.tests)
        lines.append(f"| `{mutant.path}` | {mutant.name} | {by if held else '**survived**'} |")
    return "\n".join([*lines, ""])
