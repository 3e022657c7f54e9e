"""O-12, O-42: under an SDK that retries, an answer is paid once and a refusal is final."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import openai
import pytest

from channel.client.http.transport import PayingTransport
from channel.errors import BudgetExceededError, OfferRefusedError, PaymentOutcomeUnknownError
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import Broken
from tests.channel.client.provider import BASE, PaperChain, Provider, Seen

MESSAGES: Any = [{"role": "user", "content": "Why?"}]


def sdk_of(client: httpx.AsyncClient, *, retries: int = 2) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{BASE}/v1",
        api_key="unused",
        max_retries=retries,
        http_client=cast("Any", client),
    )


async def complete(sdk: openai.AsyncOpenAI) -> Any:
    return await sdk.chat.completions.create(model="m", messages=MESSAGES)


@pytest.mark.parametrize("losses", [2, 4])
async def test_an_sdk_that_retries_a_lost_answer_pays_for_it_once(
    open_agent: OpenAgent, provider: Provider, losses: int
) -> None:
    """O-12: the SDK sends no key, or a new one each time; the answer is the first one's."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [httpx.ReadTimeout("lost") for _ in range(losses)]
    assert (await complete(sdk_of(agent.client))).text == "because"
    keys = {seen.headers["Idempotency-Key"] for seen in provider.paid if seen.method == "POST"}
    assert len(keys) == 1
    (books,) = provider.books.values()
    assert books.spent == 10
    # The next call is another one.
    assert (await complete(sdk_of(agent.client))).text == "because"
    assert books.spent == 20


