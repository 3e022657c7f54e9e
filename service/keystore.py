"""Encrypted key files, as every Ethereum wallet writes them."""

from pathlib import Path

import msgspec

from channel.errors import ConfigError
from settlement.accounts import Account

__all__ = ["decrypt_keystore", "read_password"]


def decrypt_keystore(path: Path, password: str) -> bytes:
    """Return the key in a file. Slow on purpose: use a thread.

    Raises:
        ConfigError: The file cannot be read, or the password does not open it.
    """
    try:
        return bytes(Account.decrypt(msgspec.json.decode(path.read_bytes()), password))
    except OSError as error:
        raise ConfigError(f"the keystore {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, NotImplementedError, msgspec.MsgspecError):
        raise ConfigError(f"{path} is no keystore that this password opens") from None


def read_password(path: Path) -> str:
    """Return the first line of a file, whichever system wrote it.

    Raises:
        ConfigError: It cannot be read, or is no text.
    """
    try:
        return path.read_text("utf-8").partition("\n")[0].rstrip("\r")
    except OSError as error:
        raise ConfigError(f"the password file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the password file {path} is no text") from None
