"""Pays for the operations of an MCP server, under a policy.

    async with open_client(...) as wallet, Client("https://tools.example/mcp") as client:
        async with paying(client, wallet) as tools:
            result = await tools.call_tool("search", {"query": "channels"})
            await tools.close()

The account, the policy, the store and the bounds are those of the `wallet`, which pays over HTTP
too. A server is asked without a credential first; from its first challenge on, calls carry one.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import msgspec
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import CallToolResult, GetPromptResult, ReadResourceResult, Result

from channel.client.store.record import ChannelRecord
from channel.errors import ConfigError
from mpp_session.agent.client import PayingClient
from mpp_session.mcp.transport import CALL, Call, McpTransport

__all__ = ["PaidClient", "paying", "server_url"]

_ResultT = TypeVar("_ResultT", bound=Result)


@asynccontextmanager
async def paying(
    client: Client, wallet: PayingClient, *, server: str | None = None, closes: bool = False
) -> AsyncIterator["PaidClient"]:
    """Pay for what a connected client calls.

    Args:
        client: Is connected to the server, and stays so.
        wallet: Pays: see `mpp_session.open_client`.
        server: The URL that names the server in the wallet's records and budgets. None: its own
            URL, or one made of the command that starts it; required for other transports.
        closes: Whether the channels with this server are closed at the end.

    Raises:
        ConfigError: The server has no URL and no command, and `server` is None.
    """
    paid = PaidClient(client, wallet, server or server_url(client.server))
    yield paid
    if closes:
        await paid.close()


class PaidClient:
    """A client whose calls are paid for. Everything else passes to the `mcp.Client` under it."""

    def __init__(self, client: Client, wallet: PayingClient, server: str) -> None:
        self.client = client
        self._inner = McpTransport(client, server)
        self._paying = wallet.transport.over(self._inner)
        self.payments = wallet.payments.over(self._inner)

    def __getattr__(self, name: str) -> Any:
        """Return what the client under it has, such as `list_tools`."""
        return getattr(self.client, name)

    async def call_tool(
        self, name: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> CallToolResult:
        """Call a tool and pay for it; `options` are those of `Client.call_tool`.

        Raises:
            AgentError: Paying would violate the policy, or did not help; see `PayingTransport`.
            MCPError: The server refused for another reason; nothing was paid.
        """
        return await self._pay(
            "tools/call",
            name,
            {"arguments": arguments},
            lambda meta: self.client.call_tool(name, arguments, meta=meta, **options),
            options,
        )

    async def read_resource(self, uri: str, **options: Any) -> ReadResourceResult:
        """Read a resource and pay for it; otherwise as `call_tool`."""
        return await self._pay(
            "resources/read",
            uri,
            {},
            lambda meta: self.client.read_resource(uri, meta=meta, **options),
            options,
        )

    async def get_prompt(
        self, name: str, arguments: dict[str, str] | None = None, **options: Any
    ) -> GetPromptResult:
        """Get a prompt and pay for it; otherwise as `call_tool`."""
        return await self._pay(
            "prompts/get",
            name,
            {"arguments": arguments},
            lambda meta: self.client.get_prompt(name, arguments, meta=meta, **options),
            options,
        )

    async def close(self) -> list[ChannelRecord]:
        """Close the channels with this server at exactly what was spent.

        Raises:
            AgentError: See `Payments.close`.
        """
        base = f"{self._inner.base}/"
        found = [one for one in await self.payments.channels() if one.url.startswith(base)]
        return [
            record
            for one in found
            if one.state != "closed"
            for record in await self.payments.close(one.key.channel_id)
        ]

    async def _pay(
        self,
        method: str,
        name: str,
        asked: Mapping[str, Any],
        send: Callable[[Any], Awaitable[_ResultT]],
        options: dict[str, Any],
    ) -> _ResultT:
        own = options.pop("meta", None)
        results: list[_ResultT] = []

        async def send_with(meta: dict[str, Any]) -> _ResultT:
            result = await send({**(own or {}), **meta} or None)
            results[:] = [result]
            return result

        call = Call(send_with)
        request = httpx.Request(
            "POST",
            self._inner.url_of(method, name),
            content=msgspec.json.encode(asked, order="deterministic"),
            extensions={CALL: call},
        )
        await self._paying.handle_async_request(request)
        if call.error is not None:
            raise call.error
        return results[0]


def server_url(server: object) -> str:
    """Return the URL that stands for a server in records and budgets.

    A command gets one made of its words: another command is another server.

    Raises:
        ConfigError: It is neither a URL nor a command.
    """
    if isinstance(server, str):
        return server
    if isinstance(server, StdioServerParameters):
        words = "\0".join([server.command, *server.args])
        return f"https://{hashlib.sha256(words.encode()).hexdigest()[:32]}.stdio.invalid"
    raise ConfigError("this transport has no URL: give `server`, a URL that names the server")
