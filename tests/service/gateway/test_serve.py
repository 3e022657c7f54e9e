"""Whatever guards the money and ends, ends the gateway, and loudly."""

import asyncio

import pytest

from channel.errors import InvariantError
from service.errors import CommandError
from service.gateway.serve import _run_until


class Server:
    """Serves until it is told to stop."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.has_ended = False

    async def serve(self) -> None:
        await self.stopping.wait()
        self.has_ended = True


async def forever() -> None:
    await asyncio.Event().wait()


async def end() -> None:
    return


async def fail() -> None:
    raise InvariantError("spent is above accepted")


async def test_a_guard_that_ends_stops_the_server_with_its_name() -> None:
    server = Server()
    with pytest.raises(CommandError, match="watching the chain ended"):
        await _run_until(
            asyncio.Event(),
            server.serve(),
            {"pruning": forever(), "watching the chain": end()},
            stop=server.stopping.set,
        )
    assert server.has_ended


async def test_a_guard_that_fails_shows_its_bug() -> None:
    server = Server()
    with pytest.raises(InvariantError, match="spent is above accepted"):
        await _run_until(
            asyncio.Event(), server.serve(), {"books": fail()}, stop=server.stopping.set
        )
    assert server.has_ended


async def test_a_signal_ends_it_quietly() -> None:
    server, stopping = Server(), asyncio.Event()
    stopping.set()
    await _run_until(stopping, server.serve(), {"books": forever()}, stop=server.stopping.set)
    assert server.has_ended
