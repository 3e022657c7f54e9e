"""The secret from which channels' keys derive, encrypted on disk (CLIENT-11).

One file in the format of Ethereum keystores, created at the first start. Its keys sign vouchers and
move no deposit. Without the file, the payer can still withdraw from its channels on chain.
"""

import asyncio
import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from channel.client.funding.keys import ChannelKeys
from channel.errors import ConfigError
from mpp_session.agent.keystore import decrypt_keystore, encrypt_keystore

__all__ = ["load_channel_keys"]

_SECRET_BYTES: Final = 32


async def load_channel_keys(path: Path | str, password: str) -> ChannelKeys:
    """Return the channels' keys; create the file if missing, readable by its owner only.

    Slow by design; runs in a thread, once a start.

    Raises:
        ConfigError: The password is empty or does not decrypt the file, or the file can neither be
            read nor created.
    """
    return await asyncio.to_thread(_load, Path(path), password)


def _load(path: Path, password: str) -> ChannelKeys:
    if not password:
        raise ConfigError("the file of channel keys needs a password, and it is empty")
    if not path.exists():
        try:
            _create(path, password)
        except OSError as error:
            raise ConfigError(f"{path} cannot be created: {error.strerror}") from None
    return ChannelKeys(decrypt_keystore(path, password))


def _create(path: Path, password: str) -> None:
    """Write a new secret durably and atomically, before anything is signed with it.

    If two processes start together, one creates the file and both use it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    keystore = encrypt_keystore(secrets.token_bytes(_SECRET_BYTES), password)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    unfinished = Path(name)  # readable by its owner only, and so is its link
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(keystore)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(unfinished)
    finally:
        unfinished.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
