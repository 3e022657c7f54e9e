"""`GET /v1/generation`: the cost of a paid request, from the accounts, for its client alone."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from channel.ledger.accounts import ChargeRow
from channel.limits import GENERATIONS_PER_SECOND_MAX
from channel.state.charges import ChargeOutcome
from channel.types import Address, TokenUnit
from mpp_session.gateway.generation import describe_generation, read_answer_id
from tests.channel.books import KEY
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway
from tests.mpp_session.gateway.dialects import DIALECTS
from tests.mpp_session.model_server import ModelServer

ROWS: list[dict[str, Any]] = [{"model": "small", "output": "0.40", "input": "0.10"}]
REQUEST = {"model": "small", "messages": [{"role": "user", "content": "Hello"}]}
ID = "gen-" + "0" * 32
ROW = ChargeRow(
    row_id=1,
    at=1_800_000_000,
    key=KEY,
    payer=Address(b"\xa1" * 20),
    payee=Address(b"\xb2" * 20),
    token=Address(b"\xc3" * 20),
    reservation_id=b"r" * 16,
    outcome=ChargeOutcome.DONE,
    is_stream=True,
    route="POST /v1/chat/completions",
    variant="small",
    usage={"input_token": 7, "cached_input_token": 2, "output_token": 3, "reasoning_token": 5},
    response_id="chatcmpl-1",
    amount=242,
)


def test_counts_are_named_as_openrouter_names_them() -> None:
    unit = TokenUnit("USDC", 6)
    assert msgspec.json.decode(msgspec.json.encode(describe_generation(ID, [ROW], unit))) == {
        "id": ID,
        "upstream_id": "chatcmpl-1",
        "model": "small",
        "created_at": "2027-01-15T08:00:00Z",
        "streamed": True,
        "cancelled": False,
        "outcome": "done",
        "total_cost": 0.000242,
        "usage": 0.000242,
        "cost_details": {"amount": "242", "currency": "USDC", "usage": dict(ROW.usage or {})},
        "tokens_prompt": 9,
        "tokens_completion": 8,
        "native_tokens_prompt": 9,
        "native_tokens_cached": 2,
        "native_tokens_completion": 8,
        "native_tokens_reasoning": 5,
    }


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, set()),
        ({"llm_chunk": 3}, set()),
        ({"output_token": 3}, {"tokens_completion", "native_tokens_completion"}),
    ],
)
def test_what_is_unknown_is_left_out_and_never_zero(
    usage: dict[str, int] | None, counts: set[str]
) -> None:
    row = msgspec.structs.replace(
        ROW, usage=usage, variant="", response_id="", outcome=ChargeOutcome.LEFT
    )
    data = describe_generation(ID, [row, row], None)
    assert {name for name in data if "tokens" in name} == counts
    assert data["cancelled"]
    assert data["cost_details"]["amount"] == "484"
    assert not {"model", "upstream_id", "total_cost", "usage"} & data.keys()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'{"id": "chatcmpl-1", "choices": []}', "chatcmpl-1"),
        (b'{"choices": []}', ""),
        (b'{"id": 7}', ""),
        (b'{"type": "response.created", "response": {"id": "resp_1"}}', "resp_1"),
        (b"no JSON", ""),
    ],
)
def test_the_id_of_an_answer_is_its_text_or_nothing(answer: bytes, found: str) -> None:
    assert read_answer_id(answer) == found


@pytest.mark.parametrize("stream", [False, True])
async def test_the_id_of_an_answer_tells_what_the_ledger_charged(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    stream: bool,  # noqa: FBT001 - of the request
) -> None:
    model.usage = {"completion_tokens": 3, "prompt_tokens": 7}
    model.tokens = 7
    async with (
        run_gateway(prices__rows=ROWS) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as other,
    ):
        paid = await agent.post(gateway.completions, json={**REQUEST, "stream": stream})
        assert paid.status_code == 200, paid.text
        url, params = f"{gateway.url}/v1/generation", {"id": paid.headers["x-generation-id"]}
        answer = await other.get(url, params=params)
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"]
        state = await gateway.channel()
        assert data["cost_details"]["amount"] == str(state.spent)
        assert (data["id"], data["streamed"], data["outcome"]) == (params["id"], stream, "done")
        for secret in (state.key.channel_id, state.terms.payer):
            assert secret.hex() not in answer.text
        assert answer.headers["cache-control"] == "private, no-store"


STATED = "chatcmpl-" + "x" * 32


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_a_stream_is_found_by_the_id_that_its_chunks_state(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, path: str
) -> None:
    """Unless several answers state it, or it is so short that it could be guessed."""
    async with (
        run_gateway(prices__rows=ROWS) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as other,
    ):
        url = f"{gateway.url}/v1/generation"
        dialect = DIALECTS["chat" if path.startswith("chat") else "responses"]
        for name, status in (("short", 400), (STATED, 200), (STATED, 404)):
            pieces = dialect.stream(["x"], dialect.usage(1))
            stated = [one.replace('{"object"', f'{{"id": "{name}", "object"') for one in pieces]
            model.pieces = [one.replace('"id": "r"', f'"id": "{name}"') for one in stated]
            fields = {**dialect.prompt(), "model": "small", "stream": True}
            paid = await agent.post(f"{gateway.url}/v1/{path}", json=fields)
            assert name in paid.text
            answer = await other.get(url, params={"id": name})
            assert answer.status_code == status, answer.text
            if status == 200:
                data = answer.json()["data"]
                assert (data["id"], data["upstream_id"], data["streamed"]) == (name, name, True)
                by_header = {"id": paid.headers["x-generation-id"]}
                same = (await other.get(url, params=by_header)).json()["data"]
                assert same == {**data, **by_header}
        assert "Several answers" in answer.json()["detail"]


async def test_what_is_no_id_or_unknown_is_refused_and_many_questions_too(
    run_gateway: RunGateway,
) -> None:
    """GENERATIONS_PER_SECOND_MAX."""
    async with run_gateway() as gateway, httpx.AsyncClient() as client:
        url = f"{gateway.url}/v1/generation"
        unknown = await client.get(url, params={"id": ID})
        assert unknown.status_code == 404
        assert unknown.json()["type"].endswith("/generation-unknown")
        assert (await client.get(url, params={"id": ID[4:]})).status_code == 404
        for text in ("", "gen-", ID + "0", "gen-" + "g" * 32, "x" * 257):
            assert (await client.get(url, params={"id": text})).status_code == 400
        asked = [client.get(url, params={"id": ID}) for _ in range(3 * GENERATIONS_PER_SECOND_MAX)]
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert 429 in statuses


async def test_without_rows_there_is_no_such_path(run_gateway: RunGateway) -> None:
    async with run_gateway(ledger__charges=False) as gateway, httpx.AsyncClient() as client:
        answer = await client.get(f"{gateway.url}/v1/generation", params={"id": ID})
        assert answer.json()["type"].endswith("/not-found")