async def test_an_answer_that_is_still_being_made_is_asked_for_under_the_same_key(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-12: the first attempt is lost, the retries come too early, and it is paid for once."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [httpx.ReadTimeout("lost")]
    early = iter(range(9))

    def busy(seen: Seen) -> httpx.Response | None:
        is_again = len([one for one in provider.paid if one.method == "POST"]) > 1
        if seen.method == "POST" and is_again and next(early, None) is not None:
            return provider.refuse("request-in-flight", 409)
        return None

    provider.override = busy
    assert (await complete(sdk_of(agent.client))).text == "because"
    (books,) = provider.books.values()
    assert books.spent == 10


async def test_a_caller_that_stopped_waiting_and_asks_again_pays_once(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-12: as a proxy's client does that disconnects; the server may have served it."""
    agent = await open_agent()
    await agent.client.get("/joke")  # the channel is there
    (books,) = provider.books.values()
    spent, arrived = books.spent, asyncio.Event()

    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await provider.handle_async_request(request)
            arrived.set()
            await asyncio.Event().wait()  # never an answer
            raise AssertionError

    transport = PayingTransport(agent.payer, silent := Swapped(Silent()))
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        left = asyncio.create_task(client.post("/joke", content=b"1"))
        await arrived.wait()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        silent.inner = provider
        assert (await client.post("/joke", content=b"1")).status_code == 200
        assert books.spent == spent + 10
        assert (await client.post("/joke", content=b"1")).status_code == 200
        assert books.spent == spent + 20


class Swapped(httpx.AsyncBaseTransport):
    """Sends through another transport, which a test may replace."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.inner.handle_async_request(request)


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"model": "m"}'])
async def test_a_caller_that_repeats_a_lost_request_pays_for_it_once(
    open_agent: OpenAgent, provider: Provider, body: bytes
) -> None:
    """O-12: for any client that retries, not only for an SDK that announces it."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [httpx.ReadTimeout("lost") for _ in range(2)]
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.post("/joke", content=body)
    assert (await agent.client.post("/joke", content=body + b" ")).status_code == 200
    assert (await agent.client.post("/joke", content=body)).status_code == 200
    assert (await agent.client.post("/joke", content=body)).status_code == 200
    (books,) = provider.books.values()
    assert books.spent == 3 * 10


async def test_equal_calls_that_are_lost_together_are_each_paid_for_once(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-12: three samples of one prompt at a time; only the last one's key was remembered."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    await agent.client.get("/joke")  # the channel is there
    (books,) = provider.books.values()
    spent = books.spent
    broken.failures = [httpx.ReadTimeout("lost") for _ in range(6)]
    sdk = sdk_of(agent.client, retries=4)
    answers = await asyncio.gather(*[complete(sdk) for _ in range(3)])
    assert [answer.text for answer in answers] == ["because"] * 3
    keys = {seen.headers["Idempotency-Key"] for seen in provider.paid if seen.method == "POST"}
    assert len(keys) == 3
    assert books.spent == spent + 3 * 10


async def test_a_lost_key_is_forgotten_after_a_while(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-12: an equal request much later is another one."""
    clock = [provider.now()]
    provider.now = lambda: clock[0]
    broken = Broken(provider)
    agent = await open_agent(transport=broken, now=lambda: clock[0])
    broken.failures = [httpx.ReadTimeout("lost") for _ in range(2)]
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    clock[0] += 601
    assert (await agent.client.get("/joke")).status_code == 200
    keys = {seen.headers["Idempotency-Key"] for seen in provider.paid if seen.method == "GET"}
    assert len(keys) == 2


REFUSALS: dict[str, dict[str, Any]] = {
    "price": {"limits": {"unit_price_max": {"request": 9}}},
    "budget": {"limits": {"budget": 9}},
    "deposit": {"limits": {"deposit_max": 9}},
    "money": {"means": {"balance": 0}},
    "gas": {"means": {"can_pay_gas": False}},
}


@pytest.mark.parametrize("why", REFUSALS)
async def test_an_sdk_shows_why_nothing_was_paid_and_tries_no_more(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, why: str
) -> None:
    """O-42: the openai SDK said "Connection error." after its retries."""
    chain.means = REFUSALS[why].get("means", {})
    agent = await open_agent(policy_of(REFUSALS[why].get("limits")))
    with pytest.raises(openai.APIStatusError) as caught:
        await complete(sdk_of(agent.client))
    assert caught.value.status_code == 402
    body = cast("dict[str, str]", caught.value.body)
    assert "api.example" in body["message"]
    assert body["message"] in str(caught.value).replace("\\'", "'")
    assert body["code"] in ("offer_refused", "budget_exceeded", "cannot_fund")
    assert len(provider.seen) == 1


async def test_an_sdk_that_never_gets_an_answer_says_that_it_was_paid_for(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-42, O-12: retried as ever, and then the key is what the developer reads."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [httpx.ReadTimeout("lost") for _ in range(20)]
    with pytest.raises(openai.InternalServerError, match="the answer was lost"):
        await complete(sdk_of(agent.client, retries=1))
    (books,) = provider.books.values()
    assert books.spent == 10


@asynccontextmanager
async def client_of(agent: Agent, provider: Provider, *, how: bool) -> AsyncIterator[Any]:
    transport = PayingTransport(agent.payer, provider, answers_refusals=how)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


async def test_who_uses_httpx_gets_exceptions_unless_answers_are_asked_for(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-42: the switch for SDKs that do not say what they are, and for those who do."""
    agent = await open_agent(policy_of({"unit_price_max": {"request": 9}}))
    sdk = {"X-Stainless-Lang": "python"}
    with pytest.raises(OfferRefusedError):
        await agent.client.get("/joke")
    assert (await agent.client.get("/joke", headers=sdk)).status_code == 402
    async with client_of(agent, provider, how=True) as client:
        answer = await client.get("/joke")
        assert (answer.status_code, answer.headers["X-Should-Retry"]) == (402, "false")
        assert "amount per request" in answer.json()["error"]["message"]
    async with client_of(agent, provider, how=False) as client:
        with pytest.raises(OfferRefusedError):
            await client.get("/joke", headers=sdk)


async def test_a_budget_that_ends_in_mid_stream_says_so(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-42: what is iterated over raises as it is."""
    provider.tokens = 200
    provider.offer = {"unit_type": "llm_token"}
    agent = await open_agent(policy_of({"budget": 700}))
    stream = await sdk_of(agent.client).chat.completions.create(
        model="m", messages=MESSAGES, stream=True
    )
    with pytest.raises(BudgetExceededError):
        async for _ in stream:
            pass
