"""Loads signers: an encrypted keystore, a signing service, or a bare development key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from channel.errors import ConfigError
from channel.types import Address
from mpp_session.agent.keystore import decrypt_keystore, read_password
from mpp_session.settings import Payee, Relayer, parse_address
from settlement.tx.signer import KeySigner, RemoteSigner, Signer

__all__ = ["load_signer", "open_signer"]


@asynccontextmanager
async def open_signer(settings: Payee | Relayer) -> AsyncIterator[Signer]:
    """Yield an account's signer; close its connection at the end.

    Raises:
        ConfigError: See `load_signer`.
    """
    signer = await asyncio.to_thread(load_signer, settings)
    try:
        yield signer
    finally:
        if isinstance(signer, RemoteSigner):
            await signer.close()


def load_signer(settings: Payee | Relayer) -> Signer:
    """Return an account's signer. Slow with a keystore, by design: use a thread.

    Raises:
        ConfigError: A file cannot be read, the password or key is wrong, or the key belongs to
            another address. No message contains any part of a password or key.
    """
    name = type(settings).__name__.lower()
    if settings.address is None:
        raise ConfigError(f"`{name}.address` is missing")
    expected = parse_address(settings.address)
    if settings.signer_url is not None:
        token = settings.signer_token
        return RemoteSigner(
            settings.signer_url, expected, token=None if token is None else token.reveal()
        )
    signer = KeySigner(_load_key(settings, name))
    _require_address(signer.address, expected, name)
    return signer


def _load_key(settings: Payee | Relayer, name: str) -> bytes:
    if settings.key is not None:
        return _from_hex(settings.key.reveal(), name)
    if settings.keystore_file is None or settings.password_file is None:
        raise ConfigError(f"`{name}` names no key: the settler cannot sign without one")
    try:
        password = read_password(Path(settings.password_file))
    except ConfigError as error:
        raise ConfigError(f"`{name}.password_file`: {error}") from None
    try:
        return decrypt_keystore(Path(settings.keystore_file), password)
    except ConfigError as error:
        raise ConfigError(f"`{name}.keystore_file`: {error} (`{name}.password_file`)") from None


def _from_hex(text: str, name: str) -> bytes:
    try:
        key = bytes.fromhex(text.removeprefix("0x"))
        KeySigner(key)
    except (ValueError, ConfigError):
        raise ConfigError(f"`{name}.key` is not 32 bytes in hexadecimal") from None
    return key


def _require_address(actual: Address, expected: Address, name: str) -> None:
    """Refuse another account's key: every settle would revert (F-81, decision 15)."""
    if actual != expected:
        raise ConfigError(f"The key is 0x{actual.hex()}'s, `{name}.address` is 0x{expected.hex()}.")
