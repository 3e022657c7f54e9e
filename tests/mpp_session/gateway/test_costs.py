"""The cost of a request in its answer's usage record: exact, and what was charged."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route as AppRoute

from channel.http import PaymentGate, Price, Route
from channel.tariff import Rate, Tariff
from channel.types import TokenUnit
from channel.wire.receipt import parse_receipt
from mpp_session.gateway.answers import PaidAnswers
from mpp_session.gateway.costs import format_whole, with_cost
from mpp_session.gateway.endpoints import CHAT
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream
from mpp_session.testing.chain import TestChain
from mpp_session.wiring import build_parts
from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway, build_config
from tests.mpp_session.gateway.test_bill import body, end, usage
from tests.mpp_session.gateway.test_input import DETAILS, RATES
from tests.mpp_session.model_server import ModelServer, chunk, sse
from tests.mpp_session.serving import serve
from tests.mpp_session.settling import settling

DUSD = TokenUnit("dUSD", 6)
ASKED: list[dict[str, Any]] = [
    {"stream_options": {"include_usage": True}},
    {"usage": {"include": True}},
]
DONE = sse("[DONE]")


@given(st.integers(0, 10**30), st.integers(0, 18))
def test_a_cost_is_written_exactly_and_without_an_exponent(amount: int, decimals: int) -> None:
    text = format_whole(amount, decimals)
    assert Fraction(text) * 10**decimals == amount
    assert re.fullmatch(r"\d+(\.\d*[1-9])?", text)


def test_nothing_else_in_an_answer_changes() -> None:
    """Numbers that no double holds, and fields that only the model server knows."""
    answer = b'{"x":1e400,"id":9999999999999999999999,"usage":{"more":[1.10],"total_tokens":3}}'
    priced = with_cost(answer, 242, {"output_token": 3}, DUSD)
    assert priced.startswith(answer[:-2])
    assert priced[len(answer) - 2 :] == (
        b',"cost":0.000242,"cost_details":{"amount":"242","usage":{"output_token":3},'
        b'"currency":"dUSD"}}}'
    )


@pytest.mark.parametrize("record", ["", ',"usage":null', ',"usage":[1]'])
def test_an_answer_without_a_usage_record_gets_one(record: str) -> None:
    priced = json.loads(with_cost(f'{{"x":1{record}}}'.encode(), 5, {}, None))
    assert priced == {"x": 1, "usage": {"cost_details": {"amount": "5", "usage": {}}}}


def records(text: str) -> list[dict[str, Any]]:
    """The usage records among the events of a stream."""
    lines = [line[6:] for line in text.splitlines() if line.startswith('data: {"')]
    return [one for line in lines if (one := json.loads(line).get("usage"))]


@pytest.mark.parametrize("rates", [{}, RATES], ids=["output", "input and output"])
async def test_an_answer_in_one_piece_states_what_it_cost(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, rates: dict[str, Any]
) -> None:
    """Its receipt says the same, in base units."""
    model.tokens, model.usage = 70, DETAILS
    async with run_gateway(**rates) as gateway, open_agent() as agent:
        answer = await agent.post(gateway.completions, json=body(max_tokens=9))
        record = answer.json()["usage"]
        spent = (await gateway.channel()).spent
        assert spent == (70 + 3000 if rates else 3 * PRICE)
        assert record["cost_details"]["amount"] == str(spent)
        assert record["cost_details"]["currency"] == "dUSD"
        assert format_whole(spent, 6) in answer.text.partition('"cost":')[2]
        assert {name: record[name] for name in DETAILS} == DETAILS
        assert parse_receipt(answer.headers["payment-receipt"]).spent == spent


@pytest.mark.parametrize("asked", ASKED, ids=["OpenAI", "OpenRouter"])
@pytest.mark.parametrize("rates", [{}, RATES], ids=["output", "input and output"])
async def test_the_last_record_of_a_stream_states_what_it_cost(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    rates: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    """litellm#13264, #27191, #38797: once, however a server reports its counts, or does not."""
    wrong = {}
    async with run_gateway(**rates) as gateway, open_agent() as agent:
        before = 0
        for name, pieces in STREAMS.items():
            model.tokens, model.pieces = 7, pieces
            payload = body(stream=True, max_tokens=200, **asked)
            answer = await agent.post(gateway.completions, json=payload)
            spent = (await gateway.channel()).spent - before
            before += spent
            found = [one for one in records(answer.text) if "cost" in one]
            costs = [one["cost_details"]["amount"] for one in found]
            if costs != [str(spent)] or not answer.text.count("data: [DONE]"):
                wrong[name] = (costs, spent, answer.text)
            elif Decimal(str(found[0]["cost"])).scaleb(6) != spent:
                wrong[name] = (found, spent, answer.text)
    assert wrong == {}


