"""Which signals end a program in order, and which handlers of another server stay unchanged."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from mpp_session.process.signals import before_signals, stop_on_signals
from tests.waiting import PATIENCE_S

RARE = ["SIGALRM", "SIGIO", "SIGPROF", "SIGPWR", "SIGRTMIN", "SIGRTMAX", "SIGVTALRM", "SIGXCPU"]
ENDING = [
    *["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2"],
    *[name for name in RARE if hasattr(signal, name)],
]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {name: signal.getsignal(getattr(signal, name)) for name in ENDING}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", ENDING)
async def test_what_would_end_a_program_ends_it_in_order(name: str) -> None:
    """O-28: a receipt is owed for what was delivered, after any signal."""
    stopping = asyncio.Event()
    stop_on_signals(stopping)
    signal.raise_signal(getattr(signal, name))
    await asyncio.wait_for(stopping.wait(), PATIENCE_S)


async def test_what_nohup_says_holds() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopping = asyncio.Event()
    stop_on_signals(stopping)
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert not stopping.is_set()


@pytest.fixture
def server() -> list[int]:
    """A server that knows SIGTERM, SIGINT and, to open its log anew, SIGUSR1."""
    heard: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _: heard.append(number))
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    return heard


@pytest.mark.parametrize(
    ("name", "heard"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("SIGINT", signal.SIGINT),
        ("SIGHUP", signal.SIGTERM),
        ("SIGQUIT", signal.SIGTERM),
        ("SIGUSR2", signal.SIGTERM),
    ],
)
async def test_streams_hear_of_the_end_before_another_ones_server(
    server: list[int], name: str, heard: int
) -> None:
    """O-28, O-32: uvicorn waits for its streams before it says anything to an application."""
    ended = asyncio.Event()
    with before_signals(ended.set):
        signal.raise_signal(getattr(signal, name))
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        assert server == [heard]


async def test_what_a_server_does_with_a_signal_of_its_own_is_its_affair(
    server: list[int],
) -> None:
    ended = asyncio.Event()
    before = signal.getsignal(signal.SIGUSR1)
    with before_signals(ended.set):
        signal.raise_signal(signal.SIGUSR1)
        await asyncio.sleep(0)
        assert (server, ended.is_set()) == ([signal.SIGUSR1], False)
        assert signal.getsignal(signal.SIGUSR1) is before


async def test_a_servers_handlers_are_put_back(server: list[int]) -> None:
    before = [signal.getsignal(getattr(signal, name)) for name in ENDING]
    with before_signals(server.clear):
        pass
    assert [signal.getsignal(getattr(signal, name)) for name in ENDING] == before


async def test_outside_the_main_thread_nothing_is_done(server: list[int]) -> None:
    async def live() -> None:
        with before_signals(server.clear):
            pass

    await asyncio.to_thread(asyncio.run, live())


PROGRAM = """
import asyncio, sys
from mpp_session.process.signals import reload_on_hangup, stop_on_signals

async def main():
    stopping = asyncio.Event()
    stop_on_signals(stopping)
    reload_on_hangup(stopping, lambda: print("reload", file=sys.stderr, flush=True))
    print("ready", file=sys.stderr, flush=True)
    await stopping.wait()
    print("stop", file=sys.stderr, flush=True)

asyncio.run(main())
"""


def test_sighup_reloads_and_a_closing_terminal_stops() -> None:
    """O-28: a terminal that closes sends the same signal as a supervisor that wants a reload."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(  # noqa: S603 -- our own program
        [sys.executable, "-c", PROGRAM],
        stdin=terminal,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 -- no threads
    ) as process:
        assert process.stderr is not None
        os.close(terminal)
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline() == "reload\n"
        os.close(controller)
        assert process.stderr.readline() == "stop\n"
        assert process.wait(PATIENCE_S) == 0
