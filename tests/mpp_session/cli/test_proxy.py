"""`mpp-session proxy` as a program: what it prints, whom it pays for, what it refuses."""

import asyncio
import re
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from mpp_session.testing import TestChain, TestProvider
from mpp_session.testing.provider import JOKE
from tests.e2e.warm import Forge
from tests.mpp_session.cli.conftest import Run, environment
from tests.waiting import until


@asynccontextmanager
async def running(forge: Forge, folder: Path, *flags: str) -> AsyncIterator[tuple[str, str]]:
    """Run the program, and yield its base URL and its token, as it printed them."""
    log = folder / "log"
    log.write_bytes(b"")
    process = forge.start(
        ["proxy", "--listen=127.0.0.1:0", *flags], environment({}), log, folder=folder
    )
    printed = re.compile(r"export OPENAI_BASE_URL=(\S+)/v1\nexport OPENAI_API_KEY=(mpp_\S+)\n")
    await until(lambda: bool(printed.search(log.read_text())) or process.returncode is not None)
    found = printed.search(log.read_text())
    assert found is not None, log.read_text()
    yield found[1], found[2]
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0, log.read_text()


@pytest.fixture
def folder(devnet: TestChain, tmp_path: Path) -> Path:
    """Where the program runs, with a devnet's file."""
    devnet.values.write(tmp_path / "devnet.json")
    return tmp_path


async def test_it_pays_for_a_program_that_has_its_token(
    forge: Forge, sponsoring_provider: TestProvider, folder: Path
) -> None:
    """The file keeps the token for the next start, readable by its owner alone."""
    server = sponsoring_provider.url
    flags = (f"--upstream=shop={server}", "--devnet=devnet.json", "--token-file=token")
    tokens = []
    for more in ((), ("--voucher-step=256",)):
        async with (
            running(forge, folder, *flags, *more) as (url, token),
            httpx.AsyncClient(base_url=url) as client,
        ):
            tokens.append(token)
            assert url.endswith("/shop")
            bearer = {"Authorization": f"Bearer {token}"}
            assert (await client.get("/joke", headers=bearer)).text == JOKE
            assert (await client.get("/joke")).status_code == 401
    assert tokens[0] == tokens[1] == (folder / "token").read_text().strip()
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    (channel,) = await asyncio.to_thread(sponsoring_provider.channels)
    assert channel.spent == 2 * 250


REFUSED = [
    (["--listen=0.0.0.0:8402"], "--any-address"),
    (["--listen=8402"], "expected HOST:PORT"),
    (["--listen=127.0.0.1:70000"], "expected HOST:PORT"),
    (["--upstream=https://b.example"], "two upstreams have one name"),
    (["--upstream-key-file=other=key"], "no --upstream has the name 'other'"),
    (["--upstream-key-file=open"], "chmod 600 open"),
    (["--upstream-key-file=none"], "none cannot be read"),
    (["--token-file=key"], "begins with mpp_"),
    (["--token-file=none/token"], "none/token cannot be made"),
    (["--wallet=unix:/x.sock", "--budget=1"], "leave out --devnet, --budget"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED)
def test_it_does_not_start(run: Run, folder: Path, flags: list[str], said: str) -> None:
    for name, mode in (("key", 0o600), ("open", 0o644)):
        (folder / name).write_text("sk-1\n")
        (folder / name).chmod(mode)
    done = run("proxy", "--upstream=https://a.example", "--devnet=devnet.json", *flags)
    assert done.returncode in (1, 2)
    assert said in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_wallet_is_named_by_its_address(run: Run) -> None:
    done = run("proxy", "--upstream=https://a.example", "--wallet=nonsense")
    assert done.returncode == 2
    assert "expected a wallet as unix:/path/wallet.sock" in " ".join(done.stderr.split())
