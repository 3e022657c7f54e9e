"""Streams of every kind of server, replayed: what is delivered is charged (O-03, O-46 to O-48)."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway
from tests.mpp_session.model_server import ModelServer, chunk, sse
from tests.waiting import until

MESSAGES = [{"role": "user", "content": "hello"}]
DONE = sse("[DONE]")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, **fields}


def end(index: int = 0, **fields: Any) -> str:
    choice = {"index": index, "delta": {}, "finish_reason": "stop"}
    return sse(json.dumps({"choices": [choice], **fields}))


def usage(tokens: int, **fields: Any) -> str:
    return sse(json.dumps({"choices": [], "usage": {"completion_tokens": tokens}, **fields}))


def logprobs(tokens: int) -> str:
    content = [{"token": "x", "logprob": -1.0}] * tokens
    choice = {"index": 0, "delta": {"content": ""}, "logprobs": {"content": content}}
    return sse(json.dumps({"choices": [choice]}))


WORDS = "word " * 100

STREAMS: dict[str, tuple[list[str], int]] = {
    "speculative decoding": ([chunk(content="a b c d"), chunk(content=" e"), end(), usage(6)], 6),
    "one chunk for all": ([chunk(content=WORDS), end(), usage(100)], 100),
    "one chunk for all, usage on it": (
        [
            sse(
                json.dumps(
                    {
                        "choices": [
                            {"index": 0, "delta": {"content": WORDS}, "finish_reason": "stop"}
                        ],
                        "usage": {"completion_tokens": 100},
                    }
                )
            )
        ],
        100,
    ),
    "one chunk for all, never counted": ([chunk(content=WORDS), end()], 120),
    "text in logprobs alone": ([logprobs(30), logprobs(12), end()], 42),
    "hidden reasoning": ([chunk(content="42"), end(), usage(40)], 40),
    "hidden reasoning in the total alone": (
        [
            chunk(content="42"),
            end(),
            sse(
                json.dumps(
                    {
                        "choices": None,
                        "usage": {"completion_tokens": 1, "prompt_tokens": 5, "total_tokens": 45},
                    }
                )
            ),
        ],
        40,
    ),
    "stop holds all of it back": ([chunk(role="assistant"), end(), usage(50)], 50),
    "empty deltas": ([chunk(content="")] * 9 + [chunk(content="x"), end(), usage(2)], 2),
    "tool calls": (
        [chunk(tool_calls=[{"index": 0, "function": {"arguments": "{"}}])] * 4 + [end(), usage(9)],
        9,
    ),
    "usage of nothing": ([chunk(content="x")] * 3 + [end(), usage(0)], 3),
    "usage below nothing": ([chunk(content="x")] * 3 + [end(), usage(-7)], 3),
    "usage beyond all bounds": ([chunk(content="x")] * 3 + [end(), usage(10**12)], 3),
    "usage with `choices: null`": (
        [chunk(content="x"), end(), usage(2, choices=None).replace("[]", "null")],
        2,
    ),
    "usage twice": ([chunk(content="x"), end(), usage(2), usage(4)], 4),
    "an error in mid-stream": ([chunk(content="x"), sse('{"error": {"message": "gone"}}')], 1),
}


UNSEEN = {name for name in STREAMS if name.startswith(("text in logprobs", "hidden", "stop"))}
"""A payer cannot see what it pays for here, and pays a step of it on a channel, not more."""


@pytest.mark.parametrize("has_done", [True, False])
@pytest.mark.parametrize("names", [STREAMS.keys() - UNSEEN, *({name} for name in sorted(UNSEEN))])
async def test_a_stream_is_charged_what_was_made(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    names: set[str],
    *,
    has_done: bool,
) -> None:
    """O-03, O-47, O-48: also where the last event has no blank line, or `[DONE]` is left out."""
    wrong, spent = {}, 0
    async with run_gateway() as gateway, open_agent() as agent:
        for name in sorted(names):
            pieces, units = STREAMS[name]
            model.pieces = [*pieces, DONE] if has_done else [*pieces[:-1], pieces[-1].rstrip()]
            answer = await agent.post(gateway.completions, json=body(stream=True, max_tokens=120))
            state = await gateway.channel()
            charged, spent = (state.spent - spent) // PRICE, state.spent
            is_whole = "data: [DONE]" in answer.text or (not has_done and "error" in name)
            if (answer.status_code, charged, state.reserved, is_whole) != (200, units, 0, True):
                wrong[name] = (answer.text, charged, state.reserved)
    assert wrong == {}
    options = model.seen[0].body["stream_options"]
    assert options == {"include_usage": True}


async def test_usage_is_passed_on_to_a_client_that_asked_for_it_and_to_no_other(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-03: asked for by the gateway, and a chunk without choices would surprise others."""
    model.pieces = [chunk(content="x"), end(), usage(2), DONE]
    async with run_gateway() as gateway, open_agent() as agent:
        for wants in (True, False):
            options = {"stream_options": {"include_usage": True}} if wants else {}
            payload = body(stream=True, max_tokens=5, **options)
            answer = await agent.post(gateway.completions, json=payload)
            assert ('"usage"' in answer.text) == wants
        assert (await gateway.channel()).spent == 4 * PRICE


