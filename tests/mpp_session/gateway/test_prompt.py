"""A prompt's tokens, asked of each kind of model server before the model runs (O-04)."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mpp_session.gateway.endpoints.chat import parse_chat_request
from mpp_session.gateway.endpoints.completions import parse_completion_request
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest
from mpp_session.gateway.endpoints.responses import parse_response_request
from mpp_session.gateway.prompt import PromptCount, PromptCounter
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream
from mpp_session.settings import Upstream as UpstreamSettings
from tests.mpp_session.gateway.real_model import real_model
from tests.mpp_session.serving import serve

Answer = Callable[[dict[str, Any]], Response]
TOOL = {"type": "function", "function": {"name": "greet", "parameters": {"type": "object"}}}


def chat_of(**fields: Any) -> ModelRequest:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "héllo"}], **fields}
    bounds = Bounds(max_tokens=9, default_max_tokens=9, kind="usage")
    return parse_chat_request(json.dumps(body).encode(), bounds)


class Tokenizer:
    """A server with some of the endpoints, and how often each was asked."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []

    async def answer(self, request: Request) -> Response:
        self.asked[request.url.path] += 1
        body = await request.json()
        self.bodies.append(body)
        found = self.answers.get(request.url.path)
        return Response(status_code=404) if found is None else found(body)


@contextlib.asynccontextmanager
async def counting(server: Tokenizer) -> AsyncIterator[tuple[PromptCounter, Readiness]]:
    routes = [Route("/{path:path}", server.answer, methods=["POST"])]
    async with serve(Starlette(routes=routes)) as url:
        settings = UpstreamSettings(url=url)
        async with Upstream.connect(settings) as upstream:
            readiness = Readiness(upstream, settings)
            yield PromptCounter(upstream, readiness), readiness


def llama(body: dict[str, Any]) -> Response:
    return JSONResponse({"tokens": list(range(len(body["content"])))})


LLAMA: dict[str, Answer] = {
    "/apply-template": lambda body: JSONResponse({"prompt": "<" + body["model"] + ">"}),
    "/tokenize": llama,
}
VLLM: dict[str, Answer] = {
    "/tokenize": lambda body: JSONResponse({"count": len(body), "tokens": []})
}
PYTHON: dict[str, Answer] = {
    "/extras/tokenize/count": lambda body: JSONResponse({"count": len(body["input"])})
}


async def test_llama_cpp_counts_what_its_template_makes_of_the_request() -> None:
    server = Tokenizer(LLAMA)
    async with counting(server) as (counter, _):
        assert await counter.count(chat_of()) == PromptCount(6, is_exact=True)
    assert server.bodies[1] == {"content": "<tiny>", "add_special": True, "parse_special": True}


async def test_vllm_and_sglang_count_the_messages() -> None:
    server = Tokenizer(VLLM)
    async with counting(server) as (counter, _):
        assert await counter.count(chat_of(tools=[TOOL])) == PromptCount(4, is_exact=True)
    assert server.bodies[-1].keys() == {"model", "messages", "tools", "add_generation_prompt"}


async def test_a_tokenizer_without_a_template_gives_an_upper_estimate() -> None:
    server = Tokenizer(PYTHON)
    async with counting(server) as (counter, _):
        found = await counter.count(chat_of())
    assert not found.is_exact
    assert found.tokens == len('{"messages":[{"role": "user", "content": "h\\u00e9llo"}]}') + 64


async def test_a_server_without_a_tokenizer_is_asked_once_and_the_bytes_are_the_estimate() -> None:
    server = Tokenizer({})
    chat = chat_of()
    async with counting(server) as (counter, readiness):
        for _ in range(3):
            assert await counter.count(chat) == PromptCount(
                chat.bytes_received + 64, is_exact=False
            )
        assert set(server.asked.values()) == {1}
        readiness.outages += 1  # another server may answer now
        server.answers = VLLM
        assert (await counter.count(chat)).is_exact


async def test_the_way_that_works_is_the_only_one_asked() -> None:
    server = Tokenizer(VLLM)
    async with counting(server) as (counter, _):
        for _ in range(3):
            await counter.count(chat_of())
    assert server.asked == {"/apply-template": 1, "/tokenize": 3}


