"""Opening a client that pays, and what is refused before anything is opened."""

import json
from pathlib import Path

import httpx
import pytest
from eth_account import Account
from msgspec.structs import replace

from channel.client.policy.policy import Policy, TokenLimits
from channel.errors import ChainUnavailableError, ConfigError, StoreError
from channel.types import Address
from mpp_session.agent.client import PayingClient, load_keystore, open_client
from mpp_session.testing import TestChain

KEY = b"\x01" * 32
LIMITS = TokenLimits(
    chain_id=31337,
    token=Address(b"\x70" * 20),
    unit_price_max={"request": 1},
    deposit_max=1,
    budget=1,
)
POLICY = Policy(limits=(LIMITS,))

NOWHERE = "http://127.0.0.1:9"


async def test_a_client_is_an_httpx_client_with_payments(devnet: TestChain, tmp_path: Path) -> None:
    account = devnet.values.accounts["payer"]
    async with open_client(
        rpc_url=devnet.values.rpc_url,
        private_key=account.private_key,
        policy=POLICY,
        store=tmp_path / "store.db",
        base_url="https://api.example",
        timeout_s=7.0,
    ) as client:
        assert isinstance(client, PayingClient)
        assert isinstance(client, httpx.AsyncClient)
        assert client.base_url.host == "api.example"
        assert client.timeout.read == 7.0
        assert await client.payments.channels() == []
    assert (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600


async def test_a_node_of_another_chain_is_refused(devnet: TestChain, tmp_path: Path) -> None:
    """SEC-09: the policy's chain is the only one."""
    policy = Policy(limits=(replace(LIMITS, chain_id=1),))
    with pytest.raises(ConfigError, match="serves chain 31337"):
        async with open_client(
            rpc_url=devnet.values.rpc_url, private_key=KEY, policy=policy, store=tmp_path / "p.db"
        ):
            pytest.fail("opened")


async def test_a_store_that_cannot_be_opened_is_said(devnet: TestChain, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        async with open_client(
            rpc_url=devnet.values.rpc_url, private_key=KEY, policy=POLICY, store=tmp_path
        ):
            pytest.fail("opened")


@pytest.mark.parametrize("key", [b"short", "0xzz", "01" * 31, b"\xff" * 32])
async def test_what_is_no_key_is_refused_without_being_shown(
    key: bytes | str, tmp_path: Path
) -> None:
    """F-103."""
    with pytest.raises(ConfigError, match="private key") as caught:
        async with open_client(
            rpc_url=NOWHERE, private_key=key, policy=POLICY, store=tmp_path / "store.db"
        ):
            pytest.fail("opened")
    assert str(key) not in str(caught.value)


@pytest.mark.parametrize("limits", [(), (LIMITS, replace(LIMITS, chain_id=1))])
async def test_a_policy_names_one_chain(limits: tuple[TokenLimits, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one chain"):
        async with open_client(
            rpc_url=NOWHERE,
            private_key=KEY,
            policy=Policy(limits=limits),
            store=tmp_path / "store.db",
        ):
            pytest.fail("opened")


async def test_a_node_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ChainUnavailableError):
        async with open_client(
            rpc_url=NOWHERE, private_key=KEY, policy=POLICY, store=tmp_path / "store.db"
        ):
            pytest.fail("opened")


def keystore(path: Path) -> Path:
    path.write_text(json.dumps(Account.encrypt(KEY, "password", kdf="pbkdf2", iterations=10)))
    return path


async def test_a_key_comes_out_of_its_keystore(tmp_path: Path) -> None:
    assert await load_keystore(keystore(tmp_path / "key.json"), "password") == KEY


@pytest.mark.parametrize("content", ["", "{}", "[]", "no json"])
async def test_what_is_no_keystore_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not a keystore"):
        await load_keystore(path, "password")


async def test_a_wrong_password_is_refused_without_being_shown(tmp_path: Path) -> None:
    """F-103."""
    with pytest.raises(ConfigError, match="not a keystore that this password decrypts") as caught:
        await load_keystore(keystore(tmp_path / "key.json"), "guess")
    assert "guess" not in str(caught.value)


async def test_a_keystore_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        await load_keystore(tmp_path / "key.json", "password")
