"""An MCP server whose operations have a price, with the books of a test, and a payer by hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped] # noqa: F401 -- the SDK would in a call: it blocks
from mcp import Client, MCPError
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult, TextContent
from pydantic import TypeAdapter

from channel.errors import SalesPausedError
from channel.http import PaymentGate, Price
from channel.http.hooks import Hooks
from channel.wire.challenge import Challenge
from channel.wire.credential import format_credential
from channel.wire.payload import Payload
from mpp_session.mcp.operations import Operation, list_operations
from mpp_session.mcp.server import PaidOperations, current_meter
from mpp_session.mcp.wire import (
    CREDENTIAL,
    IDEMPOTENCY_KEY,
    MANAGEMENT,
    credential_object,
    parse_challenge_object,
)
from tests.channel.selling import Provider, open_provider

PRICE = 10
__all__ = ["ANY", "PRICE", "Shop", "connected", "open_shop", "per_request", "text"]

ANY: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


def per_request(amount: int = PRICE) -> Price:
    return Price(unit_price=amount, unit_type="request")


OPERATIONS = list_operations(
    {
        "search": per_request(),
        "other": per_request(),
        "broken": per_request(),
        "refuses": per_request(),
        "slow": per_request(),
        "words": Price(unit_price=PRICE, unit_type="word"),
    },
    {"data://premium/today": per_request(), "data://reports/{name}": per_request()},
    {"advice": per_request()},
    ("words",),
)


class Shop:
    """The server, what it sold, and requests to it with or without a credential."""

    def __init__(self, provider: Provider, hooks: Hooks | None = None) -> None:
        self.provider = provider
        self.payer = provider.payer
        self.served = 0
        self.is_slow = asyncio.Event()
        self.is_paused = False
        self.hooks = hooks
        self.paid = self.sell(OPERATIONS)
        self.server = build_server(self)
        self.client: Client

    def sell(self, operations: list[Operation]) -> PaidOperations:
        return PaidOperations(
            operations,
            lambda app, routes: PaymentGate(
                app,
                engine=self.provider.engine,
                routes=routes,
                hooks=self.hooks,
                ready=self._require_ready,
            ),
        )

    def _require_ready(self) -> None:
        if self.is_paused:
            raise SalesPausedError("Nothing is sold now.")

    def reprice(self, operations: list[Operation]) -> None:
        """Sell at other prices from now on."""
        self.server.middleware[-1] = self.sell(operations)

    async def challenge(self, name: str = "search", **request: Any) -> Challenge:
        error = await self.refusal(name, **request)
        return parse_challenge_object(error.data["challenges"][0])

    async def refusal(self, name: str = "search", **request: Any) -> MCPError:
        """Return the error with which the server refuses a call."""
        try:
            result = await self.call(name, **request)
        except MCPError as error:
            return error
        raise AssertionError(f"{name} was served: {result}")

    def credential(self, challenge: Challenge, payload: Payload) -> dict[str, Any]:
        credential = self.payer.credential(challenge, payload)
        return credential_object(format_credential(credential))

    async def buy(self, payload: Payload, name: str = "search", **request: Any) -> CallToolResult:
        """Call a tool and pay with this payload under a fresh challenge."""
        return await self.call(name, credential=await self.answer(payload, name), **request)

    async def answer(self, payload: Payload, name: str = "search") -> dict[str, Any]:
        return self.credential(await self.challenge(name), payload)

    async def call(
        self,
        name: str,
        *,
        credential: object = None,
        key: str | None = None,
        query: str = "x",
        manages: bool = False,
    ) -> CallToolResult:
        meta: Any = {MANAGEMENT: True} if manages else {}
        if credential is not None:
            meta[CREDENTIAL] = credential
        if key is not None:
            meta[IDEMPOTENCY_KEY] = key
        params = CallToolRequestParams(name=name, arguments={"query": query}, _meta=meta or None)
        sent = await self.client.session.send_request(CallToolRequest(params=params), ANY)
        return CallToolResult.model_validate(sent, by_name=False)

    async def open(self, amount: int = 0, **request: Any) -> CallToolResult:
        """Open a channel with the first call; its voucher is for this amount."""
        self.payer.open_on_chain()
        return await self.buy(self.payer.opening(amount), **request)

    async def spent(self) -> tuple[int, int]:
        """Return what the books say is spent and reserved."""
        books = await self.provider.books()
        return books.spent, books.reserved


@asynccontextmanager
async def open_shop(
    path: Path, mode: str = "auto", hooks: Hooks | None = None, **changes: Any
) -> AsyncIterator[Shop]:
    """Open a shop and a client of the real package, under one revision of the protocol."""
    async with open_provider(path, **changes) as provider:
        shop = Shop(provider, hooks)
        async with connected(shop, mode):
            yield shop


@asynccontextmanager
async def connected(shop: Shop, mode: str) -> AsyncIterator[None]:
    """Give the shop a client. A task of its own enters and leaves it: fixtures do so in two."""
    is_open, is_over = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with Client(shop.server, mode=mode) as client:
            shop.client = client
            is_open.set()
            await is_over.wait()

    holding = asyncio.create_task(hold())
    await is_open.wait()
    try:
        yield
    finally:
        is_over.set()
        await holding


def build_server(shop: Shop) -> MCPServer[Any]:  # noqa: C901 -- one function for each operation
    server: MCPServer[Any] = MCPServer("shop", middleware=[shop.paid])

    @server.tool()
    async def search(query: str) -> str:
        shop.served += 1
        return f"found {query}, {shop.served}"

    @server.tool()
    async def other(query: str) -> str:
        shop.served += 1
        return f"other {query}"

    @server.tool()
    async def free(query: str) -> str:
        return f"free {query}"

    @server.tool()
    async def broken(query: str) -> str:
        shop.served += 1
        raise ToolError(f"no {query} today")

    @server.tool()
    async def refuses(query: str) -> str:
        shop.served += 1
        raise MCPError(-32001, f"not {query}")

    @server.tool()
    async def slow(query: str) -> str:
        shop.served += 1
        shop.is_slow.set()
        await asyncio.Event().wait()
        return query

    @server.tool()
    async def words(query: str) -> str:
        count = len(query.split())
        await current_meter().hold(count)
        shop.served += 1
        await current_meter().spend(count)
        return query.upper()

    @server.resource("data://premium/today")
    async def today() -> str:
        shop.served += 1
        return "sunny"

    @server.resource("data://{section}/{name}")
    async def page(section: str, name: str) -> str:
        return f"{section} {name}"

    @server.prompt()
    async def advice() -> str:
        shop.served += 1
        return "Buy low."

    return server


def text(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text
