"""What holds for the repository as a whole, for every file in it."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("channel", "settlement", "mpp_session")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), str(path)))


def places(*matching: tuple[Path, ast.AST]) -> list[str]:
    return [f"{name_of(path)}:{getattr(node, 'lineno', 0)}" for path, node in matching]


# -- what must not be in a tracked file


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("the host of a package registry", r"(?:pypi|pythonhosted|npmjs|yarnpkg)\.(?:org|com)"),
        ("a path of a developer's machine", r"(?<![\w.~-])/(?:root|home|Users|work|tmp/w)/\w"),
        ("an e-mail address", r"\b[\w.+-]+@(?!example\.)[\w-]+\.(?:com|dev|edu|io|net|org)\b"),
        ("a private key block", r"BEGIN (?:EC |RSA |OPENSSH )?PRIVATE KEY"),
    ],
)
def test_no_tracked_file_contains(what: str, pattern: str) -> None:
    found = [
        f"{name_of(path)}: {what}: {match[0]}"
        for path in tracked()
        if (match := re.search(pattern, path.read_bytes().decode(errors="ignore")))
    ]
    assert not found, "\n".join(found)


def test_locks_name_no_place_to_download_from() -> None:
    """Users install from their own index; every Python package is pinned by its hashes."""
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        for line in lock.read_text().splitlines():
            assert re.match(r"#|[\w.-]+==[\w.]+( ; .*)? \\$|    --hash=sha256:", line), (lock, line)
    for folder in ("contracts", "tests/foreign"):
        assert '"resolved"' not in (ROOT / folder / "package-lock.json").read_text()


def test_every_dependency_is_locked() -> None:
    """At a version pyproject.toml allows; `scripts/lock` brings the lock files up to date."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = pyproject["dependency-groups"] | {"run": pyproject["project"]["dependencies"]}
    wrong = [
        f"{group}: {requirement}"
        for group, wanted in groups.items()
        for requirement in map(Requirement, wanted)
        if not requirement.specifier.contains(dict(pins(group)).get(requirement.name, "0"))
    ]
    assert not wrong, "\n".join(wrong)


def pins(group: str) -> list[tuple[str, str]]:
    lock = (ROOT / "requirements" / f"{group}.txt").read_text()
    return re.findall(r"(?m)^([\w.-]+)==(\S+)", lock)


def test_the_run_lock_is_part_of_the_test_lock() -> None:
    """What the tests run with is what users get."""
    assert set(pins("run")) <= set(pins("test"))


def test_users_install_what_the_packages_import() -> None:
    """A package that only tests import is in the group `test`."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    modules = {Requirement(each).name.replace("-", "_") for each in wanted}
    modules = (modules - {"safe_pysha3"}) | {"sha3"}
    assert modules - set(imported()) == set()


def imported() -> Iterator[str]:
    """What the packages import, at the top of a module or later."""
    for path in SOURCES:
        for node in nodes(path):
            match node:
                case ast.Import(names=names):
                    yield from (alias.name.partition(".")[0] for alias in names)
                case ast.ImportFrom(module=str(module)):
                    yield module.partition(".")[0]


# -- words

WORDS = frozenset(
    {"whoever", "nobody", "somebody", "everybody", "anybody", "whatever", "of ours", "at once"}
    | {"told", "purse", "desk", "lane", "docket", "keeper"}
)
"""Words without an actor, and home-made names where the field has its own (docs/contributing)."""
VAGUE = re.compile(rf"(?i)\b(?:{'|'.join(sorted(WORDS))})\b".replace(" ", r"\s+"))
PROSE = (
    "channel/",
    "settlement/",
    "mpp_session/",
    "docs/",
    "scripts/",
    "tests/",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)
"""The parts of the repository that people write and read as English."""
PROSE_SUFFIXES = {".py", ".sql", ".md", ".toml", ""}
"""The scripts that users call have no suffix."""
ALLOWED = {
    # the name of a file, which fixtures of users may look for
    "mpp_session/testing/payer.py": frozenset({"purse"}),
    # a user of the system, as which PostgreSQL runs
    "tests/postgres.py": frozenset({"nobody"}),
    # the words themselves, and a text with some of them
    "tests/test_repository.py": WORDS,
    # faults 37, 66, 75 and 77 stand in the words of the reports that they come from
    "docs/engineering/failures.md": frozenset({"at once", "told", "lane"}),
}
"""By a path's beginning, the longest that fits, the words that are let through, and why."""


def allowed_in(name: str) -> frozenset[str]:
    prefixes = [prefix for prefix in ALLOWED if name.startswith(prefix)]
    return ALLOWED[max(prefixes, key=len)] if prefixes else frozenset()


def vague_words(text: str, allowed: frozenset[str] = frozenset()) -> Iterator[tuple[int, str]]:
    for match in VAGUE.finditer(text):
        if " ".join(match[0].lower().split()) not in allowed:
            yield text.count("\n", 0, match.start()) + 1, match[0]


