"""A wallet that cannot be safe does not start, and says what to change."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from channel.errors import ConfigError, StoreError
from mpp_session.cli.app import APP
from mpp_session.testing import TestChain
from mpp_session.wallet.server.agent_door import token_digest
from mpp_session.wallet.server.devnet_policy import AGENT, TOKEN_FILE, read_or_make_policy
from mpp_session.wallet.server.opening import WalletSettings, open_wallet
from mpp_session.wallet.server.sockets import listen_on_socket, make_home
from tests.mpp_session.wallet.server.process import OTHER_UID, WalletProcess


@pytest.fixture
def idle(chain: TestChain, tmp_path: Path) -> Iterator[WalletProcess]:
    """The files of a wallet that does not run."""
    with contextlib.closing(WalletProcess(chain, tmp_path)) as files:
        yield files


def settings(idle: WalletProcess) -> WalletSettings:
    return WalletSettings(
        policy=idle.policy,
        home=idle.home,
        rpc_urls=[idle.chain.values.rpc_url],
        private_key=idle.chain.account("payer").private_key,
    )


async def refused(found: WalletSettings, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        async with open_wallet(found):
            pytest.fail("opened")


async def test_a_policy_is_checked_against_files_and_chain(idle: WalletProcess) -> None:
    good = settings(idle)
    idle.write_policy(decimals=18)
    await refused(good, ConfigError, "expected 18 decimals as the policy says, found 6")
    idle.write_policy()
    await refused(replace(good, rpc_urls=[]), ConfigError, "one --rpc-url of each chain")
    text = idle.policy.read_text()
    address = "0x" + idle.chain.values.token.hex()
    escrow = "0x" + idle.chain.values.escrow.hex()
    named = f'decimals = 6\nescrows = [{{address = "{escrow}", code_hash = "0x{"00" * 32}"}}]'
    idle.policy.write_text(text.replace("decimals = 6", named))
    await refused(good, ConfigError, "expects another: do not deposit there")
    idle.policy.write_text(text.replace(address, escrow))
    await refused(good, ConfigError, "no token")
    idle.policy.write_text(text)
    idle.policy.chmod(0o644)
    await refused(good, ConfigError, "chmod 600")
    idle.policy.chmod(0o600)
    async with open_wallet(good) as wallet:
        assert set(wallet.running_agents) == set(idle.tokens)
        await refused(good, StoreError, "another wallet process")
    assert "private_key=..." in repr(good)


async def test_a_first_look_needs_a_devnet_alone(idle: WalletProcess) -> None:
    values = idle.chain.values
    made = await asyncio.to_thread(read_or_make_policy, idle.home, values)
    assert await asyncio.to_thread(read_or_make_policy, idle.home, values) == made
    token = (idle.home / TOKEN_FILE).read_text().strip()
    async with open_wallet(replace(settings(idle), policy=made)) as wallet:
        assert wallet.policy.agents[AGENT].token_digest == token_digest(token)
    assert {path.stat().st_mode & 0o777 for path in (made, idle.home / TOKEN_FILE)} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's directory needs root")
async def test_the_directory_is_the_wallets_own(idle: WalletProcess) -> None:
    idle.home.mkdir()
    os.chown(idle.home, OTHER_UID, -1)
    await refused(settings(idle), ConfigError, f"belongs to user {OTHER_UID}")


def test_files_and_flags_are_checked_first(idle: WalletProcess) -> None:
    def run(*flags: str) -> str:
        words = ["wallet", "run", "--policy", str(idle.policy), "--home", str(idle.home), *flags]
        return str(CliRunner().invoke(APP, words).exception)

    keystore = ["--rpc-url", "http://127.0.0.1:9", "--keystore", str(idle.keystore)]
    password = ["--password-file", str(idle.folder / "password")]
    assert "--rpc-url, --keystore, --password-file" in run()
    words = ["wallet", "run", "--home", str(idle.home)]
    assert "--policy" in str(CliRunner().invoke(APP, words).exception)
    assert "--password-file" in run(*keystore)
    assert "agents of other machines" in run(*keystore, *password, "--listen", "0.0.0.0:1")
    idle.keystore.chmod(0o640)
    assert "keystore" in run(*keystore, *password)
    (idle.folder / "password").chmod(0o604)
    assert "password file" in run(*keystore, *password)


def test_a_sockets_place_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shorter directory"):
        listen_on_socket(tmp_path / ("a" * 100) / "wallet.sock")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="something else"):
        make_home(tmp_path / "link", is_passed=False)
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "w").write_text("a file")
    with pytest.raises(ConfigError, match="not a socket"):
        listen_on_socket(folder / "w")
    (folder / "w").unlink()
    for _ in range(2):  # what an earlier run left does not stop the next one
        with listen_on_socket(folder / "w"):
            assert (folder / "w").stat().st_mode & 0o777 == 0o600
            assert folder.stat().st_mode & 0o777 == 0o700
