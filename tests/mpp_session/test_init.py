"""O-55: the public names: one list, each of them there, none imported before it is used."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mpp_session

SOURCE = Path(mpp_session.__file__).read_text()
HOMES = mpp_session._HOMES  # noqa: SLF001 -- the one list
HEAVY = ("aiohttp", "asyncpg", "channel", "httpx", "settlement", "starlette", "web3")


@pytest.mark.parametrize("name", mpp_session.__all__)
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    value = getattr(mpp_session, name)
    assert (value.__name__, value.__module__) == (name, HOMES[name])


def test_type_checkers_see_the_same_names() -> None:
    checked = {
        alias.name: node.module
        for block in ast.parse(SOURCE).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == HOMES


def test_importing_the_package_imports_nothing_else() -> None:
    """The pytest plugin is a part of it, and every run of pytest would pay."""
    script = "import sys, mpp_session, mpp_session.testing; print(*sys.modules)"
    loaded = subprocess.run(  # noqa: S603 -- a fixed script
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in HEAVY if name in loaded] == []


def test_it_says_its_version() -> None:
    assert mpp_session.__version__ == version("mpp-session")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        mpp_session.Unknown  # noqa: B018 -- the look is what fails
