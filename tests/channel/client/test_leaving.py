"""O-11: what is signed beyond what arrived is little, and shown before a payer leaves."""

import asyncio
import logging

import pytest

from tests.channel.client.conftest import Agent
from tests.channel.client.exchanges import read_stream, sell_stream
from tests.channel.client.provider import PaperChain, Provider

ASKS_FOR_BOTH = {"Accept": "application/json, text/event-stream"}


async def test_a_payer_is_warned_before_it_leaves(
    agent: Agent, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """O-11: delivered and signed side by side, before anything is sent."""
    sell_stream(provider, 5)
    await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert (account.counted, account.signed, account.ahead) == (50, 650, 600)
    with caplog.at_level(logging.WARNING, "channel.client.payments"):
        await agent.payments.request_close(account.key.channel_id)
    assert "50 base units delivered, 650 signed" in caplog.text


async def test_a_payer_that_signed_for_what_arrived_is_not_warned(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    """O-11: fixed prices run no step ahead."""
    for _ in range(3):
        await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert account.ahead == 0
    await agent.payments.request_close(account.key.channel_id)
    assert [r for r in caplog.records if r.name.startswith("channel.")] == []


async def test_a_channel_is_left_by_one_transaction(agent: Agent, chain: PaperChain) -> None:
    """The escrow takes any number: an agent of a wallet could spend all of the account's gas."""
    await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    which = account.key.channel_id
    left = await asyncio.gather(*(agent.payments.request_close(which) for _ in range(5)))
    left.append(await agent.payments.request_close(which))
    assert chain.close_requests == 1
    assert {(one.state, one.close_requested_at > 0) for one in left} == {("closing", True)}
    await agent.payments.withdraw(which)
    assert (await agent.payments.request_close(which)).state == "closed"
    assert chain.close_requests == 1


@pytest.mark.parametrize("body", [{}, {"stream": False}])
async def test_nothing_is_signed_ahead_where_nothing_streams(
    agent: Agent, provider: Provider, body: dict[str, bool]
) -> None:
    """O-11: clients that accept both, as every MCP client does, signed a step for each answer."""
    provider.offer = {"unit_type": "llm_token"}
    for _ in range(3):
        assert (
            await agent.client.post("/chat", json=body | {"max_tokens": 1}, headers=ASKS_FOR_BOTH)
        ).is_success
    (account,) = await agent.payments.channels()
    assert account.ahead == 0


async def test_a_stream_that_was_not_announced_is_paid_as_it_arrives(
    agent: Agent, provider: Provider
) -> None:
    """O-11: signed ahead from its beginning, and not before."""
    sell_stream(provider, 200)
    answer = await agent.client.post("/chat", json={}, headers=ASKS_FOR_BOTH)
    assert answer.text.count("content") == 200
    assert provider.vouchers[0] == 10
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 2_000
