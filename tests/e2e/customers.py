"""A customer of running gateways who does each step by hand: asks, signs, sends, and reads."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from channel.wire.challenge import Challenge, parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    Payload,
)
from channel.wire.sse import EventSplitter, parse_event
from settlement.dev.devnet import Devnet
from tests.e2e.selling import Payer

PATH = "/v1/chat/completions"

Events = AsyncIterator[tuple[str, str]]


class Customer:
    """One channel, and connections to whichever gateway a call names."""

    def __init__(self, chain: Devnet, client: httpx.AsyncClient) -> None:
        self.chain = chain
        self.payer = Payer(chain)
        self.client = client
        self._source = (chain.values.chain_id, self.payer.address)
        self._challenge: Challenge | None = None

    async def challenge(self, url: str) -> Challenge:
        """Ask a gateway for a new offer."""
        answer = await self.client.post(url + PATH, json={})
        assert answer.status_code == 402
        self._challenge = parse_challenges(answer.headers.get_list("www-authenticate"))[0]
        return self._challenge

    async def authorize(self, url: str, payload: Payload) -> dict[str, str]:
        """Answer the last offer of any gateway."""
        challenge = self._challenge or await self.challenge(url)
        return {"authorization": format_credential(Credential(challenge, payload, self._source))}

    async def open(self, url: str, deposit: int, amount: int = 0) -> None:
        """Open a channel on chain, and take it to a gateway."""
        await self.payer.open(deposit)
        answer = await self.manage(url, self.payer.opening(amount))
        assert answer.status_code == 200, answer.text

    async def manage(self, url: str, payload: Payload) -> httpx.Response:
        """Send what is no request for content."""
        headers = await self.authorize(url, payload)
        return await self.client.head(url + PATH, headers=headers)

    async def buy(
        self, url: str, amount: int, *, headers: dict[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        """Buy an answer in one piece."""
        paid = await self.authorize(url, self.payer.voucher(amount))
        content = {"messages": [], "max_tokens": 8, **body}
        return await self.client.post(url + PATH, json=content, headers=paid | (headers or {}))

    @contextlib.asynccontextmanager
    async def stream(self, url: str, amount: int, **body: Any) -> AsyncIterator[httpx.Response]:
        """Begin to buy a stream."""
        headers = await self.authorize(url, self.payer.voucher(amount))
        content = {"messages": [], "stream": True, **body}
        async with self.client.stream("POST", url + PATH, json=content, headers=headers) as answer:
            yield answer

    @contextlib.asynccontextmanager
    async def events(self, url: str, amount: int, **body: Any) -> AsyncIterator[Events]:
        """Buy a stream, and read its events with their names; content is a `message`."""
        async with self.stream(url, amount, **body) as answer:
            assert answer.status_code == 200, await answer.aread()
            yield read_events(answer)


async def read_events(answer: httpx.Response) -> Events:
    """Yield name and data of each event."""
    splitter = EventSplitter()
    async for piece in answer.aiter_bytes():
        for block in splitter.feed(piece):
            event = parse_event(block)
            if event is not None:
                yield event
