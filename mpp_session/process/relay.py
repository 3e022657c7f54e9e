"""Relays standard output and standard error, so that a slow reader never blocks the process.

Both belong to a pipe, a terminal or a supervisor, and each of those may stop reading. A write would
then block, perhaps for ever, and so would the closing of channels. A long-running program therefore
redirects each descriptor into a pipe of its own. One thread reads that pipe into a bounded
queue; another writes the queue out, and only it may block. Lines that find no room are dropped and
counted, and the count is written once the reader reads again.
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
    """Make writes to standard output and standard error of this process non-blocking.

    A process that forks later must call this in the child, because threads are not inherited.
    """
    for descriptor in (_STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:  # closed; another file may get its number, and must not receive the log
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if descriptor not in _relays:
            _relays[descriptor] = _Relay(descriptor)
    if threading.current_thread() is threading.main_thread():
        # a terminal with `tostop` would stop the whole process, not only the writing thread
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    atexit.register(drain)  # after the last traceback


def child_stderr() -> int | None:
    """Return a descriptor for a child's standard error; None to inherit this process's.

    A child that wrote into this process's pipe would depend on it, and lose its last lines if this
    process is killed.
    """
    relay = _relays.get(_STDERR)
    return None if relay is None else relay.target


def drain(within_s: float = _DRAIN_S) -> None:
    """Wait at most `within_s` seconds until all output is written, before the process ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    deadline = time.monotonic() + within_s
    for relay in _relays.values():
        relay.drain(deadline)


class _Relay:
    """The relay of one descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.target = os.dup(descriptor)
        self._reader, writer = os.pipe()
        os.dup2(writer, descriptor)
        os.close(writer)
        self._queued: deque[bytes] = deque()
        self._queued_bytes = 0
        self._is_full = False
        self._is_losing = False
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
        """Return the number of unread bytes in the pipe."""
        answer = fcntl.ioctl(self._reader, termios.FIONREAD, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])

    def _collect(self) -> None:
        """Read the pipe as it fills, by whole lines unless they are longer than one read."""
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
                    # Until there is room again, and by whole lines, so that the loss is one gap.
                    if self._is_full or self._is_losing:
                        self._is_losing = not line.endswith(b"\n")
                        self._dropped += not self._is_losing
                    else:
                        self._queued.append(line)
                        self._queued_bytes += len(line)
                self._changed.notify()

    def _hand_on(self) -> None:
        """Write the queue, and then the number of lines dropped in the meantime."""
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
                left = self._write(b"mpp-session: %d lines were dropped: no reader\n" % dropped)
            if left:
                with self._changed:
                    self._dropped += dropped + left.count(b"\n")

    def _write(self, data: bytes) -> bytes:
        """Write data, however long it takes; return the part the descriptor refuses for good."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.target, view[:_PIECE_BYTES]) :]
            except BlockingIOError:  # another process with this descriptor made it non-blocking
                select.select([], [self.target], [])
            except OSError:  # the reader has gone, or the device is full
                return bytes(view)
        return b""


_relays: Final[dict[int, _Relay]] = {}
