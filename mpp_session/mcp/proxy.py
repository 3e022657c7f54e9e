"""A bridge: plain MCP to a host on standard input and output, paid MCP to one server.

A host such as an editor or a chat program knows nothing of payments. It starts this bridge as its
server. Keys and policy stay in the bridge, and a refusal to pay is a tool's error in words.
"""

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp_types import (
    INTERNAL_ERROR,
    CallToolRequestParams,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    TextContent,
)

from channel.errors import MppSessionError
from mpp_session.agent.client import PayingClient
from mpp_session.errors import CommandError
from mpp_session.mcp.client import PaidClient, paying

__all__ = ["build_proxy", "connect", "run_proxy", "server_of"]

_ResultT = TypeVar("_ResultT")
_Ctx = ServerRequestContext[Any, Any]


def server_of(words: Sequence[str]) -> str | StdioServerParameters:
    """Return the server that a command line names: one URL, or a command with its arguments.

    Raises:
        CommandError: Nothing is named.
    """
    if not words:
        raise CommandError("name a server: a URL, or a command and its arguments after --")
    if len(words) == 1 and words[0].startswith(("http://", "https://")):
        return words[0]
    return StdioServerParameters(command=words[0], args=list(words[1:]))


async def run_proxy(
    server: str | StdioServerParameters, wallet: PayingClient, *, closes: bool
) -> None:
    """Serve the host on standard input and output until it closes them.

    Raises:
        CommandError: The server cannot be reached.
        AgentError: `closes`, and a channel cannot be closed.
    """
    async with connect(server) as client, paying(client, wallet, closes=closes) as paid:
        proxy = build_proxy(paid)
        async with stdio_server() as (incoming, outgoing):
            await proxy.run(incoming, outgoing, proxy.create_initialization_options())


@asynccontextmanager
async def connect(server: str | StdioServerParameters) -> AsyncIterator[Client]:
    """Connect to the server.

    Raises:
        CommandError: It cannot be reached.
    """
    client = Client(server)
    try:
        await client.__aenter__()
    except Exception as error:
        name = server if isinstance(server, str) else server.command
        reason = _first(error)
        raise CommandError(f"{name}: {reason or type(reason).__name__}") from error
    try:
        yield client
    finally:
        await client.__aexit__(None, None, None)


def build_proxy(paid: PaidClient) -> Server[Any]:
    """Return a server that has what the paid one has: tools, resources, prompts, completions."""
    has = paid.client.server_capabilities
    bridge = _Bridge(paid)
    return Server(
        paid.client.server_info.name if paid.client.server_info else "mpp-session mcp-proxy",
        instructions=paid.client.instructions,
        on_list_tools=bridge.list_tools if has.tools else None,
        on_call_tool=bridge.call_tool if has.tools else None,
        on_list_resources=bridge.list_resources if has.resources else None,
        on_list_resource_templates=bridge.list_templates if has.resources else None,
        on_read_resource=bridge.read_resource if has.resources else None,
        on_list_prompts=bridge.list_prompts if has.prompts else None,
        on_get_prompt=bridge.get_prompt if has.prompts else None,
        on_completion=bridge.complete if has.completions else None,
    )


class _Bridge:
    """Passes requests of the host on, and pays for them."""

    def __init__(self, paid: PaidClient) -> None:
        self._paid = paid
        self._client = paid.client

    async def list_tools(self, _: _Ctx, params: PaginatedRequestParams | None) -> ListToolsResult:
        return await self._client.list_tools(cursor=_cursor(params))

    async def call_tool(self, ctx: _Ctx, params: CallToolRequestParams) -> CallToolResult:
        try:
            return await self._paid.call_tool(
                params.name, params.arguments, progress_callback=ctx.session.report_progress
            )
        except MppSessionError as error:
            return CallToolResult(
                content=[TextContent(type="text", text=f"Not paid for: {error}")], is_error=True
            )

    async def list_resources(
        self, _: _Ctx, params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        return await self._client.list_resources(cursor=_cursor(params))

    async def list_templates(
        self, _: _Ctx, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return await self._client.list_resource_templates(cursor=_cursor(params))

    async def read_resource(self, _: _Ctx, params: ReadResourceRequestParams) -> ReadResourceResult:
        return await _in_words(self._paid.read_resource(params.uri))

    async def list_prompts(
        self, _: _Ctx, params: PaginatedRequestParams | None
    ) -> ListPromptsResult:
        return await self._client.list_prompts(cursor=_cursor(params))

    async def get_prompt(self, _: _Ctx, params: GetPromptRequestParams) -> GetPromptResult:
        return await _in_words(self._paid.get_prompt(params.name, params.arguments))

    async def complete(self, _: _Ctx, params: CompleteRequestParams) -> CompleteResult:
        argument = {"name": params.argument.name, "value": params.argument.value}
        context = None if params.context is None else params.context.arguments
        return await self._client.complete(params.ref, argument, context_arguments=context)


async def _in_words(asked: Awaitable[_ResultT]) -> _ResultT:
    """Return what was asked; a refusal to pay becomes an error that the host shows."""
    try:
        return await asked
    except MppSessionError as error:
        raise MCPError(INTERNAL_ERROR, f"Not paid for: {error}") from error


def _cursor(params: PaginatedRequestParams | None) -> str | None:
    return None if params is None else params.cursor


def _first(error: BaseException) -> BaseException:
    """Return the first error of groups of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
