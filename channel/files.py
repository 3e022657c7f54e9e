"""Files that another may have put where we look: opened as what they should be (O-31, O-84).

A name may stand for a pipe that nobody writes to, a device without an end, or a link to either.
Where others may make files beside ours, one of them could put a link in our file's place and have
us write where it points, or make the file first and read, or change, what we keep in it.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["create_own", "open_own", "open_regular", "require_own"]

_BESIDE: Final = ("", "-wal", "-shm", "-journal")
"""What SQLite makes of a database's name."""
_LINK: Final = "is a symbolic link; name the file itself"


def open_regular(path: Path | str, flags: int, *, follows: bool = False) -> int:
    """Open a regular file, and return its descriptor; one that is made has mode 0600.

    Raises:
        OSError: It cannot be opened, or is no regular file; a link is none unless `follows`.
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
    """Open a file of this user's alone, and return its descriptor; one that is made has mode 0600.

    Raises:
        OSError: It is a link, no regular file, another user's, or open to every user.
    """
    descriptor = open_regular(path, flags)
    try:
        _require_own(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_own(path: Path | str) -> None:
    """Make a database file, if need be, for its owner alone, and check all that stands beside it.

    SQLite opens the same names after that, and gives those that it makes the same mode. A file
    that is there is not opened here: to close it would let go of this process's locks on it.

    Raises:
        OSError: As `open_own`, of the file or of its log.
    """
    for suffix in _BESIDE:
        require_own(f"{path}{suffix}")
    with contextlib.suppress(FileExistsError):
        os.close(open_own(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))


def require_own(path: Path | str) -> None:
    """Check a file that may be there.

    Raises:
        OSError: As `open_own`.
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
        raise _refused(path, "is not a regular file")


def _require_own(path: Path | str, found: os.stat_result) -> None:
    user = os.geteuid()
    if found.st_uid not in (user, 0) and user != 0:
        raise _refused(path, f"belongs to user {found.st_uid}, and this process runs as {user}")
    if found.st_mode & stat.S_IWOTH:
        raise _refused(path, "can be written by every user of this machine; chmod it to 600")
    if found.st_nlink > 1:
        raise _refused(path, "has a second name elsewhere; keep one of them")


def _refused(path: Path | str, reason: str) -> OSError:
    return PermissionError(errno.EPERM, f"the file {reason}", str(path))
