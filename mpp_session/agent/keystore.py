"""Encrypted key files, as every Ethereum wallet writes them.

eth_account reads and writes them. It is imported when the first key file is: it takes longer to
import than everything else together.
"""

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from channel.errors import ConfigError
from channel.limits import KEYSTORE_BYTES_MAX, PASSWORD_BYTES_MAX
from settlement.files import read_regular

if TYPE_CHECKING:
    from eth_account import Account

__all__ = ["decrypt_keystore", "encrypt_keystore", "import_account", "read_password"]


@cache
def import_account() -> "type[Account]":
    """Import eth_account's `Account`.

    Its dependency py_ecc lifts the recursion limit of the process a hundredfold. On Python 3.11 a
    request body of nested brackets would then overflow the C stack and end the gateway (F-02), so
    the limit is put back before the next request is parsed.
    """
    limit = sys.getrecursionlimit()
    try:
        from eth_account import Account  # noqa: PLC0415 - lazy: see above
    finally:
        sys.setrecursionlimit(limit)
    return Account


def encrypt_keystore(private_key: bytes, password: str) -> bytes:
    """Return the content of a key file. Slow on purpose: use a thread."""
    return msgspec.json.encode(import_account().encrypt(private_key, password))


def decrypt_keystore(path: Path, password: str) -> bytes:
    """Return the key in a file. Slow on purpose: use a thread.

    Raises:
        ConfigError: The file cannot be read, or the password does not open it.
    """
    try:
        return bytes(
            import_account().decrypt(
                msgspec.json.decode(read_regular(path, KEYSTORE_BYTES_MAX)), password
            )
        )
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
        content = read_regular(path, PASSWORD_BYTES_MAX)
        return content.decode("utf-8").partition("\n")[0].rstrip("\r")
    except OSError as error:
        raise ConfigError(f"the password file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the password file {path} is no text") from None