def test_the_prose_names_its_actors() -> None:
    """In code, messages, SQL and documents: who acts is named, and a thing has its usual name."""
    found = [
        f"{name}:{line}: {word!r}: name the actor, or use the usual word"
        for path in tracked()
        if (name := name_of(path)).startswith(PROSE) and path.suffix in PROSE_SUFFIXES
        for line, word in vague_words(path.read_text(), allowed_in(name))
    ]
    assert not found, "\n".join(found)


def test_a_vague_word_is_found_where_it_stands() -> None:
    """Also over the end of a line, and in capitals; not within another word."""
    text = "The payer signs.\nWhoever asks\nis answered at\nonce. Told so.\nA planet, deskwork."
    assert list(vague_words(text)) == [(2, "Whoever"), (3, "at\nonce"), (4, "Told")]
    assert list(vague_words(text, frozenset({"told"}))) == [(2, "Whoever"), (3, "at\nonce")]


# -- rules of the sources


def test_every_public_function_and_class_is_in_all() -> None:
    """And `__all__` names nothing that is not there; its order is the linter's to check."""
    wrong = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        listed: set[str] = set()
        defined, bound = set(), set()
        for node in tree.body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    defined.add(node.name)
                case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List()):
                    listed = set(ast.literal_eval(node.value))
                case ast.Assign(targets=[ast.Name(id="__all__")]):
                    pass  # the public face, which imports late: tests/mpp_session/test_init.py
                case ast.Import() | ast.ImportFrom():
                    bound |= {alias.asname or alias.name for alias in node.names}
                case _:
                    bound |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        public = {name for name in defined if not name.startswith("_")}
        wrong += [f"{name_of(path)}: {name} not in __all__" for name in sorted(public - listed)]
        wrong += [f"{name_of(path)}: no {name}" for name in sorted(listed - defined - bound)]
    assert not wrong, "\n".join(wrong)


def test_only_verify_makes_verified_vouchers() -> None:
    """VCH-03, F-14: what has the type VerifiedVoucher has passed the signature check."""

    def makes(node: ast.AST) -> bool:
        match node:
            case ast.Call(
                func=ast.Name(id="VerifiedVoucher") | ast.Attribute(attr="VerifiedVoucher")
            ):
                return True
            case ast.Call(args=arguments, keywords=keywords):
                given = [*arguments, *(keyword.value for keyword in keywords)]
                return any(isinstance(g, ast.Name) and g.id == "VerifiedVoucher" for g in given)
        return False

    found = [(path, node) for path in SOURCES for node in nodes(path) if makes(node)]
    assert {name_of(path) for path, _ in found} <= {"channel/verify/voucher.py"}, places(*found)


def test_only_the_configuration_reads_the_environment() -> None:
    """Every setting of the program is in one place."""

    def reads(node: ast.AST) -> bool:
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv"):
                return True
            case ast.ImportFrom(module="os", names=names):
                return any(alias.name in {"environ", "environb", "getenv"} for alias in names)
        return False

    found = [(path, node) for path in SOURCES for node in nodes(path) if reads(node)]
    assert {name_of(path) for path, _ in found} <= {"mpp_session/settings/config.py"}, places(
        *found
    )


def test_no_source_relies_on_assert() -> None:
    """`python -O` drops assertions; what guards money raises a typed error."""
    found = [(path, n) for path in SOURCES for n in nodes(path) if isinstance(n, ast.Assert)]
    assert not found, "\n".join(places(*found))


def test_sql_is_in_sql_files() -> None:
    """Queries have a name and a line of purpose in a `.sql` file; Python asks for them by name."""
    query = re.compile(
        r"\s*(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s.+\sSET|DELETE\s+FROM|CREATE\s+TABLE)\s",
        re.DOTALL,
    )
    found = [
        (path, node)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and query.match(node.value)
    ]
    assert not found, "\n".join(places(*found))


def test_the_layers_of_each_package_are_exhaustive() -> None:
    """A new module of a package fails the import contracts until it is given a layer."""
    linter: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]
    assert linter["root_packages"] == list(PACKAGES)
    exhaustive = [c for c in linter["contracts"] if c.get("exhaustive")]
    containers = {container for c in exhaustive for container in c["containers"]}
    assert containers == {*PACKAGES, "channel.client"}
    assert not [c["name"] for c in linter["contracts"] if c.get("ignore_imports")]


def test_no_import_lifts_the_recursion_limit() -> None:
    """F-02: nested brackets must meet Python's own limit before they overflow the C stack."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    program = f"""
import importlib, sys
limit = sys.getrecursionlimit()
for name in {[name.removesuffix(".__init__") for name in modules]}:
    importlib.import_module(name)
sys.exit(sys.getrecursionlimit() != limit)
"""
    done = subprocess.run(  # noqa: S603 - a fixed program
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
