"""Which loop a serving process runs on."""

import asyncio
import signal

import pytest
import uvloop

from mpp_session.process import event_loop
from mpp_session.process.event_loop import run_server
from mpp_session.process.signals import stop_on_signals


async def the_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_a_server_runs_on_uvloop() -> None:
    assert isinstance(run_server(the_loop()), uvloop.Loop)


def test_without_uvloop_a_server_runs_on_asyncios_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "uvloop", None)
    assert isinstance(run_server(the_loop()), asyncio.SelectorEventLoop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGRTMAX])
def test_a_signal_stops_a_server_on_uvloop(number: int) -> None:
    """O-28: also the signals that end a process by default."""
    before = signal.getsignal(number)

    async def serve() -> bool:
        stopping = asyncio.Event()
        stop_on_signals(stopping)
        signal.raise_signal(number)
        async with asyncio.timeout(5):
            return await stopping.wait()

    try:
        assert run_server(serve())
    finally:
        signal.signal(number, before)
