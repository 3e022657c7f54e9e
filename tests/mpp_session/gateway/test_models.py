"""`GET /v1/models`, and that everything which shows a price shows the same one."""

import html
from decimal import Decimal
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError
from starlette.responses import JSONResponse, Response

from channel.methods.evm.method import EVM
from channel.wire.challenge import parse_challenges
from channel.wire.receipt import parse_receipt
from channel.wire.tariff import tariff_object
from mpp_session.settings import describe_tariff
from mpp_session.settings.price_rows import read_price_rows
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway, Running
from tests.mpp_session.model_server import ModelServer

ROWS: list[dict[str, Any]] = [
    {"model": "cheap", "output": "0.40"},
    {"model": "dear-*", "output": "900", "input": "1", "cached_input": "0.125"},
    {"model": "least", "output": "0.40", "minimum": "0.00002"},
]
MODELS = ["cheap", "dear-1", "least"]
USAGE = {"completion_tokens": 3, "prompt_tokens": 7}


@pytest.fixture
def served(model: ModelServer) -> ModelServer:
    model.models_served = ["tiny", "dear-1"]
    model.usage = USAGE
    model.tokens = USAGE["prompt_tokens"]
    return model


async def test_it_lists_what_is_sold(run_gateway: RunGateway, served: ModelServer) -> None:
    async with run_gateway(prices__rows=ROWS) as gateway, httpx.AsyncClient() as client:
        answer = await client.get(f"{gateway.url}/v1/models")
        assert [one["id"] for one in answer.json()["data"]] == MODELS
        await client.get(f"{gateway.url}/v1/models")
        openai = AsyncOpenAI(api_key="none", base_url=f"{gateway.url}/v1")
        assert [one.id async for one in openai.models.list()] == MODELS
        assert (await openai.models.retrieve("dear-1")).id == "dear-1"
        with pytest.raises(NotFoundError, match="'other' is not sold here"):
            await openai.models.retrieve("other")
        await openai.close()
        assert await gateway.channels() == []
    assert [one.path for one in served.seen] == ["/v1/models"]  # asked once, within some seconds


async def test_one_model_is_free_with_the_prices_of_the_list(run_gateway: RunGateway) -> None:
    rows = [{"model": "org/small", "output": "0.40"}]
    async with run_gateway(prices__rows=rows) as gateway, httpx.AsyncClient() as client:
        (listed,) = (await client.get(f"{gateway.url}/v1/models")).json()["data"]
        for name in ("org/small", "org%2Fsmall"):
            answer = await client.get(f"{gateway.url}/v1/models/{name}")
            assert (answer.status_code, answer.json()) == (200, listed)
        missing = await client.get(f"{gateway.url}/v1/models/org")
        assert (missing.status_code, missing.json()["status"]) == (404, 404)
        assert missing.json()["type"].endswith("/model-not-sold")


async def test_without_patterns_the_model_server_is_not_asked(
    run_gateway: RunGateway, served: ModelServer
) -> None:
    async with (
        run_gateway(prices__rows=[ROWS[0]]) as gateway,
        httpx.AsyncClient() as client,
    ):
        answer = await client.get(f"{gateway.url}/v1/models")
        assert [one["id"] for one in answer.json()["data"]] == ["cheap"]
    assert served.seen == []


@pytest.mark.parametrize(
    "answer",
    [
        Response(status_code=500),
        JSONResponse({"data": [{"name": "x"}]}),
        Response(b"[" * 5000),
        Response(b"\xff"),
    ],
)
async def test_an_unreadable_list_of_the_model_server_is_an_error(
    run_gateway: RunGateway, served: ModelServer, answer: Response
) -> None:
    served.models_answer = answer
    async with run_gateway(prices__rows=ROWS) as gateway, httpx.AsyncClient() as client:
        found = await client.get(f"{gateway.url}/v1/models")
        assert found.status_code == 502


@pytest.mark.usefixtures("served")
async def test_all_that_shows_or_charges_a_price_agrees(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    """For each row: challenge, models' list, discovery, quote, and what a request is charged."""
    async with (
        run_gateway(prices__rows=ROWS, upstream__counts="vllm") as gateway,
        open_agent() as agent,
    ):
        await require_agreement(gateway, agent, ROWS)


async def require_agreement(gateway: Running, agent: Any, rows: list[dict[str, Any]]) -> None:
    unit = gateway.parts.unit
    assert unit is not None
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        listed = {one["id"]: one for one in (await client.get("/v1/models")).json()["data"]}
        document = (await client.get("/openapi.json")).json()
        operation = document["paths"]["/v1/chat/completions"]["post"]
        offers = operation["x-payment-info"]["offers"]
        texts = [html.unescape((await client.get(path)).text) for path in ("/llms.txt", "/")]
        assert len(offers) == len(rows)
        for row, offer in zip(read_price_rows(rows), offers, strict=True):
            model = row.model.replace("*", "1")
            tariff = row.tariff(unit)
            asked = await client.post("/v1/chat/completions", json=body(model))
            (challenge,) = parse_challenges(asked.headers.get_list("www-authenticate"))
            request = EVM.parse_request(challenge.request)
            assert request.pricing == tariff
            assert asked.json()["price"][0]["display"] in offer["description"]
            assert offer["amount"] == str(request.unit_price)
            assert offer["description"].startswith(f"{row.model}: ")
            assert all(asked.json()["price"][0]["display"] in text for text in texts)
            entry = listed[model]
            assert entry["prices"][0]["tariff"] == tariff_object(tariff)
            assert entry["prices"][0]["display"] == describe_tariff(tariff, unit)
            require_decimal(entry["pricing"]["completion"], tariff.cost({tariff.main.kind: 10**9}))
            quote = await agent.payments.quote(
                agent.build_request("POST", f"{gateway.url}/v1/chat/completions", json=body(model))
            )
            assert quote.tariff == tariff
            before = sum(one.spent for one in await gateway.channels())
            answer = await agent.post(f"{gateway.url}/v1/chat/completions", json=body(model))
            assert answer.status_code == 200
            used = {"output_token": USAGE["completion_tokens"]}
            used |= {"input_token": USAGE["prompt_tokens"]} if row.input is not None else {}
            cost = tariff.cost(used)
            spent = sum(one.spent for one in await gateway.channels())
            assert spent - before == cost
            receipt = parse_receipt(answer.headers["payment-receipt"])
            assert receipt.spent == spent
            assert (receipt.usage or {"output_token": receipt.units or 0}) == used
            assert answer.json()["usage"]["cost_details"]["amount"] == str(cost)


def require_decimal(text: str, cost: int) -> None:
    """Check a price of one token in dollars against the cost of 10^9 tokens in base units."""
    assert Decimal(text) * 10**15 == cost


def body(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 16,
    }


@pytest.mark.usefixtures("served")
async def test_they_still_agree_when_prices_have_changed(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    rows = [{**ROWS[0], "output": "0.80"}, {**ROWS[1], "input": "2"}]
    async with run_gateway(prices__rows=ROWS, upstream__counts="vllm") as gateway:
        async with open_agent() as agent:
            await agent.post(gateway.completions, json=body("cheap"))
        gateway.gateway.replace_prices(read_price_rows(rows))
        async with open_agent() as agent:  # a client that remembers no challenge
            await require_agreement(gateway, agent, rows)
