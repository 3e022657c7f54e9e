"""The official `openai` client pays for every call through the paying transport, unchanged."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from starlette.responses import JSONResponse

from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway, Running
from tests.mpp_session.gateway.dialects import DIALECTS
from tests.mpp_session.gateway.real_model import real_model
from tests.mpp_session.gateway.test_endpoints import EMBEDDED
from tests.mpp_session.gateway.test_input import RATES
from tests.mpp_session.model_server import ModelServer, chunk

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
PARAMETERS = {
    "type": "object",
    "properties": {"name": {"type": "string", "enum": ["Ada"]}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "greet", "parameters": PARAMETERS}}


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with real_model() as url:
        yield url


def client_of(gateway: Running, agent: Any, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", http_client=agent, **options
    )


def cost_of(answer: Any) -> int:
    """What the answer's usage record states, in base units."""
    return int(answer.usage.cost_details["amount"])


async def last_usage(stream: AsyncIterator[Any]) -> Any:
    """The one chunk of a stream that has a cost."""
    (found,) = [one async for one in stream if hasattr(one.usage, "cost_details")]
    return found


async def test_chat_with_tools_and_structured_output(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str
) -> None:
    async with run_gateway(upstream__url=real, **RATES) as gateway, open_agent() as agent:
        chat = client_of(gateway, agent).chat.completions
        plain = await chat.create(model="m", messages=MESSAGES, max_tokens=4)
        called = await chat.create(
            model="m", messages=MESSAGES, max_tokens=60, tools=[TOOL], tool_choice="required"
        )
        assert called.choices  # the small model need not call it
        schema: Any = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": PARAMETERS, "strict": True},
        }
        shaped = await chat.create(
            model="m", messages=MESSAGES, max_tokens=60, response_format=schema
        )
        assert "Ada" in (shaped.choices[0].message.content or "")
        stream = await chat.create(
            model="m",
            messages=MESSAGES,
            max_tokens=4,
            n=2,
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
        )
        last = await last_usage(stream)
        costs = [cost_of(one) for one in (plain, called, shaped, last)]
        assert all(costs)
        assert (await gateway.channel()).spent == sum(costs)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_calls_of_tools_arrive_as_the_client_expects_them(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    function = {"name": "greet", "arguments": '{"name":"Ada"}'}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    usage = {"completion_tokens": 12, "prompt_tokens": 30, "total_tokens": 42}
    model.whole = {"choices": [choice], "usage": usage}
    empty = {**call, "function": {"name": "greet", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"name":', '"Ada"}')]
    model.pieces = [chunk(tool_calls=[one]) for one in (empty, *more)]
    model.pieces += DIALECTS["chat"].end(["x"], usage)
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        chat = client_of(gateway, agent).chat.completions
        options: Any = {"model": "m", "messages": MESSAGES, "tools": [TOOL], "max_tokens": 40}
        if is_stream:
            deltas = [
                one.choices[0].delta.tool_calls[0].function
                async for one in await chat.create(**options, stream=True)
                if one.choices[0].delta.tool_calls
            ]
            names = "".join(one.name or "" for one in deltas)
            arguments = "".join(one.arguments or "" for one in deltas)
        else:
            whole: Any = await chat.create(**options)
            (made,) = whole.choices[0].message.tool_calls
            names, arguments = made.function.name, made.function.arguments
        assert (names, arguments) == ("greet", '{"name":"Ada"}')
        assert (await gateway.channel()).spent == 12 * 1000 + 30
    assert model.seen[0].body["tools"] == [TOOL]


async def test_completions_and_responses_of_the_real_model(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str
) -> None:
    async with run_gateway(upstream__url=real, **RATES) as gateway, open_agent() as agent:
        client = client_of(gateway, agent)
        text = await client.completions.create(model="m", prompt="The sky is", max_tokens=4)
        assert text.choices[0].text
        pieces = await client.completions.create(
            model="m",
            prompt=["The sky is", "One"],
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
        last = await last_usage(pieces)
        response = await client.responses.create(
            model="m", input="Say hello.", max_output_tokens=8, instructions="Be brief."
        )
        assert response.output_text
        events = await client.responses.create(
            model="m", input="Say hello.", max_output_tokens=8, stream=True
        )
        kinds, text_of, streamed = set(), "", 0
        async for event in events:
            kinds.add(event.type)
            if event.type == "response.output_text.delta":
                text_of += event.delta
            if event.type == "response.completed":
                assert event.response.output_text == text_of
                streamed = cost_of(event.response)
        assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds
        costs = [cost_of(text), cost_of(last), cost_of(response), streamed]
        assert all(costs)
        assert (await gateway.channel()).spent == sum(costs)


async def test_embeddings_and_models(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """The client asks for base64 by itself, and decodes it."""
    model.whole = EMBEDDED
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        client = client_of(gateway, agent)
        answer = await client.embeddings.create(model="tiny", input=["hello"])
        assert answer.data[0].embedding == EMBEDDED["data"][0]["embedding"]  # type: ignore[index]
        assert cost_of(answer) == (await gateway.channel()).spent == 9
        assert [one.id async for one in client.models.list()] == ["tiny"]


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_an_error_of_the_model_server_is_the_clients_own_and_free(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, status: int
) -> None:
    """Under every endpoint, as the client's exception with the server's message."""
    async with run_gateway(**RATES) as gateway, open_agent() as agent:
        client = client_of(gateway, agent, max_retries=0)
        model.answer = JSONResponse({"error": {"message": "not today", "code": "x"}}, status)
        calls: Any = (
            client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4),
            client.completions.create(model="m", prompt="x", max_tokens=4),
            client.responses.create(model="m", input="x", max_output_tokens=4),
            client.embeddings.create(model="m", input="x"),
        )
        for call in calls:
            with pytest.raises(openai.APIStatusError, match="not today") as caught:
                await call
            assert caught.value.status_code == status
        assert (await gateway.channel()).spent == 0


async def test_a_retry_of_the_client_is_paid_once(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-58: the attempt that failed sold nothing."""
    model.answer = JSONResponse({"error": {"message": "busy"}}, 503)
    async with run_gateway() as gateway, open_agent() as agent:
        client = client_of(gateway, agent, max_retries=0)
        with pytest.raises(openai.APIStatusError):
            await client.completions.create(model="m", prompt="x", max_tokens=4)

        class Recovers(JSONResponse):
            """Fails once, and answers from then on."""

            async def __call__(self, *asgi: Any) -> None:
                model.answer = None
                await super().__call__(*asgi)

        model.answer = Recovers({"error": {"message": "busy"}}, 503)
        model.whole = DIALECTS["completions"].whole("x", {"completion_tokens": 2})
        before = len(model.seen)
        answer = await client.with_options(max_retries=2).completions.create(
            model="m", prompt="x", max_tokens=4
        )
        assert answer.choices[0].text == "x"
        assert len(model.seen) - before == 2
        assert (await gateway.channel()).spent == 2 * PRICE


async def test_an_error_in_mid_stream_is_the_clients_exception(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """Of chat and of responses, whose events have names; what came before it is paid."""
    async with run_gateway() as gateway, open_agent() as agent:
        client = client_of(gateway, agent, max_retries=0)
        chat, responses = DIALECTS["chat"], DIALECTS["responses"]
        model.pieces = [chat.text("a"), chat.text("b")]
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in await client.chat.completions.create(
                model="m", messages=MESSAGES, stream=True, max_tokens=9
            ):
                pass
        model.pieces = responses.stream(["a", "b"], None)[:-3]
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in await client.responses.create(
                model="m", input="x", stream=True, max_output_tokens=9
            ):
                pass
        assert (await gateway.channel()).spent == 4 * PRICE
