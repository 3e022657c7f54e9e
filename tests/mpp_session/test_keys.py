"""The payee's key comes from a keystore, or is refused without telling anything of it."""

import json
from pathlib import Path

import pytest
from eth_account import Account

from channel.errors import ConfigError
from channel.types import address
from mpp_session.keys import load_signer
from mpp_session.settings import Payee, Relayer, Secret

KEY = "0x" + "11" * 32
ADDRESS = Account.from_key(KEY).address
OWNER = address(bytes.fromhex(ADDRESS[2:]))
PASSWORD = "correct horse"  # noqa: S105 -- a test's


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "payee.json"
    path.write_text(
        json.dumps(Account.encrypt(bytes.fromhex(KEY[2:]), PASSWORD, kdf="pbkdf2", iterations=10))
    )
    return path


def settings(keystore: Path, password: Path) -> Payee:
    return Payee(address=ADDRESS, keystore_file=str(keystore), password_file=str(password))


def test_a_keystore_is_opened_with_the_first_line_of_the_password_file(
    keystore: Path, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\r\nnot this\n")
    assert load_signer(settings(keystore, password)).address == OWNER


def test_a_bare_key_is_taken_with_and_without_prefix() -> None:
    for text in (KEY, KEY[2:]):
        assert load_signer(Payee(address=ADDRESS, key=Secret(text))).address == OWNER


def test_a_wrong_password_is_one_line_without_the_password(keystore: Path, tmp_path: Path) -> None:
    """F-103: no secret in an error."""
    password = tmp_path / "password"
    password.write_text("battery staple\n")
    with pytest.raises(ConfigError, match="password_file") as caught:
        load_signer(settings(keystore, password))
    assert "battery" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 3}', '{"version": 9}', "{"])
def test_what_is_no_keystore_is_refused(content: str, tmp_path: Path) -> None:
    broken, password = tmp_path / "key.json", tmp_path / "password"
    broken.write_text(content)
    password.write_text(PASSWORD)
    with pytest.raises(ConfigError, match="keystore"):
        load_signer(settings(broken, password))


def test_a_missing_file_is_named(keystore: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"password_file.*cannot be read"):
        load_signer(settings(keystore, tmp_path / "none"))


@pytest.mark.parametrize("text", ["", "0x", "zz", "11" * 31, "00" * 32])
def test_a_malformed_key_is_refused_and_not_shown(text: str) -> None:
    """F-103: not even a wrong one, which may be right but for a slip."""
    with pytest.raises(ConfigError) as caught:
        load_signer(Payee(address=ADDRESS, key=Secret(text)))
    assert "11" not in str(caught.value)


def test_a_key_of_another_account_is_refused() -> None:
    """F-81, decision 15: every settle would revert."""
    with pytest.raises(ConfigError, match=r"The key is .* `payee.address` is"):
        load_signer(Payee(address="0x" + "22" * 20, key=Secret(KEY)))


def test_a_signing_service_stands_in_for_a_key() -> None:
    signer = load_signer(Payee(address=ADDRESS, signer_url="https://signer.example/sign"))
    assert signer.address == OWNER


def test_a_relayer_without_an_address_is_none() -> None:
    with pytest.raises(ConfigError, match=r"relayer\.address"):
        load_signer(Relayer())
