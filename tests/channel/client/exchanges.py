"""What the tests of the paying client send, and connections that fail under it."""

import httpx

from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.client.conftest import Agent
from tests.channel.client.provider import (
    Provider,
    Seen,
)


def sell_stream(provider: Provider, tokens: int) -> None:
    provider.tokens = tokens
    provider.offer = {"unit_type": "llm_token"}


async def read_stream(agent: Agent, path: str = "/chat") -> str:
    async with agent.client.stream("POST", path, json={"stream": True}) as response:
        response.raise_for_status()
        return (await response.aread()).decode()


class Broken(httpx.AsyncBaseTransport):
    """Lets some exchanges fail: after the request was sent, or before."""

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        self.failures: list[Exception] = []
        """Raised one by one for answers to paid content requests."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_paid = "Payment " in request.headers.get("Authorization", "")
        if not is_paid or request.method == "HEAD" or not self.failures:
            return await self.inner.handle_async_request(request)
        failure = self.failures.pop(0)
        if not isinstance(failure, httpx.ConnectError):
            await self.inner.handle_async_request(request)
        raise failure


def only_voucher(seen: Seen) -> bool:
    return seen.credential is not None and isinstance(seen.credential.payload, VoucherPayload)
