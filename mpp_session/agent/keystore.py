"""Encrypted key files in the format of every Ethereum wallet.

eth_account reads and writes them. It is imported with the first key file, because importing it
takes longer than importing everything else.
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

    Its dependency py_ecc raises the process's recursion limit a hundredfold. On Python 3.11 a
    request body of nested brackets would then overflow the C stack and end the gateway (F-02), so
    the limit is restored before the next request is parsed.
    """
    limit = sys.getrecursionlimit()
    try:
        from eth_account import Account  # noqa: PLC0415 - lazy: see above
    finally:
        sys.setrecursionlimit(limit)
    return Account


def encrypt_keystore(private_key: bytes, password: str) -> bytes:
    """Return the content of a key file. Slow by design: use a thread."""
    return msgspec.json.encode(import_account().encrypt(private_key, password))


def decrypt_keystore(path: Path, password: str) -> bytes:
    """Return the key in a file. Slow by design: use a thread.

    Raises:
        ConfigError: The file cannot be read, or the password does not decrypt it.
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
        raise ConfigError(f"{path} is not a keystore that this password decrypts") from None


def read_password(path: Path) -> str:
    """Return the first line of a file, with any system's line end.

    Raises:
        ConfigError: The file cannot be read, or is not text.
    """
    try:
        content = read_regular(path, PASSWORD_BYTES_MAX)
        return content.decode("utf-8").partition("\n")[0].rstrip("\r")
    except OSError as error:
        raise ConfigError(f"the password file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the password file {path} is not text") from None
