"""Ensures that one payee has one ledger on this machine, by locks that end with their process.

A directory that all users share holds one file for each ledger of a payee. A process that serves
with a ledger locks its file: shared where the ledger allows several processes, else exclusive. A
new process first checks whether the file of another ledger of the same payee is locked. During that
check it holds a third lock, so that two processes that start together see each other.

The files are empty, so they hold nothing stale or forged. A file that another user owns is good
enough, as long as it can be locked.
"""

import asyncio
import fcntl
import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from channel.errors import ConfigError
from channel.limits import LEDGER_BUSY_S

__all__ = ["MachineLock"]

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- see the files
_SHARED: Final = _MEMORY if _MEMORY.is_dir() else Path("/tmp")  # noqa: S108 -- a container may lack it
_TRY_S: Final = 0.02


class MachineLock:
    """Locks one payee on this machine for one ledger."""

    def __init__(self, payee: str, place: str, *, is_shared: bool, folder: Path = _SHARED) -> None:
        """Lock `payee`, spelled as part of a file name, for the ledger at `place`.

        Several processes may serve with the same ledger if `is_shared`.
        """
        self._folder = folder
        self._stem = f"mpp-session-{payee}"
        ledger = hashlib.sha256(place.encode()).hexdigest()[:16]
        self._own = folder / f"{self._stem}-{ledger}.lock"
        self._is_shared = is_shared
        self._descriptor = -1

    async def acquire(self) -> None:
        """Take the lock, or refuse.

        Raises:
            ConfigError: Another process on this machine serves the payee with another ledger, or
                with this one where only one may; or the lock file cannot be created.
        """
        await asyncio.to_thread(self._acquire)

    async def release(self) -> None:
        """Release the lock, and remove its file if no other process has it locked."""
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError, ConfigError):
                gate = self._enter()
                try:
                    _remove_if_free(self._own, self._descriptor)
                finally:
                    os.close(gate)
            os.close(self._descriptor)
            self._descriptor = -1

    def _acquire(self) -> None:
        gate = self._enter()
        try:
            for path in self._folder.glob(f"{self._stem}-*.lock"):
                if path != self._own:
                    _require_free(path)
            descriptor = _open(self._own)
            how = fcntl.LOCK_SH if self._is_shared else fcntl.LOCK_EX
            if not _try_lock(descriptor, how):
                os.close(descriptor)
                raise ConfigError(
                    "another process on this machine serves this payee with the same ledger; "
                    "several processes need postgresql://"
                )
            self._descriptor = descriptor
        finally:
            os.close(gate)

    def _enter(self) -> int:
        gate = _open(self._folder / f"{self._stem}.lock")
        until = time.monotonic() + LEDGER_BUSY_S
        while not _try_lock(gate, fcntl.LOCK_EX):
            if time.monotonic() > until:
                os.close(gate)
                raise ConfigError(
                    f"{self._folder / self._stem}.lock is locked for {LEDGER_BUSY_S:.0f} s: find "
                    "the process that holds it (`lslocks`), and end it"
                )
            time.sleep(_TRY_S)
        return gate


def _open(path: Path) -> int:
    """Open a lock file, creating it if it is missing. Read-only: another user may own it."""
    for _ in range(10):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(path, flags, 0o644)
                os.fchmod(descriptor, 0o644)  # despite the umask: other users lock it too
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(
                    f"the lock {path} cannot be created ({error.strerror}): make {path.parent} a "
                    "directory that every user may write to and that all programs here share"
                ) from error
        except OSError as error:
            raise ConfigError(
                f"the lock {path} cannot be opened ({error.strerror}): another user or program "
                "has put something in its place; remove it"
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(f"the lock {path} is not a regular file: remove it")
        return descriptor
    raise ConfigError(f"the lock {path} appears and disappears: try again")


def _require_free(path: Path) -> None:
    """Refuse while another ledger's lock is held; remove its file when the process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # not made by a process that serves: all users can read those
        return
    try:
        if not _remove_if_free(path, descriptor):
            raise ConfigError(
                "another process on this machine serves this payee with another ledger: the same "
                "voucher would pay twice. Use one ledger for each payee address: give this one its "
                f"own payee, or the same `ledger.url` on PostgreSQL (locked: {path})"
            )
    finally:
        os.close(descriptor)


def _remove_if_free(path: Path, descriptor: int) -> bool:
    if not _try_lock(descriptor, fcntl.LOCK_EX):
        return False
    with suppress(OSError):  # another user's file in a shared directory stays
        path.unlink()
    return True


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
