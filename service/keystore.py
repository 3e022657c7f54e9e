"""Encrypted key files, as every Ethereum wallet writes them."""

from pathlib import Path

import msgspec

from channel.errors import ConfigError
from settlement.accounts import Account

__all__ = ["decrypt_keystore"]


def decrypt_keystore(path: Path, password: str) -> bytes:
    """Return the key in a file. Slow on purpose: use a thread.

    Raises:
        ConfigError: The file cannot be read, or the password does not open it.
    """
    try:
        return bytes(Account.decrypt(msgspec.json.decode(path.read_bytes()), password))
    except OSError:
        raise ConfigError(f"the keystore {path} cannot be read") from None
    except (ValueError, TypeError, KeyError, NotImplementedError, msgspec.MsgspecError):
        raise ConfigError(f"{path} is no keystore that this password opens") from None
