"""Every endpoint is sold by the same rules: counted, charged before it is passed on, explained."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from channel.wire.receipt import parse_receipt
from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway
from tests.mpp_session.gateway.dialects import DIALECTS, Dialect
from tests.mpp_session.gateway.test_input import RATES
from tests.mpp_session.model_server import ModelServer
from tests.waiting import until

WORDS = ["one", " two", " three"]
EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
INPUT_ALONE: dict[str, Any] = {"price__per_unit": None, "price__input": "1", "price__output": "1"}
ASKS = {"stream_options": {"include_usage": True}}


@EVERY
async def test_a_stream_is_paid_event_by_event_and_arrives_whole(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """SSE-04: the last record states what was charged, and only the last."""
    model.pieces = dialect.stream(WORDS, dialect.usage(3))
    async with run_gateway() as gateway, open_agent() as agent:
        payload = dialect.ask(stream=True, **{dialect.bound: 20}, **ASKS)
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert answer.status_code == 200, answer.text
        assert dialect.texts_of(answer.text) == "one two three"
        assert answer.headers["x-generation-id"].startswith("gen-")
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (3 * PRICE, 0)
        assert dialect.costs(answer.text) == [str(3 * PRICE)]
        (account,) = await agent.payments.channels()
        assert account.units == 3
    assert model.seen[0].path == dialect.path


@EVERY
async def test_input_and_output_of_a_stream_have_their_own_prices(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """litellm#38176: no endpoint passes by the prices of another."""
    model.pieces = dialect.stream(WORDS, dialect.usage(4, read=9))
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        payload = dialect.ask(stream=True, **{dialect.bound: 20}, **ASKS)
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (4 * 1000 + 9, 0), answer.text
        assert dialect.costs(answer.text) == [str(state.spent)]


@EVERY
@pytest.mark.parametrize("rates", [{}, RATES], ids=["output", "input and output"])
async def test_an_answer_in_one_piece_costs_its_usage_and_says_so(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    dialect: Dialect,
    rates: dict[str, Any],
) -> None:
    model.whole = dialect.whole("one two three", dialect.usage(5, read=9))
    async with run_gateway(**rates) as gateway, open_agent() as agent:
        payload = dialect.ask(**{dialect.bound: 20})
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert answer.status_code == 200, answer.text
        spent = (await gateway.channel()).spent
        assert spent == (5 * 1000 + 9 if rates else 5 * PRICE)
        stated = answer.json()
        assert stated["usage"]["cost_details"]["amount"] == str(spent)
        assert {**stated, "usage": None} == {**model.whole, "usage": None}
        assert parse_receipt(answer.headers["payment-receipt"]).spent == spent


@EVERY
@pytest.mark.parametrize("is_stream", [True, False])
async def test_what_the_model_server_refuses_is_free(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    dialect: Dialect,
    *,
    is_stream: bool,
) -> None:
    model.answer = JSONResponse({"error": {"message": "no such model"}}, 404)
    async with run_gateway() as gateway, open_agent() as agent:
        payload = dialect.ask(stream=is_stream, **{dialect.bound: 5})
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert answer.status_code == 404
        assert "no such model" in answer.text
        assert (await gateway.channel()).spent == 0


