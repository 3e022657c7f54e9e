"""MCP tools are sold and paid for on a real chain: in memory, over HTTP, and to a child's pipes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import TextContent

from channel.errors import PaymentOutcomeUnknownError
from channel.http import PaymentGate
from mpp_session.mcp.client import PaidClient, paying
from mpp_session.mcp.operations import list_operations
from mpp_session.mcp.server import PaidOperations
from mpp_session.testing import TestChain, TestPayer
from settlement.dev.devnet import Devnet
from tests.e2e.gateways import ROOT, GatewayProcess, free_port
from tests.e2e.selling import Provider
from tests.mpp_session.mcp.shop import per_request
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)

MODES = ("auto", "legacy")
PRICE = 250


def build_server(provider: Provider) -> MCPServer[Any]:
    paid = PaidOperations(
        list_operations({"search": per_request(PRICE)}, {}, {"advice": per_request(PRICE)}, ()),
        lambda app, routes: PaymentGate(app, engine=provider.engine, routes=routes),
    )
    server: MCPServer[Any] = MCPServer("shop", middleware=[paid])

    @server.tool()
    async def search(query: str) -> str:
        if query == "nothing":
            raise ToolError("nothing is found")
        return f"found {query}"

    @server.prompt()
    async def advice() -> str:
        return "Buy low."

    return server


@asynccontextmanager
async def open_tools(provider: Provider, payer: TestPayer, mode: str) -> AsyncIterator[PaidClient]:
    async with (
        payer.client() as wallet,
        Client(build_server(provider), mode=mode) as client,
        paying(client, wallet, server="https://shop.example/mcp") as tools,
    ):
        yield tools


def text(result: Any) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_pays_for_calls_and_closes_at_what_it_spent(
    seller: Provider, payer: TestPayer, mode: str
) -> None:
    """MCP-01 to MCP-05, CLOSE-06: to the base unit, on chain."""
    chain = seller.chain
    payee = chain.account("payee").address
    before = await chain.token_balance(payee)
    async with open_tools(seller, payer, mode) as tools:
        assert text(await tools.call_tool("search", {"query": "one"})) == "found one"
        assert text(await tools.call_tool("search", {"query": "two"})) == "found two"
        failed = await tools.call_tool("search", {"query": "nothing"})
        assert failed.is_error
        prompt = await tools.get_prompt("advice")
        assert prompt.messages
        (record,) = await tools.payments.channels()
        assert (record.spent, record.signed) == (3 * PRICE, 3 * PRICE)
        (closed,) = await tools.close()
        assert (closed.state, closed.settled) == ("closed", 3 * PRICE)
    assert await chain.token_balance(payee) - before == 3 * PRICE


MANUAL = ROOT / "docs" / "guide" / "mcp.md"
SLOW = """
import asyncio
from pathlib import Path

paid = sell_tools({"search": price, "slow": price}, devnet="devnet.json")
server = MCPServer("search", middleware=[paid], lifespan=paid.lifespan)


@server.tool()
async def search(query: str) -> str:
    return f"found {query}"


@server.tool()
async def slow(query: str) -> str:
    Path("started").touch()
    await asyncio.sleep(60)
    return query
"""


@pytest.fixture
def folder(devnet: TestChain, tmp_path: Path) -> Path:
    """A folder with the devnet's file."""
    devnet.values.write(tmp_path / "devnet.json")
    return tmp_path


def write_page(folder: Path, *, run: str, more: str = "") -> Path:
    """Write the guide's program that sells, and what it does instead of serving port 8000."""
    code = MANUAL.read_text().partition("```python\n")[2].partition("```")[0]
    head, _, _ = code.partition("if __name__")
    assert 'server.run("streamable-http", port=8000)' in code
    path = folder / "shop.py"
    path.write_text(f"{head}\nprice = Price(unit_price=250, unit_type='request')\n{more}\n{run}\n")
    return path


def variables(folder: Path) -> dict[str, str]:
    """Return an environment in which a program's files are those of one test."""
    return {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT)}


class Balances:
    """What two accounts of the devnet have gained and lost since this was made."""

    def __init__(self, chain: Devnet, payer: str) -> None:
        self._chain = chain
        self._names = (payer, "payee")
        self._before: list[int] = []

    async def _read(self) -> list[int]:
        of = [self._chain.account(name).address for name in self._names]
        return [await self._chain.token_balance(one) for one in of]

    async def begin(self) -> None:
        self._before = await self._read()

    async def require(self, *changes: int) -> None:
        """Wait until the balances have changed so, to the base unit."""

        async def is_so() -> bool:
            return [b - a for a, b in zip(self._before, await self._read(), strict=True)] == [
                *changes
            ]

        await until(is_so)


async def test_any_host_pays_through_the_proxy(chain: Devnet, folder: Path) -> None:
    """The host and the server speak MCP over pipes; only the proxy between them has a key."""
    shop = write_page(folder, run='server.run("stdio")')
    words = ["-m", "mpp_session.cli", "mcp-proxy", "--devnet=devnet.json", "--close"]
    words += ["--price-max=request=250", "--", sys.executable, str(shop)]
    money = Balances(chain, "agent")
    await money.begin()
    proxy = StdioServerParameters(
        command=sys.executable, args=words, env=variables(folder), cwd=folder
    )
    async with Client(proxy) as host:
        assert [tool.name for tool in (await host.list_tools()).tools] == ["search"]
        for query in ("one", "two"):
            answer = await host.call_tool("search", {"query": query})
            assert text(answer) == f"nothing is known about {query}"
        refused = await host.call_tool("search", {"query": "x" * 9, "unknown": 1})
        assert not refused.is_error
    await money.require(-750, 750)


async def test_a_server_that_dies_in_a_call_charges_nothing_for_it(
    chain: Devnet, payer: TestPayer, folder: Path
) -> None:
    """Over streamable HTTP, with both revisions on the same channel."""
    port = free_port()
    run = f'server.run("streamable-http", port={port})'
    program = write_page(folder, run=run, more=SLOW)
    command = ["env", "-u", "MPP_SESSION_LISTEN_PORT", f"--chdir={folder}", sys.executable]
    environment = {
        **variables(folder),
        "MPP_SESSION_LISTEN_PORT": str(port),
        "MPP_SESSION_PAYMENT_RESERVATION_LEASE_S": "5",
    }
    shop = GatewayProcess([*command, str(program)], environment, folder / "shop.log")
    money = Balances(chain, "payer")
    await money.begin()
    url = f"{shop.url}/mcp"
    await shop.start()
    async with payer.client() as wallet:
        for mode in MODES:
            async with Client(url, mode=mode) as client, paying(client, wallet) as tools:
                assert text(await tools.call_tool("search", {"query": mode})) == f"found {mode}"
        with suppress(MCPError, ExceptionGroup):
            async with Client(url) as client, paying(client, wallet) as tools:
                call = asyncio.create_task(tools.call_tool("slow", {"query": "never"}))
                await until((folder / "started").exists)
                await shop.end(signal.SIGKILL)
                with pytest.raises((PaymentOutcomeUnknownError, MCPError)):
                    await call
        await shop.start()
        async with Client(url) as client, paying(client, wallet, closes=True) as tools:
            assert text(await tools.call_tool("search", {"query": "again"})) == "found again"
    await money.require(-750, 750)
    await shop.end()
