"""The secret behind the keys of channels, encrypted on disk (CLIENT-11).

One file in the format of Ethereum keystores, made at the first start. What it holds signs
vouchers and moves no deposit; without it the channels it signs for can still be left on chain.
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
    """Return the keys of channels; the file is made if missing, for its owner alone.

    Slow on purpose, in a thread, once a start.

    Raises:
        ConfigError: The password is empty or does not open the file, or the file can neither be
            read nor made.
    """
    return await asyncio.to_thread(_load, Path(path), password)


def _load(path: Path, password: str) -> ChannelKeys:
    if not password:
        raise ConfigError("the keys of channels need a password")
    if not path.exists():
        try:
            _create(path, password)
        except OSError as error:
            raise ConfigError(f"{path} cannot be made: {error.strerror}") from None
    return ChannelKeys(decrypt_keystore(path, password))


def _create(path: Path, password: str) -> None:
    """Write a new secret, whole and on disk before anything is signed with it, or not at all.

    Of two processes that start at once one makes the file, and both use that one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    keystore = encrypt_keystore(secrets.token_bytes(_SECRET_BYTES), password)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    unfinished = Path(name)  # for its owner alone, as its link will be
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
