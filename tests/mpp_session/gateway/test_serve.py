"""When a task that guards the money ends, the gateway ends with an error."""

import asyncio
import contextlib
from typing import Any

import httpx
import pytest

from channel.errors import InvariantError
from channel.limits import AUTHORIZATION_BYTES_MAX
from mpp_session.errors import CommandError
from mpp_session.gateway.app import _not_served
from mpp_session.gateway.serve import _build_server, _run_until
from mpp_session.gateway.sockets import bind, listen, listening_url
from mpp_session.settings import Listen


class Server:
    """Serves until the test stops it."""

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


async def test_a_server_that_fails_leaves_no_guard_running() -> None:
    """They use the ledger, which is closed next."""
    cancelled = asyncio.Event()

    async def guard() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    async def serve() -> None:
        await asyncio.sleep(0)
        raise OSError("too many open files")

    with pytest.raises(OSError, match="too many open files"):
        await _run_until(asyncio.Event(), serve(), {"books": guard()}, stop=lambda: None)
    assert cancelled.is_set()


@pytest.mark.parametrize("host", ["..", "no.such.host.invalid", "256.1.1.1", "::zz"])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    """Decision 15."""
    with pytest.raises(CommandError, match="cannot listen on"):
        bind(Listen(host=host, port=0))


async def test_a_websocket_request_is_answered_as_any_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 5: never a 500, and no trace in the log for every stranger who tries."""
    kinds: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kinds.append(scope["type"])
        await _not_served(scope, receive, send)

    settings = Listen(port=0)
    server = _build_server(app, settings)
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    with bind(settings) as listener:
        listen(listener, settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{listening_url(listener)}/v1/realtime", headers=upgrade)
        server.should_exit = True
        await serving
    assert (answer.status_code, kinds) == (404, ["http"])
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_large_head_is_refused_with_any_parser_installed() -> None:
    """CORE-14, F-02: the bound is h11's, and uvicorn would rather take another parser."""
    settings = Listen(port=0)
    server = _build_server(_not_served, settings)
    with bind(settings) as listener:
        listen(listener, settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx.AsyncClient() as client:
            url = listening_url(listener)
            taken = await client.get(url, headers={"authorization": "a" * AUTHORIZATION_BYTES_MAX})
            assert taken.status_code == 404
            with contextlib.suppress(httpx.TransportError):  # it may hang up before it is read
                longer = {"x": "a" * (AUTHORIZATION_BYTES_MAX + 32_768)}
                assert (await client.get(url, headers=longer)).status_code == 400
        server.should_exit = True
        await serving
