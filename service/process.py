"""What the operating system lets a process of ours have."""

import resource
from typing import Final

__all__ = ["raise_open_files"]

_OPEN_FILES_WANTED: Final = 65_536


def raise_open_files() -> int:
    """Raise the number of files and sockets this process may have open; return what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(_OPEN_FILES_WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _OPEN_FILES_WANTED if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS allows fewer than it says
        return soft
    return wanted
