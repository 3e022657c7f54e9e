"""Opens files safely where another user may have put something else (O-31, O-84).

A path may name a pipe without a writer, an endless device, or a link to either. Where other users
can create files in the same directory, one of them could replace the file by a link, so that the
process writes to the link's target, or create the file first and then read or change its content.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["create_own", "open_own", "open_regular", "require_own", "write_new"]

_BESIDE: Final = ("", "-wal", "-shm", "-journal")
"""The suffixes of the files that SQLite creates for a database."""
_LINK: Final = "is a symbolic link; name the file itself"


def open_regular(path: Path | str, flags: int, *, follows: bool = False) -> int:
    """Open a regular file and return its descriptor. A file that this creates has mode 0600.

    Raises:
        OSError: It cannot be opened, or is not a regular file, or is a link without `follows`.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follows else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(path, _LINK) from None
        raise
    try:
        _require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_own(path: Path | str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a file that belongs to this user alone, and return its descriptor.

    A file that this creates has mode 0600.

    Raises:
        OSError: It is a link, not a regular file, another user's, or open to every user.
    """
    descriptor = open_regular(path, flags)
    try:
        _require_own(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_own(path: Path | str) -> None:
    """Create a database file for its owner alone if it is missing, and check its companions.

    SQLite opens the same names after that, and creates its own files with the same mode. This
    opens no existing file: closing it would release this process's locks on it.

    Raises:
        OSError: As for `open_own`, for the file or for its log.
    """
    for suffix in _BESIDE:
        require_own(f"{path}{suffix}")
    with contextlib.suppress(FileExistsError):
        os.close(open_own(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))


def require_own(path: Path | str) -> None:
    """Check a file that may not exist.

    Raises:
        OSError: As for `open_own`.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise _refused(path, _LINK)
    _require_regular(path, found)
    _require_own(path, found)


def _require_regular(path: Path | str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, "is not a regular file; name a regular file")


def _require_own(path: Path | str, found: os.stat_result) -> None:
    user = os.geteuid()
    if found.st_uid not in (user, 0) and user != 0:
        raise _refused(
            path,
            f"belongs to user {found.st_uid}, and this process runs as {user}; change its owner",
        )
    if found.st_mode & stat.S_IWOTH:
        raise _refused(path, "can be written by every user of this machine; chmod it to 600")
    if found.st_nlink > 1:
        raise _refused(path, "has a second hard link; keep one of them")


def _refused(path: Path | str, reason: str) -> OSError:
    return PermissionError(errno.EPERM, f"the file {reason}", str(path))


def write_new(path: Path | str, content: bytes) -> None:
    """Write a new file of mode 0600 that is on disk when this returns; nothing is written over.

    Raises:
        OSError: It exists, or cannot be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
