"""The secret of channels' keys: made once, encrypted, the owner's alone."""

import asyncio
import json
from pathlib import Path

import pytest
from eth_account import Account

from channel.client.funding.keys import ChannelKeys
from channel.errors import ConfigError
from mpp_session.agent.voucher_keys import load_channel_keys

SALT = b"\x01" * 32
SECRET = b"\x05" * 32


async def test_the_secret_is_made_once_and_is_never_plain(tmp_path: Path) -> None:
    """CLIENT-11, F-103: a keystore as Ethereum wallets write it; two calls make one file."""
    path = tmp_path / "agent" / "voucher-keys.json"
    first, second = await asyncio.gather(
        load_channel_keys(path, "open"), load_channel_keys(path, "open")
    )
    assert first.signer(SALT).address == second.signer(SALT).address
    keystore = json.loads(path.read_text())
    assert keystore["crypto"]["kdf"] == "scrypt"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


async def test_the_secret_is_the_files(tmp_path: Path) -> None:
    path = keystore(tmp_path)
    keys = await load_channel_keys(path, "open")
    assert keys.signer(SALT).address == ChannelKeys(SECRET).signer(SALT).address


async def test_a_wrong_password_or_file_is_refused(tmp_path: Path) -> None:
    path = keystore(tmp_path)
    with pytest.raises(ConfigError, match="not a keystore that this password decrypts"):
        await load_channel_keys(path, "wrong")
    with pytest.raises(ConfigError, match="needs a password"):
        await load_channel_keys(path, "")
    path.write_text("{}")
    with pytest.raises(ConfigError, match="not a keystore"):
        await load_channel_keys(path, "open")


async def test_a_place_where_nothing_can_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be created"):
        await load_channel_keys(keystore(tmp_path) / "below", "open")


def keystore(folder: Path) -> Path:
    """A file that opens fast."""
    path = folder / "keys.json"
    encrypted = Account.encrypt(SECRET, "open", kdf="pbkdf2", iterations=10)
    path.write_text(json.dumps(encrypted))
    return path
