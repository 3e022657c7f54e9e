"""When a program of ours stops: on a signal, or with the input of a parent that started it."""

import asyncio
import contextlib
import os
import signal
import threading

__all__ = ["stop_at_eof", "stop_on_signals"]


def stop_on_signals(stopping: asyncio.Event) -> None:
    """Set the event on SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)


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
