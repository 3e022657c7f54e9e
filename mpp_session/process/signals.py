"""When a program of ours stops: on a signal, or with the input of a parent that started it."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

__all__ = ["before_signals", "stop_at_eof", "stop_on_signals"]

_RARE: Final = ("SIGALRM", "SIGIO", "SIGPROF", "SIGPWR", "SIGSTKFLT", "SIGVTALRM", "SIGXCPU")
"""Not every system has each: of power that fails, a container that halts, a limit of CPU time."""
_ENDING: Final = (
    signal.SIGHUP,  # a terminal that closes, a supervisor that would have settings read again
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    *(getattr(signal, name) for name in _RARE if hasattr(signal, name)),
    *(range(signal.SIGRTMIN, signal.SIGRTMAX + 1) if sys.platform == "linux" else ()),
)
"""What ends a process that does not mind: in mid-stream, that is without a receipt (O-28)."""
_ALWAYS_ENDING: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def stop_on_signals(stopping: asyncio.Event) -> None:
    """Set the event on every signal that would end the process otherwise.

    What the process was started to ignore, as by `nohup`, it ignores.
    """
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)


@contextlib.contextmanager
def before_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call first when a signal is about to end a process whose server is somebody else's.

    What the server does about a signal it does afterwards; what it makes of SIGHUP, say, is its
    own affair. A signal that it knows nothing of becomes a SIGTERM. Outside the main thread no
    signals come, and nothing is done.
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


def stop_at_eof(stopping: asyncio.Event) -> None:
    """Wait for standard input to end in a thread that nothing waits for."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        # not through sys.stdin, whose lock would be held when the interpreter ends
        while os.read(0, 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop has ended before the input
            loop.call_soon_threadsafe(stopping.set)

    threading.Thread(target=wait, daemon=True).start()
