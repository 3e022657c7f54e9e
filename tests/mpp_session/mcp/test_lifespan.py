"""An application's lifespan is run once, for all who need it."""

from pathlib import Path

import pytest

from channel.http.asgi import Receive, Scope, Send
from mpp_session.errors import CommandError
from mpp_session.mcp.lifespan import SharedLifespan
from mpp_session.mcp.server import sell_tools
from tests.mpp_session.mcp.shop import per_request


class App:
    """Counts its starts and its ends."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.heard: list[str] = []

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Live once."""
        for _number in range(2):
            message = await receive()
            self.heard.append(message["type"])
            if self.fails:
                await send({"type": "lifespan.startup.failed", "message": "no ledger"})
                return
            await send({"type": f"{message['type']}.complete"})


async def test_it_starts_with_the_first_user_and_ends_with_the_last() -> None:
    app = App()
    life = SharedLifespan(app)
    async with life.running():
        async with life.running():
            assert app.heard == ["lifespan.startup"]
        assert app.heard == ["lifespan.startup"]
    assert app.heard == ["lifespan.startup", "lifespan.shutdown"]
    async with life.running():
        assert len(app.heard) == 3


async def test_an_application_that_cannot_start_says_why() -> None:
    with pytest.raises(CommandError, match="no ledger"):
        async with SharedLifespan(App(fails=True)).running():
            pytest.fail("running")


async def test_one_without_lifespan_is_served_all_the_same() -> None:
    async def app(*_: object) -> None:
        return

    async with SharedLifespan(app).running():
        pass


async def test_a_server_does_not_start_without_what_it_sells_with(tmp_path: Path) -> None:
    """Before a client is served, and in the words of `sell`."""
    paid = sell_tools({"search": per_request()}, devnet=tmp_path / "none.json")
    with pytest.raises(CommandError, match="start `mpp-session devnet` first"):
        async with paid.lifespan():
            pytest.fail("running")
