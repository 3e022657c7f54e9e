"""Help appears fast: a command imports its work when it runs (O-65)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mpp_session.cli.conftest import environment
from tests.mpp_session.cli.test_app import COMMANDS, GROUPED

OURS = {
    "channel": {"channel.errors", "channel.limits"},
    "settlement": set[str](),
    "mpp_session": {
        "mpp_session.errors",
        "mpp_session.process",
        "mpp_session.process.os_limits",
        "mpp_session.process.relay",
    },
}
"""What of our packages `--help` may import, beside the commands themselves."""
BARE = """
from pathlib import Path
from typing import Annotated
import typer
APP = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
@APP.command()
def bare(
    path: Annotated[Path | None, typer.Option(help="A path.")] = None,
    number: Annotated[int, typer.Option(help="A number.")] = 1,
    flag: Annotated[bool, typer.Option("--flag", help="A flag.")] = False,
) -> None:
    "Do nothing."
@APP.command()
def other() -> None:
    "Do nothing else."
APP(prog_name="mpp-session")
"""
"""The least program that typer shows the help of: what it imports is typer's own affair."""

OURS_WHOLE = "from mpp_session.cli.app import main; main()"
AROUND = """
import json, sys
source = sys.argv.pop(1)
try:
    exec(source)
finally:
    print()
    print(json.dumps(sorted(sys.modules)))
"""


def modules_of(program: str, arguments: list[str], folder: Path) -> list[str]:
    """What a program has imported by the time it ends."""
    shown = subprocess.run(  # noqa: S603 -- ours
        [sys.executable, "-c", AROUND, program, *arguments],
        cwd=folder,
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: mpp-session" in shown.stdout
    found: list[str] = json.loads(shown.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["", "pay", "gateway", "ledger check"])
def test_help_imports_no_commands_work(name: str, tmp_path: Path) -> None:
    """O-65: no web3, no HTTP, no database, no rich, and of our packages next to nothing."""
    assert not name or name in (*COMMANDS, *GROUPED)
    loaded = modules_of(OURS_WHOLE, [*name.split(), "--help"], tmp_path)
    typers = modules_of(BARE, ["bare", "--help"] if name else ["--help"], tmp_path)
    roots, known = ({module.partition(".")[0] for module in each} for each in (loaded, typers))
    assert roots - known - sys.stdlib_module_names == {"channel", "mpp_session"}
    assert "msgspec" not in roots
    assert not {"asyncio", "web3", "aiohttp", "httpx", "rich"} & (roots - known)
    for package, allowed in OURS.items():
        ours = {
            module
            for module in loaded
            if module.startswith(f"{package}.") and not module.startswith("mpp_session.cli")
        }
        assert ours <= allowed
