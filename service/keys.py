"""The payee's key: from an encrypted keystore, or on a development chain from the environment."""

from pathlib import Path

import msgspec

from channel.errors import ConfigError
from service.settings import Payee
from settlement.accounts import Account, LocalAccount

__all__ = ["load_payee"]


def load_payee(settings: Payee) -> LocalAccount:
    """Return the account that settles and closes. Slow with a keystore, on purpose: use a thread.

    Raises:
        ConfigError: A file cannot be read, or the password or key is wrong. No message holds
            any part of either.
    """
    if settings.key is not None:
        return _from_hex(settings.key.reveal())
    if settings.keystore_file is None or settings.password_file is None:
        raise ConfigError("`payee` names no key")
    keystore = _read(settings.keystore_file, "payee.keystore_file")
    password = _read(settings.password_file, "payee.password_file").partition("\n")[0]
    try:
        private_key = Account.decrypt(msgspec.json.decode(keystore), password.rstrip("\r"))
    except (ValueError, TypeError, KeyError, NotImplementedError, msgspec.MsgspecError):
        raise ConfigError(
            "`payee.keystore_file` is no keystore that `payee.password_file` opens"
        ) from None
    account: LocalAccount = Account.from_key(private_key)
    return account


def _from_hex(text: str) -> LocalAccount:
    try:
        account: LocalAccount = Account.from_key(bytes.fromhex(text.removeprefix("0x")))
    except ValueError:
        raise ConfigError("`payee.key` is not 32 bytes in hexadecimal") from None
    return account


def _read(path: str, setting: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"`{setting}`: {path} cannot be read") from None