LATE = sse(json.dumps({"choices": [], "usage": DETAILS}))
WITH_CHOICES = chunk(content="x").replace("}]}", f'}}], "usage": {json.dumps(DETAILS)}}}')
STREAMS: dict[str, list[str]] = {
    "reported at the end": [chunk(content="x"), end(), usage(3), DONE],
    "reported with details": [chunk(content="x"), end(), LATE, DONE],
    "reported with choices": [WITH_CHOICES, end(), DONE],
    "never reported": [chunk(content="x"), end(), DONE],
    "never reported, in lumps": [chunk(content="word " * 40), end(), DONE],
    "reported beyond a step": [chunk(content="word " * 20), end(), usage(70), DONE],
    "reported twice": [chunk(content="x"), end(), usage(1), usage(3), DONE],
    "reported as nothing": [chunk(content="x"), end(), usage(0), DONE],
    "empty": [chunk(role="assistant"), end(), DONE],
    "without an end": [chunk(content="x"), end(), usage(3)],
}


async def test_a_record_keeps_what_the_model_server_reported_with_choices(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """litellm#36083, #36168: cached tokens must not be lost, whichever chunk brings them."""
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        for name in ("reported with details", "reported with choices"):
            model.tokens, model.pieces = 70, STREAMS[name]
            payload = body(stream=True, max_tokens=9, **ASKED[0])
            answer = await agent.post(gateway.completions, json=payload)
            last = records(answer.text)[-1]
            assert {key: last[key] for key in DETAILS} == DETAILS, name


async def test_several_choices_have_one_record_of_all(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """llama.cpp reports each choice by itself; OpenAI's clients expect the sum."""
    reported = {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7}
    record = sse(json.dumps({"choices": [], "usage": reported}))
    model.pieces = [
        *[chunk(index=index, content=word) for index in (0, 1) for word in ("x", "y")],
        *[end(0), record, end(1), record, DONE],
    ]
    async with run_gateway(upstream__counts="llama.cpp") as gateway, open_agent() as agent:
        payload = body(stream=True, max_tokens=9, n=2, **ASKED[0])
        answer = await agent.post(gateway.completions, json=payload)
        (said,) = records(answer.text)
        assert said["completion_tokens"] == 4
        assert said["total_tokens"] == 9
        assert said["cost_details"]["amount"] == str(4 * PRICE)
        assert (await gateway.channel()).spent == 4 * PRICE


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_paid_answer_names_its_request_and_a_free_refusal_does_not(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    names = set()
    async with run_gateway() as gateway, open_agent() as agent:
        for _ in range(2):
            payload = body(stream=is_stream, max_tokens=9)
            answer = await agent.post(gateway.completions, json=payload)
            names.add(answer.headers["x-generation-id"])
        assert len(names) == 2
        assert all(re.fullmatch(r"gen-[0-9a-f]{16,64}", name) for name in names)
        model.answer = JSONResponse({"error": "busy"}, 429, {"x-generation-id": "gen-forged"})
        refused = await agent.post(gateway.completions, json=body(stream=is_stream, max_tokens=9))
        assert refused.status_code == 429
        assert "x-generation-id" not in refused.headers


async def test_a_request_is_charged_by_the_tariff_that_it_was_paid_under(
    devnet: TestChain, model: ModelServer, tmp_path: Path, open_agent: OpenAgent
) -> None:
    """One endpoint under two prices: the handler knows none, and asks the challenge that paid."""
    config = build_config(devnet, model.url, tmp_path)

    def by_query(scope: Mapping[str, Any]) -> Price:
        name = scope["query_string"].decode()
        price = {"a": 25, "b": 40}[name]
        return Price(tariff=Tariff((Rate("output_token", price),)), variant=name)

    async with (
        settling(config),
        build_parts(config) as parts,
        Upstream.connect(config.upstream) as upstream,
    ):
        readiness = Readiness(upstream, config.upstream)
        answers = PaidAnswers(upstream, config.upstream, readiness, parts.unit)
        gate = PaymentGate(
            Starlette(
                routes=[AppRoute(CHAT.path, partial(answers.answer, CHAT), methods=["POST"])]
            ),
            engine=parts.engine,
            routes=[Route(method="POST", path=CHAT.path, price=by_query, metered=True)],
        )
        async with serve(gate) as url, open_agent() as agent:
            for name, cost in (("a", 75), ("b", 120), ("a", 75)):
                answer = await agent.post(f"{url}{CHAT.path}?{name}", json=body(max_tokens=9))
                assert answer.json()["usage"]["cost_details"]["amount"] == str(cost)