async def test_a_client_that_leaves_a_lump_pays_for_its_text(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-03: as far as it is held, when no count can come any more; the rest is remembered."""
    model.pieces = [chunk(content=WORDS), *[": quiet\n\n"] * 10_000]
    model.delay_s = 0.01
    async with run_gateway() as gateway, open_agent() as agent:
        payload = body(stream=True, max_tokens=200)
        async with agent.stream("POST", gateway.completions, json=payload) as response:
            async for line in response.aiter_lines():
                if "word" in line:
                    break

        async def is_over() -> bool:
            return not (await gateway.channel()).reserved

        await until(is_over)
        assert 32 * PRICE <= (await gateway.channel()).spent <= 125 * PRICE


async def test_a_comment_keeps_the_client_waiting(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-46: a prompt that takes longer to read than the client's timeout; the words stay here."""
    model.pieces = [": event: payment-receipt\n\n"] * 8 + [chunk(content="x"), end(), DONE]
    model.delay_s = 0.15
    async with run_gateway() as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(n=0))  # opens the channel, sells nothing
        timeout = httpx.Timeout(10, read=0.8)
        payload = body(stream=True, max_tokens=5)
        async with agent.stream("POST", gateway.completions, json=payload, timeout=timeout) as sent:
            text = (await sent.aread()).decode()
        assert text.count(": keep-alive\n\n") == 8
        assert "payment-receipt" not in text
        assert "data: [DONE]" in text
        assert (await gateway.channel()).spent == PRICE


def _gzipped() -> Response:
    answer = {"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": 2}}
    packed = gzip.compress(json.dumps(answer).encode())
    return Response(packed, 200, {"content-encoding": "gzip"}, "application/json")


def _gzipped_stream() -> Response:
    text = chunk(content="x") + end() + usage(2) + DONE
    return Response(
        gzip.compress(text.encode()), 200, {"content-encoding": "gzip"}, "text/event-stream"
    )


async def _bomb() -> AsyncIterator[bytes]:
    for _ in range(400):
        yield gzip.compress(b"\0" * (1 << 20))
        await asyncio.sleep(0)


ANSWERS: dict[str, tuple[Any, bool, int, str, int]] = {
    "307": (
        lambda: Response(None, 307, {"location": "http://elsewhere/v1"}),
        False,
        502,
        "redirects with 307",
        0,
    ),
    "301, streamed": (
        lambda: Response(None, 301, {"location": "/other"}),
        True,
        502,
        "redirects with 301",
        0,
    ),
    "br": (
        lambda: JSONResponse({"choices": []}, 200, {"content-encoding": "br"}),
        False,
        502,
        "coded as br",
        0,
    ),
    "br, streamed": (
        lambda: Response(DONE, 200, {"content-encoding": "br"}, "text/event-stream"),
        True,
        502,
        "coded as br",
        0,
    ),
    "gzip in gzip": (
        lambda: JSONResponse({}, 200, {"content-encoding": "gzip, gzip"}),
        False,
        502,
        "coded as gzip, gzip",
        0,
    ),
    "gzip that is none": (
        lambda: JSONResponse({}, 200, {"content-encoding": "gzip"}),
        False,
        502,
        "coding",
        0,
    ),
    "gzip bomb": (
        lambda: StreamingResponse(_bomb(), 200, {"content-encoding": "gzip"}, "application/json"),
        False,
        502,
        "more than",
        0,
    ),
    "gzip": (_gzipped, False, 200, '"x"', 2),
    "gzip, streamed": (_gzipped_stream, True, 200, "[DONE]", 2),
    "error text": (lambda: JSONResponse({"error": {"message": "no GPU"}}), False, 502, "no GPU", 0),
    "error text, streamed": (
        lambda: JSONResponse({"error": {"message": "no GPU"}}),
        True,
        502,
        "no GPU",
        0,
    ),
    "a page": (
        lambda: Response("<h1>Busy</h1>", 200, None, "text/html"),
        True,
        502,
        "text/html",
        0,
    ),
    "a page in one piece": (
        lambda: Response("<h1>Busy</h1>", 200, None, "text/html"),
        False,
        502,
        "not JSON",
        0,
    ),
    "nothing": (lambda: Response(b"", 200), False, 502, "not JSON", 0),
    "an error as the only event": (
        lambda: Response(
            sse('{"error": {"message": "no GPU"}}') + DONE, 200, None, "text/event-stream"
        ),
        True,
        200,
        "no GPU",
        0,
    ),
}


async def test_what_the_model_server_says_is_passed_on_or_named_and_not_charged(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-48, O-23: nothing is lost, cut, or changed; every coding has a bound."""
    wrong, spent = {}, 0
    async with run_gateway() as gateway, open_agent() as agent:
        for name, (build, is_stream, status, text, units) in ANSWERS.items():
            model.answer = build()
            payload = body(stream=is_stream, max_tokens=5)
            answer = await agent.post(gateway.completions, json=payload)
            state = await gateway.channel()
            charged, spent = (state.spent - spent) // PRICE, state.spent
            said = (answer.status_code, text in answer.text, charged, state.reserved)
            if said != (status, True, units, 0):
                wrong[name] = (said, answer.text)
    assert wrong == {}


@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024 + 1, 3 * 1024 * 1024])
async def test_a_long_prompt_is_refused_before_the_model_runs(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, size: int
) -> None:
    """O-04: where input is free, its size is bounded; tools and biases are part of it."""
    fields: dict[str, Any] = {"max_tokens": 1, "tools": [{"type": "function"}]}
    payload = body(**fields)
    room = size - len(json.dumps(payload).encode())
    payload["messages"] = [{"role": "user", "content": "hello" + "x" * room}]
    raw = json.dumps(payload).encode()
    assert len(raw) == size
    async with run_gateway() as gateway, open_agent() as agent:
        headers = {"content-type": "application/json"}
        answer = await agent.post(gateway.completions, content=raw, headers=headers)
        is_sold = size <= 64 * 1024
        assert answer.status_code == (502 if is_sold else 413)  # three words for one token
        assert len(model.seen) == is_sold
        assert (await gateway.channel()).spent == 0
