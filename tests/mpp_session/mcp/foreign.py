"""A paid MCP server that another project might have written, and that can be made to lie.

It speaks the draft and nothing more, on the books of the paper provider of the client's tests.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from mcp import Client, MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp_types import Completion
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from channel.client.funding.keys import OneKey
from channel.client.funding.signer import LocalSigner
from channel.client.http.transport import PayingTransport
from channel.client.payment.payer import Payer
from channel.client.payments import Payments
from channel.client.policy.policy import Policy
from channel.client.store.sqlite import PaymentStore
from channel.wire.challenge import parse_challenges
from mpp_session.agent.client import PayingClient
from mpp_session.mcp.client import PaidClient, paying
from mpp_session.mcp.wire import (
    CREDENTIAL,
    IDEMPOTENCY_KEY,
    RECEIPT,
    challenge_object,
    format_credential_header,
    receipt_object,
)
from tests.channel.client.conftest import policy_of
from tests.channel.client.provider import BASE, CHAIN_ID, NOW, PAYER_KEY, PaperChain, Provider

__all__ = ["Stranger", "open_tools"]


class Stranger:
    """The server; each attribute that a test sets is one way to differ."""

    def __init__(self) -> None:
        self.chain = PaperChain()
        self.provider = Provider(self.chain)
        self.capability: Mapping[str, Any] = {}
        self.demands_by_result = False
        """Whether a demand is a result with `isError`."""
        self.extra_challenges: list[object] = []
        """Sent before its own."""
        self.has_problem = True
        self.fails: MCPError | None = None
        """Raised instead of the next result, after that was paid for."""
        self.loses: MCPError | None = None
        """Raised instead of the next answer to a credential, which was charged."""
        self.sells = "tools/call"
        """The method whose requests have a price."""
        self.ran = 0

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Serve one message."""
        if ctx.method in ("initialize", "server/discover"):
            return self._described(await call_next(ctx))
        params = ctx.params or {}
        if ctx.method != self.sells:
            return await call_next(ctx)
        meta = params.get("_meta") or {}
        paid = CREDENTIAL in meta
        if paid and self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        response = await self._ask(meta)
        if not response.is_success:
            return self._demand(response, paid=paid)
        if self.loses is not None:
            error, self.loses = self.loses, None
            raise error
        result: dict[str, Any] = {"content": []}
        if response.content:
            self.ran += 1
            result["content"] = [{"type": "text", "text": "because"}]
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            result["resultType"] = "complete"
        result["_meta"] = {RECEIPT: receipt_object(response.headers["Payment-Receipt"])}
        return result

    async def _ask(self, meta: Mapping[str, Any]) -> httpx.Response:
        headers = {}
        if CREDENTIAL in meta:
            headers["Authorization"] = format_credential_header(meta[CREDENTIAL])
        if IDEMPOTENCY_KEY in meta:
            headers["Idempotency-Key"] = meta[IDEMPOTENCY_KEY]
        request = httpx.Request("POST", f"{BASE}/tools/call/search", headers=headers, content=b"{}")
        return await self.provider.handle_async_request(request)

    def _demand(self, response: httpx.Response, *, paid: bool) -> dict[str, Any]:
        lines = response.headers.get_list("WWW-Authenticate")
        own = [challenge_object(challenge) for challenge in parse_challenges(lines)]
        data: dict[str, Any] = {
            "httpStatus": response.status_code,
            "challenges": [*self.extra_challenges, *own],
        }
        if self.has_problem:
            data["problem"] = msgspec.json.decode(response.content)
        if self.demands_by_result:
            meta = {"org.paymentauth/payment-required": data}
            return {"content": [], "isError": True, "_meta": meta}
        raise MCPError(-32043 if paid else -32042, "Payment Required", data)

    def _described(self, result: HandlerResult) -> HandlerResult:
        assert isinstance(result, dict)
        if self.capability:
            result["capabilities"]["experimental"] = {"payment": dict(self.capability)}
        return result


@asynccontextmanager
async def open_tools(
    stranger: Stranger, path: Path, *, mode: str = "legacy", policy: Policy | None = None
) -> AsyncIterator[PaidClient]:
    """Open a client of the real package that pays from the paper chain's account."""
    server: MCPServer[Any] = MCPServer("stranger", middleware=[stranger])

    @server.tool(structured_output=False)
    async def search(query: str) -> str:
        raise AssertionError(f"the middleware answers: {query}")

    @server.resource("data://free/{name}")
    async def page(name: str) -> str:
        return f"page {name}"

    @server.prompt()
    async def advice(about: str) -> str:
        return f"Buy {about}."

    @server.completion()  # type: ignore[no-untyped-call,untyped-decorator] # it has no types
    async def complete(*_: Any) -> Completion:
        return Completion(values=["bonds"])

    async def sleep(_: float) -> None:
        return

    store = await PaymentStore.open(path / "store.db")
    payer = Payer(
        policy=policy or policy_of(),
        keys=OneKey(LocalSigner(PAYER_KEY)),
        store=store,
        chains={CHAIN_ID: stranger.chain},
        now=lambda: NOW,
        sleep=sleep,
    )
    nowhere = httpx.MockTransport(lambda _: httpx.Response(500))
    wallet = PayingClient(
        payments=Payments(payer, nowhere), transport=PayingTransport(payer, nowhere)
    )
    try:
        async with (
            Client(server, mode=mode) as client,
            paying(client, wallet, server=f"{BASE}/mcp") as tools,
        ):
            yield tools
    finally:
        await store.close()
