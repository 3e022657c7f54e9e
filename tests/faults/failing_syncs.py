"""Makes the kernel refuse to sync, for one thread and for good: `fsync` and `fdatasync` give EIO.

A filter of system calls (seccomp) does it, so what fails is the call itself, below SQLite, and the
other threads of the process go on syncing: the disk that "works again" and has lost something.
Linux on x86-64 and arm64.
"""

import ctypes
import platform
from typing import Final

__all__ = ["fail_syncs"]

_SYNCS: Final = {"x86_64": (74, 75), "aarch64": (82, 83)}  # fsync, fdatasync
_SET_SECCOMP, _NO_NEW_PRIVILEGES, _FILTER = 22, 38, 2
_LOAD_NUMBER, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_REFUSE_WITH_EIO, _ALLOW = 0x00050005, 0x7FFF0000


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def fail_syncs() -> None:
    """Let every sync of the calling thread, and of those it starts, fail from now on."""
    fsync, fdatasync = _SYNCS[platform.machine()]
    instructions = (_Instruction * 5)(
        _Instruction(_LOAD_NUMBER, 0, 0, 0),
        _Instruction(_IF_EQUAL, 1, 0, fsync),
        _Instruction(_IF_EQUAL, 0, 1, fdatasync),
        _Instruction(_RETURN, 0, 0, _REFUSE_WITH_EIO),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    )
    program = _Program(len(instructions), instructions)
    kernel = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0),
    ):
        if kernel.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
