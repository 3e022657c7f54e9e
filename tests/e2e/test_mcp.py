"""MCP tools are sold and paid for on a real chain: in memory, over HTTP, and to a child's pipes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import TextContent

from channel.http import PaymentGate
from mpp_session.mcp.client import PaidClient, paying
from mpp_session.mcp.operations import list_operations
from mpp_session.mcp.server import PaidOperations
from mpp_session.testing import TestPayer
from tests.e2e.selling import Provider
from tests.mpp_session.mcp.shop import per_request

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
