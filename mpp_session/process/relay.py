"""Standard output and standard error of a program that must never wait for who reads them.

They belong to a pipe, a terminal or a supervisor, and each of those may stop reading. A write would
then wait, for ever perhaps, and with it whatever defends the channels. So a long-running program
takes what is written to a descriptor, by whatever part of it, through a pipe of its own: one thread
empties that at once into a queue with a bound, another hands it on and alone may wait. What finds
no room is dropped and counted, and the count is written as soon as something is read again.
"""

import atexit
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections import deque
from typing import Final

from channel.limits import LOG_QUEUED_BYTES_MAX

__all__ = ["child_stderr", "drain", "relay_output"]

_STDOUT: Final = 1
_STDERR: Final = 2
_PIECE_BYTES: Final = 64 * 1024
_DRAIN_S: Final = 1.0
_LOOK_S: Final = 0.005


def relay_output() -> None:
    """From now on, let no write to standard output or standard error of this process wait.

    A process that forks later must call this in the child: threads do not come along.
    """
    for descriptor in (_STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:  # closed; its number must not go to a file of ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if descriptor not in _relays:
            _relays[descriptor] = _Relay(descriptor)
    if threading.current_thread() is threading.main_thread():
        # a terminal with `tostop` would stop the whole process, not only the thread that writes
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    atexit.register(drain)  # after the last traceback


def child_stderr() -> int | None:
    """Return what a child process takes for its standard error; None for ours as it is.

    A child that wrote into our pipe would wait for us, and lose its last words when we are killed.
    """
    relay = _relays.get(_STDERR)
    return None if relay is None else relay.target


def drain(within_s: float = _DRAIN_S) -> None:
    """Wait until what was written is handed on, or for so long: before the process ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    deadline = time.monotonic() + within_s
    for relay in _relays.values():
        relay.drain(deadline)


class _Relay:
    """One descriptor's."""

    def __init__(self, descriptor: int) -> None:
        self.target = os.dup(descriptor)
        self._reader, writer = os.pipe()
        os.dup2(writer, descriptor)
        os.close(writer)
        self._queued: deque[bytes] = deque()
        self._queued_bytes = 0
        self._is_full = False
        self._dropped = 0
        self._is_writing = False
        self._changed = threading.Condition()
        for work in (self._collect, self._hand_on):
            threading.Thread(target=work, name=f"relay {descriptor}", daemon=True).start()

    def drain(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            with self._changed:
                if not (self._queued or self._is_writing or self._unread()):
                    return
            time.sleep(_LOOK_S)

    def _unread(self) -> int:
        """How many bytes are in the pipe still."""
        answer = fcntl.ioctl(self._reader, termios.FIONREAD, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])

    def _collect(self) -> None:
        """Empty the pipe at once, by whole lines where they are not longer than a read."""
        rest = b""
        while True:
            select.select([self._reader], [], [])
            with self._changed:
                lines = (rest + os.read(self._reader, _PIECE_BYTES)).splitlines(keepends=True)
                rest = b""
                is_cut = not lines[-1].endswith(b"\n") and len(lines[-1]) < _PIECE_BYTES
                if is_cut and self._unread():
                    rest = lines.pop()
                for line in lines:
                    self._is_full |= self._queued_bytes + len(line) > LOG_QUEUED_BYTES_MAX
                    if self._is_full:  # until there is room again, so that what is lost is one gap
                        self._dropped += line.endswith(b"\n")
                    else:
                        self._queued.append(line)
                        self._queued_bytes += len(line)
                self._changed.notify()

    def _hand_on(self) -> None:
        """Write what is queued, and then how much found no room in the meantime."""
        while True:
            with self._changed:
                self._is_writing = False
                while not self._queued:
                    self._changed.wait()
                lines = list(self._queued)
                self._queued.clear()
                self._queued_bytes, self._is_full = 0, False
                dropped, self._dropped = self._dropped, 0
                self._is_writing = True
            left = self._write(b"".join(lines))
            if not left and dropped:
                left = self._write(b"mpp-session: %d lines were not read and are lost\n" % dropped)
            if left:
                with self._changed:
                    self._dropped += dropped + left.count(b"\n")

    def _write(self, data: bytes) -> bytes:
        """Write it, however long that takes; return what the descriptor refuses for good."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.target, view[:_PIECE_BYTES]) :]
            except BlockingIOError:  # another process that has it, too, made it so
                select.select([], [self.target], [])
            except OSError:  # its reader is gone, or the device is full
                return bytes(view)
        return b""


_relays: Final[dict[int, _Relay]] = {}
