"""The operator's port opens beside the one that sells, where the settings say."""

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mpp_session.errors import CommandError
from mpp_session.gateway.operator_port import open_operator_port
from mpp_session.gateway.sockets import bind_admin
from mpp_session.settings import ADMIN_PORT, Admin, Secret


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@asynccontextmanager
async def serving(caplog: pytest.LogCaptureFixture, settings: Admin) -> AsyncIterator[str]:
    """Serve the port, and yield its URL as the log names it."""
    caplog.set_level(logging.INFO)
    with open_operator_port(settings, [Route("/hello", hello)]) as tasks:
        (work,) = tasks.values()
        task = asyncio.create_task(work)
        try:
            yield caplog.records[-1].getMessage().removeprefix("the operator's port: ")
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_it_answers_on_its_own_socket(caplog: pytest.LogCaptureFixture, host: str) -> None:
    async with serving(caplog, Admin(host=host, port=0)) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/hello")).text == "hello"
        evil = await client.get(f"{url}/hello", headers={"host": "evil.example"})
        assert evil.status_code == 403


async def test_it_answers_under_the_names_of_its_settings(caplog: pytest.LogCaptureFixture) -> None:
    settings = Admin(port=0, names=("metrics.internal",))
    async with serving(caplog, settings) as url, httpx.AsyncClient() as client:
        answer = await client.get(f"{url}/hello", headers={"host": "metrics.internal:8403"})
        assert answer.text == "hello"


@pytest.mark.parametrize(
    ("settings", "is_first"), [(Admin(enabled=False), True), (Admin(port=0), False)]
)
def test_it_is_not_opened(settings: Admin, is_first: bool) -> None:  # noqa: FBT001
    with open_operator_port(settings, [], is_first=is_first) as tasks:
        assert tasks == {}


def test_a_port_of_the_settings_that_is_taken_is_an_error() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(CommandError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind_admin(Admin(port=port))


def test_a_usual_port_that_is_taken_gives_a_free_one() -> None:
    """Two gateways of one machine start without a setting."""
    with bind_admin(Admin()) as one, bind_admin(Admin()) as other:
        ports: list[Any] = [each.getsockname()[1] for each in (one, other)]
    assert ADMIN_PORT not in ports[1:]
    assert ports[0] != ports[1]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_link_that_logs_in_is_for_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    is_terminal: bool,  # noqa: FBT001
) -> None:
    """A service's output is kept in a log, where the token must not be."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    token = "a-log-in-token-of-thirty-two-chars"  # noqa: S105 - no secret
    with open_operator_port(Admin(port=0), [], token=Secret(token)) as tasks:
        for work in tasks.values():
            work.close()
    said = capsys.readouterr().out
    link = rf"dashboard: http://127\.0\.0\.1:\d+/login#{token}\n"
    assert re.fullmatch(link if is_terminal else "", said)
    assert token not in caplog.text
