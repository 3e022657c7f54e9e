"""Stops a program on a signal, or when the input from its parent ends."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

__all__ = ["before_signals", "reload_on_hangup", "stop_at_eof", "stop_on_signals"]

_RARE: Final = ("SIGALRM", "SIGIO", "SIGPROF", "SIGPWR", "SIGSTKFLT", "SIGVTALRM", "SIGXCPU")
"""Not on every system: power failure, a halting container, a CPU time limit."""
_ENDING: Final = (
    signal.SIGHUP,  # a closing terminal, or a supervisor that wants settings reread
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    *(getattr(signal, name) for name in _RARE if hasattr(signal, name)),
    *(range(signal.SIGRTMIN, signal.SIGRTMAX + 1) if sys.platform == "linux" else ()),
)
"""Signals that end a process by default: a running stream would end without a receipt (O-28)."""
_ALWAYS_ENDING: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def stop_on_signals(stopping: asyncio.Event) -> None:
    """Set the event on every signal that would otherwise end the process.

    Signals that the process was started to ignore, as by `nohup`, stay ignored.
    """
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)


def reload_on_hangup(stopping: asyncio.Event, reload: Callable[[], None]) -> None:
    """Call `reload` on SIGHUP instead, unless it says that the process's terminal has closed.

    Call it after `stop_on_signals`. A process that was started to ignore SIGHUP reloads always.
    """
    has_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def handle() -> None:
        if has_terminal and not _has_terminal():
            stopping.set()
        else:
            reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, handle)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def before_signals(call: Callable[[], None]) -> Iterator[None]:
    """Run `call` before a signal ends a process whose server is another program's.

    The server's own handler then runs; what it does on SIGHUP, for example, is up to it. A signal
    that it does not handle becomes SIGTERM. Outside the main thread no signals arrive, and this
    does nothing.
    """
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(call)
        theirs = before[number]
        if callable(theirs):
            theirs(number, frame)
        elif number != signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in _ENDING:
        found = signal.getsignal(number)
        if found is signal.SIG_DFL or (callable(found) and number in _ALWAYS_ENDING):
            before[number] = found
            signal.signal(number, handle)
    try:
        yield
    finally:
        for ours, theirs in before.items():
            if signal.getsignal(ours) is handle:
                signal.signal(ours, theirs)


def stop_at_eof(stopping: asyncio.Event, on_line: Callable[[bytes], None] | None = None) -> None:
    """Wait for the end of standard input in a daemon thread. Calls `on_line` with each line."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        # not through sys.stdin, whose lock would be held when the interpreter exits
        rest = b""
        with contextlib.suppress(RuntimeError):  # the loop closed before the input ended
            while piece := os.read(0, 4096):
                if on_line is None:
                    continue
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    loop.call_soon_threadsafe(on_line, line)
            loop.call_soon_threadsafe(stopping.set)

    threading.Thread(target=wait, daemon=True).start()