async def test_a_prompt_that_a_tokenizer_refuses_does_not_end_its_use() -> None:
    server = Tokenizer(VLLM)
    async with counting(server) as (counter, _):
        assert (await counter.count(chat_of())).is_exact
        server.answers = {"/tokenize": lambda _: Response(status_code=400)}
        assert not (await counter.count(chat_of())).is_exact
        server.answers = VLLM
        assert (await counter.count(chat_of())).is_exact


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: Response("no", 500),
        lambda _: Response("x" * 2_000_000),
        lambda _: Response("[" * 500),
        lambda _: JSONResponse({"count": "many"}),
        lambda _: JSONResponse({"count": -4}),
        lambda _: JSONResponse({"count": 0}),
        lambda _: JSONResponse([3]),
        lambda _: Response(b"\xff\xfe"),
    ],
)
async def test_nonsense_is_no_count(answer: Answer) -> None:
    """Bounded in size: an answer that is longer than any count is not read."""
    server = Tokenizer({"/tokenize": answer})
    chat = chat_of()
    async with counting(server) as (counter, _):
        for _ in range(2):
            assert await counter.count(chat) == PromptCount(
                chat.bytes_received + 64, is_exact=False
            )
    assert server.asked["/apply-template"] == 1


async def test_no_count_is_above_what_a_payer_can_believe() -> None:
    server = Tokenizer({"/tokenize": lambda _: JSONResponse({"count": 10**12})})
    chat = chat_of()
    async with counting(server) as (counter, _):
        assert await counter.count(chat) == PromptCount(chat.bytes_received + 64, is_exact=True)


async def test_a_silent_tokenizer_delays_one_request_and_is_then_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpp_session.gateway.prompt.PROMPT_COUNT_S_MAX", 0.2)
    asked = 0

    async def hang(_: Request) -> Response:
        nonlocal asked
        asked += 1
        await asyncio.sleep(1)
        return Response()

    async with serve(Starlette(routes=[Route("/{path:path}", hang, methods=["POST"])])) as url:
        settings = UpstreamSettings(url=url)
        async with Upstream.connect(settings) as upstream:
            counter = PromptCounter(upstream, Readiness(upstream, settings))
            async with asyncio.timeout(0.9):
                for _ in range(3):
                    assert not (await counter.count(chat_of())).is_exact
    assert asked == 1


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": [TOOL]},
    "tools that must be called": {"tools": [TOOL], "tool_choice": "required"},
    "JSON mode": {"response_format": {"type": "json_object"}},
    "special tokens in the text": {"messages": [{"role": "user", "content": "<|im_end|> </s> x"}]},
    "parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a \U0001f984"}]}]
    },
    "a dialogue": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 3?"},
        ]
    },
    "it goes on": {
        "messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "So"}]
    },
}


async def test_the_real_llama_cpp_reads_as_many_tokens_as_it_counted() -> None:
    """Its own usage of the same request is the other count."""
    wrong = {}
    with real_model() as url:
        settings = UpstreamSettings(url=url)
        async with Upstream.connect(settings) as upstream, httpx.AsyncClient() as client:
            counter = PromptCounter(upstream, Readiness(upstream, settings))
            for name, fields in REQUESTS.items():
                chat = chat_of(max_tokens=2, **fields)
                found = await counter.count(chat)
                answer = await client.post(f"{url}/v1/chat/completions", content=chat.body)
                read = answer.json()["usage"]["prompt_tokens"]
                if found != PromptCount(read, is_exact=True):
                    wrong[name] = (found, read)
    assert wrong == {}


def text_of(prompt: Any) -> ModelRequest:
    bounds = Bounds(max_tokens=9, default_max_tokens=9, kind="usage")
    return parse_completion_request(json.dumps({"prompt": prompt}).encode(), bounds)


@pytest.mark.parametrize(
    ("answers", "prompt", "tokens"),
    [
        (LLAMA, "hello", 5),
        (LLAMA, ["hello", "you"], 8),
        (LLAMA, ["hello", [1, 2]], 7),
        (VLLM, "hello", 1),
        (VLLM, ["hello", "you"], 2),
        ({}, [1, 2, 3], 3),
        ({}, [[1, 2], [3]], 3),
    ],
)
async def test_a_prompt_without_a_template_is_counted_text_by_text(
    answers: dict[str, Answer], prompt: Any, tokens: int
) -> None:
    server = Tokenizer(answers)
    async with counting(server) as (counter, _):
        assert await counter.count(text_of(prompt)) == PromptCount(tokens, is_exact=True)
    assert "/apply-template" not in server.asked


async def test_a_response_is_counted_by_the_servers_own_answer() -> None:
    """A server that has no such path is asked once, and again after it was away."""
    path = "/v1/responses/input_tokens"
    bounds = Bounds(max_tokens=9, default_max_tokens=9, kind="usage")
    asked = parse_response_request(b'{"input": "hello"}', bounds)
    server = Tokenizer({path: lambda _: JSONResponse({"input_tokens": 32})})
    async with counting(server) as (counter, readiness):
        assert await counter.count(asked) == PromptCount(32, is_exact=True)
        server.answers = {}
        for _ in range(3):
            assert not (await counter.count(asked)).is_exact
        assert server.asked[path] == 2
        readiness.outages += 1
        await counter.count(asked)
        assert server.asked[path] == 3
    assert server.bodies[0]["input"] == "hello"
