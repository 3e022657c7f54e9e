"""Operating system limits of this process."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path
from typing import Final

__all__ = ["forbid_core_files", "raise_open_files"]

_OPEN_FILES_WANTED: Final = 65_536
_PR_SET_DUMPABLE: Final = 4
_TRACED: Final = "TracerPid:\t"


def forbid_core_files() -> None:
    """Prevent a crash from writing this process's memory to a disk: it holds keys (O-92).

    The limit alone does not stop programs to which the kernel pipes dumps, such as systemd's. On
    Linux the process is therefore also made undumpable, so that no other process of its user can
    read its memory. A debugger that is attached already stays attached.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and not _is_traced():
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _is_traced() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    return not status.partition(_TRACED)[2].startswith("0")


def raise_open_files() -> int:
    """Raise the limit of open files and sockets of this process; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(_OPEN_FILES_WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _OPEN_FILES_WANTED if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS allows fewer than it reports
        return soft
    return wanted
