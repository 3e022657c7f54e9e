"""`mpp-session withdraw`: the way out, as a command that may be run again."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpp_session.cli.app import APP
from mpp_session.errors import CommandError
from mpp_session.testing.chain import TestChain
from mpp_session.testing.payer import TestPayer
from mpp_session.testing.provider import TestProvider
from tests.mpp_session.cli.conftest import Run


@pytest.fixture
def devnet_file(devnet: TestChain, tmp_path: Path) -> Path:
    path = tmp_path / "devnet.json"
    devnet.values.write(path)
    return path


async def _buy(payer: TestPayer, provider: TestProvider) -> None:
    async with payer.client() as client:
        assert (await client.get(f"{provider.url}/joke")).status_code == 200


@pytest.fixture
async def store(payer: TestPayer, provider: TestProvider) -> Path:
    await _buy(payer, provider)
    return payer.store


def test_it_asks_then_takes_and_its_exit_code_says_which(
    run: Run, devnet: TestChain, devnet_file: Path, store: Path
) -> None:
    """CLOSE-08."""
    arguments = ("withdraw", "--all", "--devnet", str(devnet_file), "--store", str(store))
    asked = run(*arguments, "--no-wait", "--json")
    (channel,) = json.loads(asked.stdout)
    assert (asked.returncode, channel["stage"]) == (3, "waiting")
    devnet.advance(900)
    taken = run(*arguments)
    assert taken.returncode == 0
    assert f"{channel['channel_id']}: withdrawn" in taken.stderr
    assert run(*arguments).stdout == "no channels\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ids of channels or --all"),
        (["0x12", "--all"], "ids of channels or --all"),
        (["0x12", "--rpc-url", "http://127.0.0.1:1"], "no channel id"),
        (["--all"], "give --devnet, or also --rpc-url"),
    ],
)
def test_a_refusal_says_what_to_give(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(APP, ["withdraw", *arguments])
    assert isinstance(done.exception, CommandError)
    assert said in str(done.exception)


def test_a_store_that_is_not_there_is_not_made(run: Run, devnet_file: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.db"
    done = run("withdraw", "--all", "--devnet", str(devnet_file), "--store", str(missing))
    assert done.returncode == 2
    assert "no store" in done.stderr
    assert not missing.exists()
