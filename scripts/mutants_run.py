"""What scripts/mutants does."""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from solidity import CONTRACTS

ROOT: Final = CONTRACTS.parent
COMPILE: Final = "import runpy, sys; sys.argv = ['compile']; runpy.run_path('compile')['main']()"
FORGE: Final = "import forge_runner, sys; sys.exit(forge_runner.run(sys.argv[1:]).returncode)"
QUICK: Final = {"FOUNDRY_FUZZ_RUNS": "24", "FOUNDRY_INVARIANT_RUNS": "10"}


class Mutant(msgspec.Struct, frozen=True):
    """A fault: `old` becomes `new` in a file of contracts/src."""

    name: str
    file: str
    old: str
    new: str

    @property
    def stands(self) -> bool:
        """Whether `old` is in the file exactly once."""
        return (CONTRACTS / "src" / self.file).read_text(encoding="utf-8").count(self.old) == 1


def load_mutants() -> list[Mutant]:
    """Read contracts/mutants.toml."""
    text = (CONTRACTS / "mutants.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text)["mutant"], list[Mutant])


def main(words: Sequence[str]) -> int:
    """Try each mutant; 1 if one survives."""
    survivors = []
    with tempfile.TemporaryDirectory() as home:
        copy = copy_tree(Path(home))
        for mutant in load_mutants():
            if not all(word in mutant.name for word in words):
                continue
            caught = is_caught(mutant, copy)
            print(f"{'caught' if caught else 'SURVIVED':10}{mutant.name}", flush=True)
            survivors += [] if caught else [mutant.name]
    print(f"{len(survivors)} survived" if survivors else "all caught")
    return 1 if survivors else 0


def copy_tree(home: Path) -> Path:
    """Copy what compiling and testing needs; packages are linked."""
    for name in ("contracts", "scripts", "settlement", "channel"):
        ignored = shutil.ignore_patterns("node_modules", "out", "cache", "__pycache__")
        shutil.copytree(ROOT / name, home / name, ignore=ignored)
    (home / "contracts" / "node_modules").symlink_to(CONTRACTS / "node_modules")
    return home


def is_caught(mutant: Mutant, copy: Path) -> bool:
    """Compile the fault in and see the tests fail."""
    path = copy / "contracts" / "src" / mutant.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        run(copy, COMPILE).check_returncode()
        return run(copy, FORGE, "test", "--fail-fast").returncode != 0
    finally:
        path.write_text(sound, encoding="utf-8")


def run(copy: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python in the copy's scripts folder, on the copy's packages."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=copy / "scripts",
        env={**os.environ, **QUICK, "PYTHONPATH": f"{copy / 'scripts'}{os.pathsep}{copy}"},
        check=False,
        capture_output=True,
    )
