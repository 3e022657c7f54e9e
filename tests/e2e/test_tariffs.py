"""Requests with several rates, sold by the gate and paid for by the client, on a real chain."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from channel.errors import BudgetExceededError, OfferRefusedError, OverclaimError
from channel.http import Event, PaidEventStream, Price, Route, metered
from channel.state.channel_state import ChannelState
from channel.tariff import Rate, Tariff
from channel.types import TokenUnit
from channel.wire.receipt import parse_receipt
from mpp_session.agent.client import PayingClient
from mpp_session.agent.pay import Wallet, pay
from mpp_session.cli.pay import _received
from mpp_session.testing import TestChain, TestPayer, TestProvider

pytestmark = pytest.mark.timeout(120)

MODEL = Tariff(
    (
        Rate("output_token", 400_000, 10**6),
        Rate("input_token", 100_000, 10**6),
        Rate("cached_input_token", 10_000, 10**6),
    ),
    minimum=3,
)
PRICE = Price(
    rates={
        "output_token": "0.40 / 1M",
        "input_token": "0.10 / 1M",
        "cached_input_token": "0.01 / 1M",
    },
    minimum="0.000003",
)
CAPS: dict[str, int | str] = {
    "output_token": "0.60 / 1M",
    "input_token": "0.10 / 1M",
    "cached_input_token": "0.10 / 1M",
    "row": 5,
    "request": 100,
}


class Shop:
    """A model that reads as many tokens as the request says, and rows in batches."""

    def __init__(self) -> None:
        self.extra = 0
        """Tokens of input that it charges beyond those it read: a lie."""

    async def chat(self, request: Request) -> Response:
        asked = await request.json()
        used = {"input_token": asked["input"] + self.extra, "cached_input_token": 7}
        if asked.get("stream"):
            return PaidEventStream(self._words(asked["output"], used))
        async with metered(request.scope) as meter:
            await meter.hold(**used, output_token=asked["max_tokens"])
            await meter.spend(**used, output_token=asked["output"])
        return JSONResponse({"text": "word " * asked["output"]})

    async def _words(self, count: int, used: dict[str, int]) -> AsyncIterator[Event | str]:
        yield Event(_chunk(), usage={**used, "output_token": 1})
        for _ in range(count - 1):
            yield _chunk()
        yield Event("[DONE]", units=0)

    async def rows(self, _request: Request) -> Response:
        async def batches() -> AsyncIterator[Event]:
            for size in (500, 500, 120):
                yield Event(json.dumps(["row"] * size), usage={"row": size})

        return PaidEventStream(batches())


def _chunk() -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": "word "}}]})


def serve(provider: TestProvider, shop: Shop, price: Price = PRICE) -> str:
    app = Starlette(
        routes=[
            Endpoint("/chat", shop.chat, methods=["POST"]),
            Endpoint("/rows", shop.rows, methods=["POST"]),
        ]
    )
    rows = Price(unit_price=2, unit_type="row")
    return provider.serve(
        app,
        [
            Route(method="POST", path="/chat", price=price, metered=True),
            Route(method="POST", path="/rows", price=rows, metered=True),
        ],
    )


async def stream(client: PayingClient, url: str, body: dict[str, Any]) -> str:
    async with client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        return (await response.aread()).decode()


async def require_equal(client: PayingClient, provider: TestProvider, cost: int) -> ChannelState:
    """Check that books, receipt and the client's own count say the same."""
    (account,) = await client.payments.channels()
    (state,) = await asyncio.to_thread(provider.channels)
    assert (state.spent, account.spent, account.received) == (cost, cost, cost)
    assert state.reserved == 0
    return state


