"""What leaves the repository: wheel, sdist, release, and the names under which the scripts run."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import release_run
import wheel_build
from release_run import ReleaseError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return wheel_build.build(ROOT, tmp_path_factory.mktemp("dist"))


def test_wheel_and_sdist_have_every_module_query_and_artifact(built: tuple[Path, Path]) -> None:
    """What runs in a checkout runs where only the wheel is; the wheel has nothing else."""
    assert wheel_build.find_faults(built, ROOT) == []
    wheel = wheel_build.names_in(built[0])
    assert {f"{package}/py.typed" for package in wheel_build.PACKAGES} <= wheel
    assert "channel/ledger/sql/sqlite/queries.sql" in wheel
    assert "settlement/artifacts/SessionEscrow.json" in wheel
    assert {name.partition("/")[0] for name in wheel if ".dist-info/" not in name} == {
        *wheel_build.PACKAGES
    }


def test_a_wheel_that_lacks_a_file_or_has_one_too_many_is_refused(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    """Against a tree with a query more and a module less, both archives are at fault."""
    (tmp_path / "channel").mkdir()
    (tmp_path / "channel" / "new.sql").touch()
    faults = wheel_build.find_faults(built, tmp_path)
    wheel, sdist = (path.name for path in built)
    assert f"{wheel} lacks channel/new.sql" in faults
    assert f"{sdist} lacks channel/new.sql" in faults
    assert f"{wheel} has channel/errors.py, which is in no package" in faults


def programs() -> set[str]:
    """What a person starts: modules of the scripts have an ending."""
    return {
        path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix
    }


def test_the_makefile_names_every_script() -> None:
    """`make NAME` runs scripts/NAME."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (commands,) = re.findall(r"(?m)^commands := (.*)$", text)
    assert commands.split() == sorted(programs())


def test_the_page_for_contributors_names_every_script() -> None:
    text = (ROOT / "docs" / "engineering" / "contributing.md").read_text()
    assert {name for name in programs() if f"`scripts/{name}" not in text} == set()


def test_the_page_for_contributors_has_the_layers_and_names_files_that_exist() -> None:
    """Its layers are those that import-linter checks, in their order."""
    text = (ROOT / "docs" / "engineering" / "contributing.md").read_text()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    stated = {
        name: [re.findall(r"`(\w+)`", layer) for layer in layers.split(" > ")]
        for name, layers in re.findall(r"(?m)^\| `([\w.]+)` \| (`.*>.*`) \|$", text)
    }
    checked = {
        contract["containers"][0]: [re.findall(r"\w+", layer) for layer in contract["layers"]]
        for contract in contracts["contracts"]
        if contract["type"] == "layers" and "containers" in contract
    }
    assert stated == checked
    files = re.findall(r"`((?:channel|settlement|mpp_session|tests)/[\w/.]+)`", text)
    made = "node_modules"  # by the set-up, when a test needs it
    assert [name for name in files if not (ROOT / name).exists() and made not in name] == []


def test_ci_runs_the_tests_on_every_python_that_users_may_have() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (matrix,) = re.findall(r"(?m)^ +python: \[(.*)\]$", text)
    stated = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert [each.strip('" ') for each in matrix.split(",")] == stated
    assert "      - run: scripts/test\n" in text


# -- a release


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n- More.\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "begin")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    person = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *person, *arguments], cwd=folder, check=True)  # noqa: S603, S607


def test_a_clean_commit_of_main_can_be_released(checkout: Path) -> None:
    release_run.require_releasable(checkout, "0.2.0")


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "0.2.0-rc1", "0.2.0; rm"])
def test_what_is_no_version_is_not_released(checkout: Path, version: str) -> None:
    with pytest.raises(ReleaseError, match="is no version"):
        release_run.require_releasable(checkout, version)


def test_a_release_is_made_of_committed_files_alone(checkout: Path) -> None:
    (checkout / "new.py").touch()
    with pytest.raises(ReleaseError, match="not clean"):
        release_run.require_releasable(checkout, "0.2.0")


def test_a_release_is_made_from_main(checkout: Path) -> None:
    git(checkout, "switch", "--quiet", "--create", "other")
    with pytest.raises(ReleaseError, match="from main"):
        release_run.require_releasable(checkout, "0.2.0")


def test_a_version_is_released_once(checkout: Path) -> None:
    git(checkout, "tag", "v0.2.0")
    with pytest.raises(ReleaseError, match="exists"):
        release_run.require_releasable(checkout, "0.2.0")


def test_a_tag_is_on_one_commit_with_the_version_and_the_dated_changelog(checkout: Path) -> None:
    """And nothing is pushed: the clone's origin has neither."""
    (checkout / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
    (checkout / ".gitignore").write_text("dist/\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "name the version")
    copy = checkout.parent / "copy"
    git(checkout, "clone", "--quiet", str(checkout), str(copy))
    git(copy, "config", "user.name", "A")
    git(copy, "config", "user.email", "a@example.com")
    wheel = checkout.parent / "a.whl"
    wheel.touch()
    release_run.tag_release(copy, "0.2.0", (wheel,))
    assert release_run.git(copy, "log", "--format=%s", "v0.2.0").splitlines() == [
        "release: 0.2.0",
        "name the version",
        "begin",
    ]
    assert release_run.git(copy, "cat-file", "-t", "v0.2.0") == "tag"
    assert release_run.git(copy, "status", "--porcelain") == ""
    assert 'version = "0.2.0"' in (copy / "pyproject.toml").read_text()
    assert "## [0.2.0] - 20" in (copy / "CHANGELOG.md").read_text()
    assert (copy / "dist" / "a.whl").exists()
    assert release_run.git(checkout, "tag") == ""
    assert release_run.git(checkout, "log", "-1", "--format=%s") == "name the version"


def test_the_changelog_is_dated_and_begins_anew() -> None:
    text = "# Changelog\n\n## [Unreleased]\n\n- More.\n\n## [0.1.0] - 2026-01-01\n\n- All.\n"
    dated = release_run.date_changelog(text, "0.2.0", "2026-02-03")
    assert dated == (
        "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-02-03\n\n- More.\n"
        "\n## [0.1.0] - 2026-01-01\n\n- All.\n"
    )
    with pytest.raises(ReleaseError, match="says nothing"):
        release_run.date_changelog(dated, "0.3.0", "2026-03-04")
    with pytest.raises(ReleaseError, match="has a section"):
        release_run.date_changelog(text, "0.1.0", "2026-03-04")


def test_the_version_is_written_once() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'version = "9.8.7"' in release_run.set_version(text, "9.8.7").splitlines()
    with pytest.raises(ReleaseError, match="0 versions"):
        release_run.set_version("", "9.8.7")