@EVERY
async def test_only_known_fields_reach_the_model_server(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """O-03: a payer must not choose how much a unit contains."""
    model.whole = dialect.whole("x", dialect.usage(1))
    evading = {"n_predict": 4000, "min_tokens": 900, "ignore_eos": True, "N": 7, "cost": 0}
    async with run_gateway() as gateway, open_agent() as agent:
        payload = dialect.ask(**{dialect.bound: 5}, temperature=0.5, **evading)
        assert (await agent.post(gateway.url + dialect.path, json=payload)).status_code == 200
    sent = model.seen[0].body
    assert evading.keys().isdisjoint(sent)
    assert sent["temperature"] == 0.5
    assert sent[dialect.bound] == 5


@EVERY
@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_before_its_answer_pays_for_its_prompt(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    dialect: Dialect,
    *,
    is_stream: bool,
) -> None:
    """new-api#5235: not the whole pre-charge, and not nothing. The model server stops."""
    model.whole = dialect.whole("x", dialect.usage(1, read=9))
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        url = gateway.url + dialect.path
        await agent.post(url, json=dialect.ask(**{dialect.bound: 5}))
        before = (await gateway.channel()).spent
        model.may_answer.clear()
        payload = dialect.ask(stream=is_stream, **{dialect.bound: 5})
        asking = asyncio.create_task(agent.post(url, json=payload))

        async def has_begun() -> bool:
            return len(model.seen) > 1

        await until(has_begun)
        asking.cancel()

        async def is_paid() -> bool:
            state = await gateway.channel()
            return not state.reserved and state.spent > before

        await until(is_paid)
        size = len(httpx.Request("POST", url, json=payload).content)
        assert (await gateway.channel()).spent - before == -(-size // 4)
        model.may_answer.set()


@EVERY
async def test_a_request_without_a_bound_gets_the_default(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """O-44: also where the endpoint calls the bound otherwise."""
    model.whole = dialect.whole("x", dialect.usage(1))
    async with run_gateway() as gateway, open_agent() as agent:
        await agent.post(gateway.url + dialect.path, json=dialect.ask())
        assert model.seen[0].body[dialect.bound] == 1024


async def test_events_of_a_response_keep_their_names_and_nothing_is_added(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    dialect = DIALECTS["responses"]
    model.pieces = dialect.stream(WORDS, dialect.usage(3))
    async with run_gateway() as gateway, open_agent() as agent:
        payload = dialect.ask(stream=True, max_output_tokens=20)
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        named = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
        data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        types = [json.loads(one).get("type") for one in data if "[DONE]" not in one]
        assert named == types
        assert named[-1] == "response.completed"
        assert "data: [DONE]" not in answer.text
    assert model.seen[0].body["store"] is False


async def test_a_response_is_counted_where_its_server_counts_it(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """A prompt of which neither count nor usage is known is charged by its bytes."""
    dialect = DIALECTS["responses"]
    model.whole = dialect.whole("x", {"output_tokens": 1})
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        payload = json.dumps(dialect.ask(max_output_tokens=5)).encode()
        headers = {"content-type": "application/json"}
        url = gateway.url + dialect.path
        answer = await agent.post(url, content=payload, headers=headers)
        assert answer.status_code == 200
        assert (await gateway.channel()).spent == 1000 + -(-len(payload) // 4)


EMBEDDED = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 1e-7]}],
    "usage": {"prompt_tokens": 9, "total_tokens": 9},
}


async def test_embeddings_cost_what_they_read(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    model.whole = EMBEDDED
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        asked = {"model": "tiny", "input": ["hello there"], "encoding_format": "base64", "x": 1}
        answer = await agent.post(f"{gateway.url}/v1/embeddings", json=asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"] == EMBEDDED["data"]
        assert answer.json()["usage"]["cost_details"] == {
            "amount": "9",
            "currency": "dUSD",
            "usage": {"input_token": 9},
        }
        assert (await gateway.channel()).spent == 9
        del asked["x"]
        assert model.seen[0].body == asked


@pytest.mark.parametrize(
    ("given", "charged"),
    [([1, 2, 3, 4], 4), ([[1, 2], [3]], 3)],
    ids=["tokens", "lists of tokens"],
)
async def test_tokens_as_numbers_are_their_own_count(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, given: Any, charged: int
) -> None:
    """A server that reports nothing of them is paid for what it was sent."""
    model.whole = {"data": EMBEDDED["data"]}
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        answer = await agent.post(f"{gateway.url}/v1/embeddings", json={"input": given})
        assert answer.status_code == 200, answer.text
        assert (await gateway.channel()).spent == charged


@pytest.mark.parametrize(
    "answer", [{"data": []}, {"error": {"message": "no GPU"}}, {"usage": {"prompt_tokens": 4}}]
)
async def test_an_answer_without_an_embedding_is_not_sold(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, answer: dict[str, Any]
) -> None:
    model.whole = answer
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        got = await agent.post(f"{gateway.url}/v1/embeddings", json={"input": "hello"})
        assert got.status_code == 502
        assert (await gateway.channel()).spent == 0


async def test_embeddings_are_not_sold_where_input_is_free(
    run_gateway: RunGateway, model: ModelServer
) -> None:
    """An unknown price is never 0."""
    async with run_gateway() as gateway, httpx.AsyncClient() as client:
        answer = await client.post(f"{gateway.url}/v1/embeddings", json={"input": "hello"})
        assert answer.status_code == 404
        described = (await client.get(f"{gateway.url}/openapi.json")).json()["paths"]
        assert "/v1/embeddings" not in described
        assert "/v1/completions" in described
    assert model.seen == []


@pytest.mark.parametrize("is_stream", [True, False])
async def test_every_prompt_of_a_list_has_answers_of_its_own(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    """O-02: two prompts of two answers are reserved and charged as four."""
    texts = [{"index": index, "text": "word", "finish_reason": "stop"} for index in range(4)]
    usage = {"completion_tokens": 4, "prompt_tokens": 6}
    model.whole = {"choices": texts, "usage": usage}
    events = [{"choices": [one]} for one in texts]
    model.pieces = [f"data: {json.dumps(one)}\n\n" for one in [*events, {"usage": usage}]]
    model.pieces += ["data: [DONE]\n\n"]
    async with run_gateway(upstream__counts="usage", **RATES) as gateway, open_agent() as agent:
        asked = {"prompt": ["a b c", "d e f"], "n": 2, "max_tokens": 3, "stream": is_stream}
        answer = await agent.post(f"{gateway.url}/v1/completions", json=asked)
        assert answer.status_code == 200, answer.text
        assert (await gateway.channel()).spent == 4000 + 6
        assert (await gateway.channel()).accepted >= (1000 if is_stream else 12_000)


async def test_the_check_of_usage_sees_each_request_and_its_difference(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """litellm#37923, helm-api#6: too little is found out, and unknown is not 0."""
    dialect = DIALECTS["chat"]
    async with run_gateway() as gateway, open_agent() as agent:
        for made in (3, 0, None):
            usage = None if made is None else dialect.usage(made)
            model.pieces = dialect.stream(["x"] * 20, usage)
            payload = dialect.ask(stream=True, max_tokens=30)
            await agent.post(gateway.completions, json=payload)
        totals = gateway.gateway.answers.check.totals[("chat.completions", "tiny")]
        assert (totals.requests, totals.unreported, totals.large) == (3, 1, 2)
        assert (totals.more, totals.less) == (17 + 20, 0)
