"""O-04: a prompt has a price. It is reserved before the model reads it, and charged once it has."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.responses import JSONResponse

from channel.limits import RESERVATION_STEP_UNITS
from channel.wire.receipt import parse_receipt
from channel.wire.sse import parse_event_usage
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway, Running
from tests.mpp_session.gateway.test_bill import body, end
from tests.mpp_session.model_server import ModelServer, chunk, sse
from tests.waiting import until

INPUT, OUTPUT = 1, 1000  # base units a token, so that `spent` tells both counts
RATES: dict[str, Any] = {"price__per_unit": None, "price__input": "1", "price__output": "1000"}
DONE = sse("[DONE]")
ROLE = chunk(role="assistant")


async def spent(gateway: Running) -> tuple[int, int]:
    """Input and output tokens that are charged; nothing is reserved any more."""
    state = await gateway.channel()
    assert not state.reserved
    output, read = divmod(state.spent, OUTPUT)
    return read, output


def statements(text: str) -> list[Any]:
    """The usage that each event with a choice states; None where it states none."""
    blocks = text.split("\n\n")
    return [parse_event_usage(f"{block}\n".encode()) for block in blocks if "choices" in block]


def receipt_usage(headers: Mapping[str, str]) -> Any:
    return parse_receipt(headers["payment-receipt"]).usage


async def test_the_first_sold_event_states_input_and_output(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    model.tokens = 7
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        answer = await agent.post(gateway.completions, json=body(stream=True, max_tokens=9))
        assert answer.status_code == 200
        assert "data: [DONE]" in answer.text
        role, first, *others = statements(answer.text)
        assert role == 0
        assert first == {"input_token": 7, "output_token": 1}
        assert others == [None, None]
        assert await spent(gateway) == (7, 3)


async def test_a_payer_counts_what_the_usage_record_adds(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """Tokens that no chunk shows are sold with the record that tells of them."""
    model.tokens, model.pieces = 7, [WORD, end(), usage(4, 9), DONE]
    payload = body(stream=True, max_tokens=9, stream_options={"include_usage": True})
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        answer = await agent.post(gateway.completions, json=payload)
        assert statements(answer.text)[-1] == {"input_token": 2, "output_token": 3}
        assert await spent(gateway) == (9, 4)


@pytest.mark.parametrize("counts", [(7, 9, 9), (7, 5, 7), (None, 9, 9)])
async def test_an_answer_in_one_piece_is_charged_the_larger_count(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    counts: tuple[int | None, int, int],
) -> None:
    """Of its tokenizer's and its usage's; without a tokenizer the usage alone decides."""
    counted, reported, charged = counts
    model.tokens, model.usage = counted, {"completion_tokens": 3, "prompt_tokens": reported}
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        answer = await agent.post(gateway.completions, json=body(max_tokens=9))
        assert answer.status_code == 200
        assert receipt_usage(answer.headers) == {"input_token": charged, "output_token": 3}
        assert await spent(gateway) == (charged, 3)


def usage(made: int, read: int) -> str:
    counts = {"completion_tokens": made, "prompt_tokens": read}
    return sse(json.dumps({"choices": [], "usage": counts}))


WORD = chunk(content="word")
OVER = sse(json.dumps({"error": {"message": "no GPU"}}))

STREAMS: dict[str, tuple[int | None, list[str], tuple[int, int]]] = {
    "counted, and never reported": (7, [WORD, end(), DONE], (7, 1)),
    "reported alone": (None, [WORD, end(), usage(1, 9), DONE], (9, 1)),
    "reported beyond the count": (7, [WORD, end(), usage(1, 9), DONE], (9, 1)),
    "reported below the count": (7, [WORD, end(), usage(1, 2), DONE], (7, 1)),
    "reported absurdly": (None, [WORD, end(), usage(1, 10**9), DONE], (-1, 1)),
    "an empty answer": (7, [ROLE, end(), usage(0, 7), DONE], (7, 0)),
    "an empty answer, reported alone": (None, [end(), usage(0, 7), DONE], (7, 0)),
    "an error alone": (7, [OVER, DONE], (0, 0)),
    "an error in mid-stream": (7, [WORD, OVER], (7, 1)),
    "a stream that breaks off before output": (7, [ROLE], (0, 0)),
    "usage in the first chunk": (
        None,
        [WORD.replace("}]}", '}], "usage": {"completion_tokens": 1, "prompt_tokens": 9}}'), DONE],
        (9, 1),
    ),
}


async def test_a_stream_is_charged_for_what_the_model_read(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """Also when its answer is empty, but not when the model server fails before an answer."""
    wrong, before = {}, 0
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        for name, (counted, pieces, expected) in STREAMS.items():
            model.tokens, model.pieces = counted, pieces
            gateway.gateway._readiness.outages += 1  # noqa: SLF001 -- its tokenizer comes and goes
            payload = json.dumps(body(stream=True, max_tokens=9)).encode()
            headers = {"content-type": "application/json"}
            answer = await agent.post(gateway.completions, content=payload, headers=headers)
            state = await gateway.channel()
            output, read = divmod(state.spent - before, OUTPUT)
            before = state.spent
            most = len(payload) + 64
            charged = (-1 if read == most else read, output)
            if (answer.status_code, charged, state.reserved) != (200, expected, 0):
                wrong[name] = (answer.text, charged, state.reserved)
    assert wrong == {}


@pytest.mark.parametrize("is_stream", [True, False])
async def test_prompt_and_first_output_are_reserved_before_the_model_runs(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    model.tokens = 700
    model.may_answer.clear()
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        payload = body(stream=is_stream, max_tokens=40)
        payload["messages"] = [{"role": "user", "content": "word " * 700}]
        asking = asyncio.create_task(agent.post(gateway.completions, json=payload))
        await until(lambda: _has(model.seen))
        output = RESERVATION_STEP_UNITS if is_stream else 40
        assert (await gateway.channel()).reserved >= 700 * INPUT + output * OUTPUT
        model.may_answer.set()
        assert (await asking).status_code == 200
        assert await spent(gateway) == (700, 3)


async def test_the_prompt_stays_reserved_until_the_first_output(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """Another request on the channel cannot take what the model has read meanwhile."""
    model.tokens, model.delay_s = 700, 0.4
    model.pieces = [ROLE, ROLE, chunk(content="x"), end(), DONE]
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        payload = body(stream=True, max_tokens=40)
        payload["messages"] = [{"role": "user", "content": "word " * 700}]
        async with agent.stream("POST", gateway.completions, json=payload) as response:
            async for line in response.aiter_lines():
                state = await gateway.channel()
                if "assistant" in line:
                    assert (state.spent, state.reserved >= 700 + 32 * OUTPUT) == (0, True)
        assert await spent(gateway) == (700, 1)


async def _has(found: list[Any]) -> bool:
    return bool(found)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_before_its_answer_pays_for_its_prompt(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    model.tokens = 7
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(max_tokens=9))
        assert await spent(gateway) == (7, 3)
        model.may_answer.clear()
        payload = body(stream=is_stream, max_tokens=9)
        asking = asyncio.create_task(agent.post(gateway.completions, json=payload))
        await until(lambda: _has(model.seen[1:]))
        asking.cancel()

        async def is_paid() -> bool:
            state = await gateway.channel()
            return not state.reserved and state.spent == 14 * INPUT + 3 * OUTPUT

        await until(is_paid)
        model.may_answer.set()


async def test_a_client_that_leaves_in_the_middle_pays_for_its_prompt_once(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """A prompt that only the end would have reported is charged by its bytes."""
    model.pieces = [ROLE, WORD, *[": quiet\n\n"] * 10_000]
    model.delay_s = 0.01
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        payload = json.dumps(body(stream=True, max_tokens=9)).encode()
        headers = {"content-type": "application/json"}
        async with agent.stream(
            "POST", gateway.completions, content=payload, headers=headers
        ) as response:
            async for line in response.aiter_lines():
                if "word" in line:
                    break

        async def is_over() -> bool:
            return not (await gateway.channel()).reserved

        await until(is_over)
        assert await spent(gateway) == (-(-len(payload) // 4), 1)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_what_the_model_server_refuses_is_free(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    model.tokens = 7
    model.answer = JSONResponse({"error": {"message": "too long"}}, 400)
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        payload = body(stream=is_stream, max_tokens=9)
        assert (await agent.post(gateway.completions, json=payload)).status_code == 400
        assert await spent(gateway) == (0, 0)


DETAILS = {
    "completion_tokens": 3,
    "prompt_tokens": 70,
    "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


@pytest.mark.parametrize("is_stream", [True, False])
async def test_cached_and_reasoning_tokens_have_their_own_rates(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    """As the server's usage reports them: 10 read, 40 cached, 20 written, 1 made, 2 thought."""
    model.tokens, model.usage = 70, DETAILS
    model.pieces = [WORD, end(), sse(json.dumps({"choices": [], "usage": DETAILS})), DONE]
    shares = {"price__cached_input": "0.5", "price__cache_write": "2", "price__reasoning": "900"}
    async with run_gateway(**RATES, **shares) as gateway, open_agent() as agent:
        payload = body(stream=is_stream, max_tokens=9)
        payload["messages"] = [{"role": "user", "content": "word " * 70}]
        answer = await agent.post(gateway.completions, json=payload)
        assert answer.status_code == 200
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (10 + 20 + 40 + 1000 + 1800, 0)


async def test_without_a_price_for_input_the_tokenizer_is_not_asked_and_the_wire_is_as_before(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """Old clients know one unit, and count it by the model server's own chunks."""
    model.tokens = 7
    async with run_gateway() as gateway, open_agent() as agent:
        answer = await agent.post(gateway.completions, json=body(stream=True, max_tokens=9))
        assert "payment-u" not in answer.text
        assert "usage" not in answer.text.partition("payment-receipt")[2]
        assert (await gateway.channel()).spent == 3 * 25
    assert model.tokenized == 0
