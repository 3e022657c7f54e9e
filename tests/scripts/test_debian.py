"""Programs of Debian for tests: fetched without root, or missing with a reason."""

import subprocess
from pathlib import Path

import pytest

import debian
from debian import find_program


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look anew, in a cache that holds nothing yet."""

    def cache(name: str) -> Path:
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    find_program.cache_clear()
    monkeypatch.setattr(debian, "cache", cache)


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the whole PATH, and return it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def make_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_program_on_path_is_used_first(only: Path) -> None:
    make_script(only / "nginx", "exit 0")
    assert find_program("nginx").path == only / "nginx"


@pytest.mark.usefixtures("only")
def test_a_system_without_apt_gets_a_reason() -> None:
    assert find_program("nginx") == (
        None,
        "nginx is not on PATH, and this system has no apt to fetch it with",
    )


def test_apt_s_own_error_is_the_reason(only: Path) -> None:
    make_script(only / "dpkg", "exit 0")
    make_script(only / "apt-get", "echo 'E: Unable to locate package nginx' >&2; exit 100")
    path, reason = find_program("nginx")
    assert path is None
    assert reason.endswith("cannot be fetched: Unable to locate package nginx")


def test_a_fetched_package_brings_the_libraries_it_needs_and_starts(only: Path) -> None:
    """Of the packages that apt would install, the libraries are fetched and fonts are not."""
    plan = "printf 'Inst libone (1)\\nInst fonts-two (1)\\nInst libc6 (1)\\nInst nginx (1)\\n'"
    make_script(
        only / "apt-get",
        f'case "$*" in *--simulate*) {plan};; *) shift; for p; do echo > "$p.deb"; done;; esac',
    )
    make_script(
        only / "dpkg",
        "/bin/mkdir -p $3/usr/sbin $3/usr/lib/deep\n"
        'case "$2" in\n'
        "*nginx.deb) printf '#!/bin/sh\\necho $LD_LIBRARY_PATH $1' > $3/usr/sbin/nginx;"
        "  /bin/chmod +x $3/usr/sbin/nginx;;\n"
        "*libone.deb) echo > $3/usr/lib/deep/libone.so.1;;\n"
        "*) exit 1;;\nesac",
    )
    path, reason = find_program("nginx")
    assert path is not None, reason
    said = subprocess.run(  # noqa: S603 - the script above
        [path, "-v"], capture_output=True, text=True, check=True
    ).stdout
    libraries, argument = said.split()
    assert libraries.endswith("debian/nginx/usr/lib/deep")
    assert argument == "-v"
    find_program.cache_clear()
    make_script(only / "apt-get", "exit 1")
    assert find_program("nginx").path == path, "it is fetched once"
