"""Tells `mpp-session prices reload` which gateway processes run, and how their last reload ended.

Each gateway holds a locked file in its state directory while it runs. So a stale file, whose
process id another program may have by now, is recognised and never signalled.
"""

import contextlib
import fcntl
import logging
import os
import signal
import time
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from channel.files import open_own
from mpp_session.errors import CommandError

__all__ = ["ControlFile", "Running", "find_running", "reload_running"]

_log: Final = logging.getLogger(__name__)

_SIZE: Final = 64 * 1024
_RELOAD_S: Final = 30.0
_POLL_S: Final = 0.05


class Running(msgspec.Struct, frozen=True):
    """A gateway that runs, as its file states it."""

    pid: int
    reloads: int = 0
    """How many reloads have ended, well or not."""
    problem: str | None = None
    """Why the last one changed nothing; None if it did what it should."""
    prices: str = ""
    """What is sold, for people."""


class ControlFile:
    """The file of this process. Without a folder for it, a reload needs a signal."""

    def __init__(self, folder: Path, ledger_url: str) -> None:
        """Write and lock it."""
        self._state = Running(os.getpid())
        self._path = folder / f"{_prefix(ledger_url)}{self._state.pid}.json"
        self._descriptor: int | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = open_own(self._path)
        except OSError as error:
            _log.warning("`prices reload` will not find this gateway; send it SIGHUP: %s", error)
            return
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._write()

    def note(self, problem: str | None, prices: str) -> None:
        """Record that a reload has ended."""
        self._state = Running(self._state.pid, self._state.reloads + 1, problem, prices)
        self._write()

    def close(self) -> None:
        """Remove it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> None:
        if self._descriptor is None:
            return
        content = msgspec.json.encode(self._state)[:_SIZE].ljust(_SIZE)
        with contextlib.suppress(OSError):  # a full disk does not end sales
            os.pwrite(self._descriptor, content, 0)


def find_running(folder: Path, ledger_url: str) -> list[Running]:
    """Return the gateways of these books that run on this machine. Removes stale files."""
    found = []
    for path in sorted(folder.glob(f"{_prefix(ledger_url)}*.json")):
        try:
            descriptor = open_own(path, os.O_RDWR)
        except OSError:
            continue
        try:
            text = os.pread(descriptor, _SIZE, 0)
            if not text:
                continue  # its process has just made it
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)  # its process has ended
                continue
            with contextlib.suppress(msgspec.DecodeError):  # it is being written
                found.append(msgspec.json.decode(text, type=Running))
        finally:
            os.close(descriptor)
    return found


def reload_running(folder: Path, ledger_url: str) -> list[Running]:
    """Make the gateways of these books read their prices again; return how each took it. Blocks.

    Raises:
        CommandError: None runs here, one has ended meanwhile, or one does not answer.
    """
    before = find_running(folder, ledger_url)
    if not before:
        raise CommandError(
            "no gateway with these settings runs on this machine as this user: start it, or send "
            "SIGHUP to its process"
        )
    for gateway in before:
        os.kill(gateway.pid, signal.SIGHUP)
    until = time.monotonic() + _RELOAD_S
    return [_wait(folder, ledger_url, gateway, until) for gateway in before]


def _wait(folder: Path, ledger_url: str, gateway: Running, until: float) -> Running:
    while True:
        now = {one.pid: one for one in find_running(folder, ledger_url)}.get(gateway.pid)
        if now is None:
            raise CommandError(f"the gateway with process id {gateway.pid} has ended")
        if now.reloads > gateway.reloads:
            return now
        if time.monotonic() > until:
            raise CommandError(
                f"the gateway with process id {gateway.pid} does not answer: see its log"
            )
        time.sleep(_POLL_S)


def _prefix(ledger_url: str) -> str:
    return f"gateway-{sha256(ledger_url.encode()).hexdigest()[:16]}-"
