"""O-95: bounds of one request hold for concurrent ones, at a cap, and after a timeout."""

import asyncio
from typing import Any

import httpx
import pytest

from channel.errors import AgentError, BudgetExceededError, PaymentOutcomeUnknownError
from channel.types import Address
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import Broken, read_stream, sell_stream
from tests.channel.client.provider import Provider

PRICE = 10


def boast(provider: Provider, units: int) -> None:
    """Have every receipt say that the answer was so many units."""

    def change(fields: dict[str, Any]) -> dict[str, Any]:
        return fields | {"units": units, "spent": fields["accepted"]}

    provider.change_receipt = change


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("units", [2, 10**6, 2**52])
async def test_a_servers_count_of_units_is_bounded_in_parallel_too(
    agent: Agent, provider: Provider, count: int, units: int
) -> None:
    """O-95, F-94: a request that costs one unit counts as one, beside any other request."""
    boast(provider, units)
    for _ in range(3):
        await asyncio.gather(*(agent.client.get("/joke") for _ in range(count)))
    (account,) = await agent.payments.channels()
    assert account.received == account.units * PRICE == 3 * count * PRICE
    assert account.signed <= account.received + PRICE


@pytest.mark.parametrize("count", [1, 5])
async def test_an_answer_priced_by_the_token_counts_what_its_request_allows(
    open_agent: OpenAgent, provider: Provider, count: int
) -> None:
    """O-95: `max_tokens` of each request, and no more."""
    provider.offer = {"unit_type": "llm_token"}
    boast(provider, 10**6)
    agent = await open_agent()
    await asyncio.gather(
        *(agent.client.post("/chat", json={"max_tokens": 7}) for _ in range(count))
    )
    (account,) = await agent.payments.channels()
    assert account.received == 7 * count * PRICE
    assert account.signed <= account.received + 64 * PRICE


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
async def test_a_server_that_names_many_payees_takes_no_memory(
    open_agent: OpenAgent, provider: Provider, accept: str
) -> None:
    """Each offer made a slot that stayed, also where the deposit for it was refused."""
    agent = await open_agent(policy_of({"deposit_max": PRICE - 1}))
    for number in range(20):
        provider.offer = {"recipient": Address(number.to_bytes(20))}
        with pytest.raises(BudgetExceededError):
            await agent.client.get("/joke", headers={"Accept": accept})
    assert not agent.payer.pool.scopes
    agent = await open_agent()
    await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert set(agent.payer.pool.scopes) == {account.scope}
    await agent.payments.close()
    assert not agent.payer.pool.scopes


@pytest.mark.parametrize("cap", [640, 650, 655, 900, 901])
async def test_a_stream_ends_at_the_cap_and_is_not_signed_beyond_it(
    open_agent: OpenAgent, provider: Provider, cap: int
) -> None:
    """O-95, F-92: also what is signed ahead is held to `cumulative_max`."""
    agent = await open_agent(policy_of({"cumulative_max": cap}))
    sell_stream(provider, 200)
    with pytest.raises(BudgetExceededError, match="cumulative_max"):
        await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert account.signed <= cap
    assert max(provider.vouchers) <= cap
    assert account.received == cap // PRICE * PRICE


async def test_a_least_rise_does_not_pass_the_cap(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-95: nor does the least amount that a server asks for."""
    provider.offer = {"min_voucher_delta": 20}
    agent = await open_agent(policy_of({"cumulative_max": 25}))
    assert (await agent.client.get("/joke")).status_code == 200
    with pytest.raises(AgentError):
        await asyncio.gather(*(agent.client.get("/joke") for _ in range(5)))
    assert max(provider.vouchers) <= 25


AFTER = [httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteTimeout]


@pytest.mark.parametrize("error", AFTER)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_credential_that_left_counts_however_the_answer_was_lost(
    open_agent: OpenAgent, provider: Provider, error: type[Exception], *, is_stream: bool
) -> None:
    """O-95, F-26: the client retries once under its key, then raises, and counts it as lost."""
    if is_stream:
        sell_stream(provider, 3)
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [error("late"), error("late")]
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.post("/chat", json={"stream": is_stream})
    sent = [seen for seen in provider.paid if seen.method == "POST"]
    assert len(sent) == 2
    assert len({seen.headers["Idempotency-Key"] for seen in sent}) == 1
    (account,) = await agent.payments.channels()
    assert account.lost >= PRICE


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
async def test_a_credential_that_never_left_costs_nothing(
    open_agent: OpenAgent, provider: Provider, error: type[Exception]
) -> None:
    """O-95: and the client does not send it again."""

    class Unreachable(Broken):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "Payment " in request.headers.get("Authorization", "") and request.method == "GET":
                raise error("never sent")
            return await super().handle_async_request(request)

    agent = await open_agent(transport=Unreachable(provider))
    with pytest.raises(error):
        await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert (account.lost, account.counted) == (0, 0)
