"""What a caller of httpx sees, and what a hostile server gets."""

import asyncio

from tests.channel.client.conftest import Agent
from tests.channel.client.provider import PaperChain, Provider


async def test_a_paid_request_looks_like_any_other(agent: Agent, provider: Provider) -> None:
    response = await agent.client.get("/joke")
    assert response.json() == {"text": "because"}
    assert [seen.method for seen in provider.seen] == ["GET", "HEAD", "GET"]


async def test_a_known_route_is_paid_at_once(agent: Agent, provider: Provider) -> None:
    await agent.client.get("/joke")
    provider.seen.clear()
    await agent.client.get("/joke")
    assert len(provider.seen) == 1
    assert provider.vouchers == [20]


async def test_twenty_parallel_requests_open_one_channel(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-41."""
    responses = await asyncio.gather(*(agent.client.get("/joke") for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
    assert len(chain.deposited) == 1
    (books,) = provider.books.values()
    assert books.spent == books.accepted == 200


async def test_a_stream_is_paid_as_it_comes_and_its_control_events_stay_hidden(
    agent: Agent, provider: Provider
) -> None:
    """VCH-08, CLIENT-07: the caller sees content only."""
    provider.tokens = 200
    provider.offer = {"unit_type": "llm_token"}
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        text = (await response.aread()).decode()
    assert text.count('"content"') == 200
    assert "payment-" not in text
    assert text.endswith("data: [DONE]\n\n")
    (books,) = provider.books.values()
    assert books.spent == 2_000
    (account,) = await agent.payments.channels()
    assert account.spent == account.received == 2_000
    assert account.units == 200


async def test_a_close_pays_what_was_spent_and_no_more(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """CLOSE-06."""
    provider.tokens = 70
    provider.offer = {"unit_type": "llm_token"}
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        await response.aread()
    (account,) = await agent.payments.close()
    assert account.state == "closed"
    assert list(chain.closed_at.values()) == [700]
    assert account.signed > 700
    assert account.refund == account.deposit - 700
