"""Watches a program's system calls: when data reached the disk, and when bytes left on a socket.

    python tests/faults/tracer.py EVENTS COMMAND [ARGUMENT...]

Writes one JSON object a line to the file EVENTS, in the order the kernel saw them: a sync or a
receive when it has returned, a write or send when it begins. A `read` is one from a socket. So a
sync that stands before a send was on disk before the first byte of the send could leave. Linux on
x86-64 and arm64, by ptrace alone: what strace does, without asking for strace.

    with trace(command, events) as process: ...
    for event in read_events(events): ...
"""

import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Event", "read_events", "trace", "traced"]

DATA_BYTES_MAX: Final = 4096

SYNCS: Final = {"x86_64": {74: "fsync", 75: "fdatasync"}, "aarch64": {82: "fsync", 83: "fdatasync"}}
SENDS: Final = {
    "x86_64": {1: "write", 18: "pwrite64", 20: "writev", 44: "sendto", 46: "sendmsg"},
    "aarch64": {64: "write", 68: "pwrite64", 66: "writev", 206: "sendto", 211: "sendmsg"},
}
RECEIVES: Final = {"x86_64": {0: "read", 45: "recvfrom"}, "aarch64": {63: "read", 207: "recvfrom"}}
POINTS_AT_BYTES: Final = ("write", "pwrite64", "sendto")

TRACEME, CONT_SYSCALL, SETOPTIONS, SYSCALL_INFO = 0, 24, 0x4200, 0x420E
SYSGOOD, FORK, VFORK, CLONE, EXEC, EXITKILL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x100000
OPTIONS: Final = SYSGOOD | FORK | VFORK | CLONE | EXEC | EXITKILL
WAIT_ALL: Final = 0x40000000  # __WALL: threads too
ENTRY, EXIT = 1, 2


class Event(NamedTuple):
    """One call. `target` is the file's path or `socket:[...]`, `data` the first bytes moved."""

    call: str
    target: str
    data: bytes

    @property
    def is_sync(self) -> bool:
        """Whether data of `target` was on disk when this was recorded."""
        return self.call in {"fsync", "fdatasync"}


@contextlib.contextmanager
def trace(
    command: Sequence[str], events: Path, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command under the tracer until the block ends; then send it SIGTERM.

    The command inherits standard output; signals go to the tracer, which passes them on.
    """
    with subprocess.Popen(traced(command, events), **options) as process:  # noqa: S603 -- the tests' own command
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def traced(command: Sequence[str], events: Path) -> list[str]:
    """Return the command that runs `command` under the tracer."""
    return [sys.executable, __file__, str(events), *command]


def read_events(events: Path) -> list[Event]:
    """Return what was recorded so far."""
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    return [Event(row["call"], row["target"], bytes.fromhex(row["data"])) for row in rows]


class _SyscallInfo(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("_pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number_or_result", ctypes.c_int64),
        ("arguments", ctypes.c_uint64 * 6),
        ("_rest", ctypes.c_uint8 * 16),
    )


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_LIBC.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> None:
    if _LIBC.ptrace(request, pid, address, data) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")


def _syscall_info(pid: int) -> _SyscallInfo:
    found = _SyscallInfo()
    _ptrace(SYSCALL_INFO, pid, ctypes.sizeof(found), ctypes.addressof(found))
    return found


class _Tracer:
    def __init__(self, events: Path) -> None:
        machine = platform.machine()
        self._sends = SENDS[machine]
        self._returning = SYNCS[machine] | RECEIVES[machine]
        self._file = events.open("w")
        self._entered: dict[int, tuple[str, str, int]] = {}
        self._seen: set[int] = set()

    def run(self, command: list[str]) -> int:
        child = os.fork()
        if child == 0:
            _ptrace(TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execvp(command[0], command)  # noqa: S606 -- no shell wanted
        os.waitpid(child, WAIT_ALL)
        _ptrace(SETOPTIONS, child, 0, OPTIONS)
        self._seen.add(child)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(child, number))
        _ptrace(CONT_SYSCALL, child)
        return self._follow(child)

    def _follow(self, child: int) -> int:
        code = 0
        while True:
            try:
                pid, status = os.waitpid(-1, WAIT_ALL)
            except ChildProcessError:
                return code
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if pid == child:
                    code = os.waitstatus_to_exitcode(status)
                continue
            with contextlib.suppress(ProcessLookupError):  # a thread may be gone by now
                _ptrace(CONT_SYSCALL, pid, 0, self._stopped(pid, status))

    def _stopped(self, pid: int, status: int) -> int:
        """Record what a stop means; return the signal to deliver, 0 for none."""
        number = os.WSTOPSIG(status)
        if number == signal.SIGTRAP | 0x80:
            self._syscall(pid)
            return 0
        if status >> 16 or number == signal.SIGTRAP:  # a new thread or program
            return 0
        is_first = pid not in self._seen
        self._seen.add(pid)
        return 0 if is_first and number == signal.SIGSTOP else number

    def _syscall(self, pid: int) -> None:
        info = _syscall_info(pid)
        if info.op == ENTRY:
            number, arguments = info.number_or_result, info.arguments
            if number in self._returning:
                call, target = self._returning[number], _target(pid, arguments[0])
                if call != "read" or target.startswith("socket:"):
                    self._entered[pid] = (call, target, arguments[1])
            elif number in self._sends:
                call = self._sends[number]
                self._record(call, _target(pid, arguments[0]), _sent(pid, call, arguments))
        elif info.op == EXIT and pid in self._entered:
            call, target, address = self._entered.pop(pid)
            result = info.number_or_result
            if result == 0 or (call in {"recvfrom", "read"} and result > 0):
                self._record(call, target, _memory(pid, address, min(result, DATA_BYTES_MAX)))

    def _record(self, call: str, target: str, data: bytes) -> None:
        print(json.dumps({"call": call, "target": target, "data": data.hex()}), file=self._file)
        self._file.flush()


def _target(pid: int, descriptor: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/{descriptor}").readlink())
    except OSError:
        return "?"


def _sent(pid: int, call: str, arguments: Any) -> bytes:
    if call in POINTS_AT_BYTES:
        return _memory(pid, arguments[1], min(arguments[2], DATA_BYTES_MAX))
    vector, count = arguments[1], arguments[2]
    if call == "sendmsg":
        header = _memory(pid, arguments[1], 32)
        vector, count = (int.from_bytes(header[at : at + 8], "little") for at in (16, 24))
    entries = _memory(pid, vector, 16 * min(count, 64))
    joined = b""
    for at in range(0, len(entries), 16):
        start, size = (int.from_bytes(entries[at + o : at + o + 8], "little") for o in (0, 8))
        joined += _memory(pid, start, min(size, DATA_BYTES_MAX - len(joined)))
    return joined


def _memory(pid: int, address: int, size: int) -> bytes:
    if size <= 0:
        return b""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)
    except (OSError, OverflowError):
        return b""


if __name__ == "__main__":
    sys.exit(_Tracer(Path(sys.argv[1])).run(sys.argv[2:]))
