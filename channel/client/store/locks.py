"""Locks channels: one client at a time uses a channel, for as long as it runs (F-41).

Only the client that sent a request knows what is in flight, so no two may spend from one channel.
A lock covers one byte of a file beside the store. The system releases it when the process ends, in
any way; so after a restart the next process continues with the same channels.
"""

import fcntl
import os
import threading
from pathlib import Path

from channel.files import open_own
from channel.types import ChannelKey

__all__ = ["ChannelLocks"]

PLACE_BYTES = 7
"""The bytes of a channel's id that choose its position in the file, which stays empty. Two channels
with the same position would only wait for each other."""


class _LockFile:
    """Opened once per process, because closing any descriptor of it releases every lock."""

    def __init__(self, path: Path) -> None:
        self.descriptor = open_own(path)
        self.users = 0
        self.owners: dict[int, ChannelLocks] = {}


_guard = threading.Lock()
_files: dict[Path, _LockFile] = {}


class ChannelLocks:
    """The channels that one client uses. Opening and locking may raise `OSError`."""

    def __init__(self, path: Path) -> None:
        """Open the lock file, or create it for its owner alone."""
        self._path = path.parent.resolve() / path.name
        with _guard:
            if self._path not in _files:
                _files[self._path] = _LockFile(self._path)
            self._file = _files[self._path]
            self._file.users += 1

    def take(self, key: ChannelKey) -> bool:
        """Lock a channel; False if another client, in this or another process, has it."""
        place = int.from_bytes(key.channel_id[:PLACE_BYTES])
        with _guard:
            owner = self._file.owners.get(place)
            if owner is None:
                try:
                    fcntl.lockf(self._file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                except (BlockingIOError, PermissionError):
                    return False
                self._file.owners[place] = owner = self
            return owner is self

    def close(self) -> None:
        """Release every lock, once."""
        with _guard:
            file = self._file
            for place in [place for place, owner in file.owners.items() if owner is self]:
                del file.owners[place]
                fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, place)
            file.users -= 1
            if not file.users:
                os.close(file.descriptor)
                del _files[self._path]
