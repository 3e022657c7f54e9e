"""Which client uses a channel: one at a time, for as long as it lives (F-41).

What is in flight is known to the client that sent it, so that no two may spend from one channel.
A claim is a lock on one byte of a file beside the purse. The system lets go of it when the
process ends, however it ends; so a restart goes on with the channels of the process before it.
"""

import fcntl
import os
import threading
from pathlib import Path

from channel.files import open_own
from channel.types import ChannelKey

__all__ = ["ChannelLocks"]

PLACE_BYTES = 7
"""Of a channel's id: its place in the file, which stays empty. Two of one place would only
keep each other waiting."""


class _LockFile:
    """Opened once in a process: closing any descriptor of it would let go of every lock."""

    def __init__(self, path: Path) -> None:
        self.descriptor = open_own(path)
        self.users = 0
        self.owners: dict[int, ChannelLocks] = {}


_guard = threading.Lock()
_files: dict[Path, _LockFile] = {}


class ChannelLocks:
    """The channels that one client uses. Opening and taking may raise `OSError`."""

    def __init__(self, path: Path) -> None:
        """Open the file of locks, or make it for its owner alone."""
        self._path = path.parent.resolve() / path.name
        with _guard:
            if self._path not in _files:
                _files[self._path] = _LockFile(self._path)
            self._file = _files[self._path]
            self._file.users += 1

    def take(self, key: ChannelKey) -> bool:
        """Claim a channel; False if another client, here or in another process, has it."""
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
        """Let go of everything, once."""
        with _guard:
            file = self._file
            for place in [place for place, owner in file.owners.items() if owner is self]:
                del file.owners[place]
                fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, place)
            file.users -= 1
            if not file.users:
                os.close(file.descriptor)
                del _files[self._path]