async def test_a_stream_is_paid_by_input_and_output(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    """1,000 output tokens, 57 of input and 7 cached: 405.77, rounded up once."""
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    async with payer.client(payer.policy(CAPS)) as client:
        body = {"stream": True, "input": 57, "output": 1000, "prompt": "x" * 100}
        text = await stream(client, f"{url}/chat", body)
        assert text.count("content") == 1000
        cost = MODEL.cost({"output_token": 1000, "input_token": 57, "cached_input_token": 7})
        await require_equal(client, sponsoring_provider, cost)
        again = await stream(client, f"{url}/chat", body | {"output": 1})
        assert again.count("content") == 1
        await require_equal(client, sponsoring_provider, cost + 7)
        (account,) = await client.payments.channels()
        usage = {"output_token": 1, "input_token": 57, "cached_input_token": 7}
        assert parse_receipt(account.receipt).usage == usage


async def test_an_answer_in_one_piece_is_paid_by_input_and_output(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    async with payer.client(payer.policy(CAPS)) as client:
        body = {"input": 57, "output": 35, "max_tokens": 100, "prompt": "x" * 100}
        cost = 0
        for _ in range(3):
            answer = await client.post(f"{url}/chat", json=body)
            answer.raise_for_status()
            receipt = parse_receipt(answer.headers["Payment-Receipt"])
            usage = {"output_token": 35, "input_token": 57, "cached_input_token": 7}
            assert receipt.usage == usage
            cost += MODEL.cost(usage)
        await require_equal(client, sponsoring_provider, cost)


async def test_a_short_request_costs_the_minimum(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    async with payer.client(payer.policy(CAPS)) as client:
        body = {"input": 1, "output": 1, "max_tokens": 1}
        (await client.post(f"{url}/chat", json=body)).raise_for_status()
        await require_equal(client, sponsoring_provider, 3)


async def test_a_long_prompt_is_covered_by_the_first_deposit(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    """Input of 50,000 tokens costs more than what 1,000 output tokens do."""
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    async with payer.client(payer.policy(CAPS)) as client:
        body = {"stream": True, "input": 50_000, "output": 10, "prompt": "x" * 60_000}
        await stream(client, f"{url}/chat", body)
        cost = MODEL.cost({"input_token": 50_000, "cached_input_token": 7, "output_token": 10})
        await require_equal(client, sponsoring_provider, cost)


async def test_requests_beside_a_stream_share_one_exact_account(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    """F-94: input in flight of each, on one channel; each is rounded up for itself."""
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    async with payer.client(payer.policy(CAPS)) as client:
        body = {"input": 157, "prompt": "x" * 200}

        async def ask() -> None:
            short = body | {"output": 35, "max_tokens": 100}
            (await client.post(f"{url}/chat", json=short)).raise_for_status()

        await asyncio.gather(
            stream(client, f"{url}/chat", body | {"stream": True, "output": 700}),
            *(ask() for _ in range(12)),
        )
        used = {"input_token": 157, "cached_input_token": 7}
        cost = 12 * MODEL.cost(used | {"output_token": 35})
        cost += MODEL.cost(used | {"output_token": 700})
        await require_equal(client, sponsoring_provider, cost)


async def test_rows_are_sold_in_batches(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    """O-09: `Event(usage={"row": 500})`, under a policy whose step is a batch."""
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    policy = replace(payer.policy(CAPS), voucher_steps={"row": 500})
    async with payer.client(policy) as client:
        text = await stream(client, f"{url}/rows", {})
        assert text.count('"row"') == 1120
        await require_equal(client, sponsoring_provider, 2240)


async def test_a_quote_is_never_exceeded(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    """Before anything is paid, and the same once the offer is known."""
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    async with payer.client(payer.policy(CAPS)) as client:
        body = {"stream": True, "input": 57, "output": 100, "max_tokens": 100, "prompt": "x" * 100}
        request = client.build_request("POST", f"{url}/chat", json=body)
        quote = await client.payments.quote(request)
        assert await client.payments.channels() == []
        prompt = len(request.content) + 64
        assert quote.usage == {
            "output_token": 200,
            "input_token": prompt,
            "cached_input_token": prompt,
        }
        assert quote.amount == MODEL.cost({"output_token": 200, "input_token": prompt})
        assert quote.tariff == MODEL
        assert quote.unit is not None
        assert str(quote) == f"at most {quote.unit.format(quote.amount)}"
        answer = await client.send(request)
        assert answer.status_code == 200
        (account,) = await client.payments.channels()
        assert 0 < account.spent <= quote.amount
        assert await client.payments.quote(request) == quote
        whole = client.build_request("POST", f"{url}/chat", json={"stream": True})
        assert (await client.payments.quote(whole)).usage["output_token"] is None
        assert (await client.payments.quote(whole)).amount == payer.policy().limits[0].deposit_max


async def test_a_price_above_a_cap_is_refused_in_money(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    async with payer.client(payer.policy(CAPS | {"input_token": "0.05 dusd / 1M"})) as client:
        with pytest.raises(OfferRefusedError, match=r"tariff\.input_token 0\.10 dUSD / 1M; the"):
            await client.post(f"{url}/chat", json={})
        with pytest.raises(OfferRefusedError, match=r"at most 0\.05 dUSD / 1M"):
            await client.payments.quote(client.build_request("POST", f"{url}/chat", json={}))
        assert await client.payments.channels() == []


@pytest.mark.parametrize("is_stream", [False, True])
async def test_input_beyond_the_prompt_is_not_paid(
    sponsoring_provider: TestProvider, payer: TestPayer, *, is_stream: bool
) -> None:
    """F-94: a server that charges a million tokens for a short prompt gets its bound, at most."""
    shop = Shop()
    shop.extra = 10**6
    url = await asyncio.to_thread(serve, sponsoring_provider, shop)
    async with payer.client(payer.policy(CAPS)) as client:
        body = {"stream": is_stream, "input": 5, "output": 5, "max_tokens": 10}
        with pytest.raises(OverclaimError):
            await stream(client, f"{url}/chat", body)
        (account,) = await client.payments.channels()
        prompt = len(json.dumps(body)) + 64
        bound = MODEL.cost({"output_token": 20, "input_token": prompt})
        step = 26
        assert account.signed <= bound + step


async def test_the_budget_holds_for_input(
    sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    """F-96."""
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    policy = payer.policy(CAPS)
    policy = replace(policy, limits=(replace(policy.limits[0], budget=50),))
    async with payer.client(policy) as client:
        body = {"stream": True, "input": 900, "output": 5, "prompt": "x" * 1000}
        with pytest.raises(BudgetExceededError):
            await stream(client, f"{url}/chat", body)
        (account,) = await client.payments.channels()
        assert account.signed <= 50


async def test_pay_shows_prices_and_usage_by_kind(
    devnet: TestChain, sponsoring_provider: TestProvider, payer: TestPayer
) -> None:
    """Money by the million, as people quote it; base units are for programs."""
    url = await asyncio.to_thread(serve, sponsoring_provider, Shop())
    wallet = Wallet(
        rpc_url=devnet.values.rpc_url,
        private_key=payer.account.private_key,
        policy=payer.policy(CAPS),
        unit=TokenUnit("dUSD", 6),
        store=payer.store,
    )
    body = {"stream": True, "input": 57, "output": 35, "prompt": "x" * 100}
    outcome = await pay(
        f"{url}/chat",
        json.dumps(body).encode(),
        wallet,
        store=payer.store,
        keep_open=False,
        show=lambda _: None,
    )
    usage = {"input_token": 57, "cached_input_token": 7, "output_token": 35}
    assert (outcome.paid, outcome.usage) == (MODEL.cost(usage), usage)
    assert outcome.prices == [
        "0.40 dUSD / 1M output tokens",
        "0.10 dUSD / 1M input tokens",
        "0.01 dUSD / 1M cached input tokens",
    ]
    assert _received(outcome) == "57 input tokens, 7 cached input tokens, 35 output tokens"


def test_the_sync_client_quotes(sponsoring_provider: TestProvider, payer: TestPayer) -> None:
    url = serve(sponsoring_provider, Shop())
    with payer.sync_client(payer.policy(CAPS)) as client:
        request = httpx.Request("POST", f"{url}/rows", json={"max_tokens": 10})
        quote = client.payments.quote(request)
        assert (quote.amount, quote.usage, quote.amounts) == (20, {"row": 10}, {"row": 20})
