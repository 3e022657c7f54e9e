"""O-02, O-03 on llama.cpp's own server: what is charged is what it made, or it made nothing.

The server's own counter of predicted tokens says what it made, independently of its answers.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway, Running
from tests.mpp_session.gateway.real_model import real_model

MESSAGES = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "greet",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string", "enum": ["Ada"]}},
            "required": ["name"],
        },
    },
}
EMOJI = 'root ::= ("\U0001f984" | "\U0001f996" | "\U0001f9ec" | "\U0001fa90"){12}'
FIELDS = ["grammar", "ignore_eos", "cache_prompt"]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ends by itself": {"grammar": 'root ::= "Hello there."'},
    "n=2": {"n": 2, "ignore_eos": True},
    "n=4": {"n": 4, "ignore_eos": True},
    "n=4, each of its own length": {"n": 4, "max_tokens": 12},
    "best_of": {"best_of": 3},
    "n by another name": {"n_cmpl": 3, "N": 3, "extra_body": {"n": 3}},
    "more by another name": {"max_tokens": 2, "n_predict": 40, "MAX_TOKENS": 40},
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 7},
    "no bound in one piece": {"max_tokens": None, "grammar": EMOJI},
    "emoji": {"grammar": EMOJI, "max_tokens": 24},
    "stop holds text back": {"grammar": 'root ::= "a"{90}', "stop": ["a" * 64], "max_tokens": 20},
    "stop immediately, n=2": {"grammar": 'root ::= "a"{90}', "stop": ["aaaaa"], "n": 2},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "logprobs of what is held back": {
        "logprobs": True,
        "grammar": 'root ::= "a"{90}',
        "stop": ["a" * 64],
    },
    "tools": {"tools": [TOOL], "tool_choice": "auto"},
    "tools that must be called": {"tools": [TOOL], "tool_choice": "required"},
    "JSON mode": {"response_format": {"type": "json_object"}, "max_tokens": 8},
    "nothing asked of usage": {"stream_options": {"include_usage": False}},
    "asks for usage": {"stream_options": {"include_usage": True}, "n": 2},
    "lumps": {"stream_interval": 8, "min_tokens": 20},
}


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with real_model() as url:
        yield url


async def made(client: httpx.AsyncClient, real: str) -> int:
    """How many tokens the server has made since it began."""
    text = (await client.get(f"{real}/metrics")).text
    found = re.search(r"^llamacpp:tokens_predicted_total (\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def ask(agent: httpx.AsyncClient, gateway: Running, **fields: Any) -> int:
    """Ask, read all of the answer, and return its status."""
    body = {"messages": MESSAGES, "max_tokens": 4, **fields}
    response = await agent.post(gateway.completions, json=body)
    if response.status_code == 200 and fields["stream"]:
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        bare = [event for event in events[:-1] if not json.loads(event)["choices"]]
        wants = (fields.get("stream_options") or {}).get("include_usage")
        assert bool(bare) == bool(wants)
    return response.status_code


@pytest.mark.parametrize("is_stream", [True, False])
async def test_charged_is_what_the_server_made(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str, *, is_stream: bool
) -> None:
    async with (
        run_gateway(upstream__url=real, upstream__fields=FIELDS) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        wrong, refused = {}, set()
        spent, before = 0, await made(bare, real)
        for name, case in CASES.items():
            status = await ask(agent, gateway, stream=is_stream, **case)
            state, after = await gateway.channel(), await made(bare, real)
            charged, made_now = (state.spent - spent) // PRICE, after - before
            spent, before = state.spent, after
            if charged != made_now or state.reserved:
                wrong[name] = (status, charged, made_now, state.reserved)
            if status != 200:
                refused.add(name)
        assert wrong == {}
        several = {name for name, case in CASES.items() if case.get("n", 1) > 1}
        assert refused == (set() if is_stream else several)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_server_of_which_nothing_is_known_is_charged_right_too(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str, *, is_stream: bool
) -> None:
    """The same server, without counts in each chunk: the gateway counts by `usage` at the end."""
    names = ["plain", "n=4", "emoji", "stop holds text back", "logprobs", "JSON mode"]
    async with (
        run_gateway(
            upstream__url=real, upstream__fields=FIELDS, upstream__counts="chunks"
        ) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        before = await made(bare, real)
        for name in names:
            status = await ask(agent, gateway, stream=is_stream, **CASES[name])
            assert (status == 200) == ("n" not in CASES[name]), name
        charged = (await gateway.channel()).spent // PRICE
        assert charged == await made(bare, real) - before


async def test_the_example_itself(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str
) -> None:
    """O-02: `{"n":4,"max_tokens":30,"ignore_eos":true}` in one piece is refused, and runs not."""
    async with (
        run_gateway(upstream__url=real) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        before = await made(bare, real)
        body = {"messages": MESSAGES, "n": 4, "max_tokens": 30, "ignore_eos": True}
        response = await agent.post(gateway.completions, json=body)
        assert response.status_code == 400
        assert "stream" in response.json()["detail"]
        assert await made(bare, real) == before
        assert (await gateway.channel()).spent == 0


@pytest.mark.parametrize(
    "case",
    [
        {"logprobs": True, "top_logprobs": 50_000},
        {"logprobs": 50_000},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "x",
                    "schema": {"type": "string", "pattern": "^(a{0,99}){0,99}$"},
                },
            }
        },
    ],
    ids=["the vocabulary beside each token", "by another type", "a pattern that never ends"],
)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_what_makes_the_server_work_for_nothing_does_not_reach_it(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    real: str,
    case: dict[str, Any],
    *,
    is_stream: bool,
) -> None:
    """O-03: four tokens of 18 MiB were free; thirty bytes of schema kept the server for minutes."""
    async with (
        run_gateway(upstream__url=real) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        before = await made(bare, real)
        assert await ask(agent, gateway, stream=is_stream, **case) == 400
        assert await made(bare, real) == before
        assert (await gateway.channel()).spent == 0


async def test_a_payer_counts_several_choices_whose_chunks_hold_many_tokens(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str
) -> None:
    """O-09: the count of each choice was taken for that of all: an honest server was accused."""
    grammar = EMOJI.replace("{12}", "{40}")
    async with (
        run_gateway(upstream__url=real, upstream__fields=FIELDS) as gateway,
        open_agent() as agent,
    ):
        answer = await ask(agent, gateway, stream=True, n=2, max_tokens=130, grammar=grammar)
        assert answer == 200
        charged = (await gateway.channel()).spent // PRICE
        assert charged >= 2 * 3 * 40
        (account,) = await agent.payments.channels()
        assert charged - 2 <= account.units <= charged, "but for the tokens that end the texts"


MONEY: dict[str, Any] = {"price__per_unit": None, "price__input": "1", "price__output": "1000"}
"""In base units, 1 for a token read and 1000 for one made, so that `spent` tells both."""
READ_CASES = {
    name: CASES[name]
    for name in (
        "plain",
        "n=2",
        "tools",
        "tools that must be called",
        "stop holds text back",
        "stop immediately, n=2",
        "JSON mode",
        "logprobs",
    )
}


async def usage_of(real: str, case: dict[str, Any], *, is_stream: bool) -> tuple[int, int]:
    """What the server itself counts of the same request: tokens read, and made by all choices."""
    options = {"stream_options": {"include_usage": True}} if is_stream else {}
    body = {"messages": MESSAGES, "max_tokens": 4, "stream": is_stream, **case, **options}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{real}/v1/chat/completions", json=body, timeout=60)
    if is_stream:
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        records = [one["usage"] for one in map(json.loads, lines) if one.get("usage")]
    else:
        records = [answer.json()["usage"]]
    assert len(records) == (case.get("n", 1) if is_stream else 1)
    return records[0]["prompt_tokens"], sum(one["completion_tokens"] for one in records)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_input_and_output_are_charged_as_the_server_counts_them(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str, *, is_stream: bool
) -> None:
    """O-04: streamed and not, several choices, tools, stops; greedy, so that both runs are one."""
    greedy = {"temperature": 0, "seed": 1}
    async with (
        run_gateway(upstream__url=real, upstream__fields=FIELDS, **MONEY) as gateway,
        open_agent() as agent,
    ):
        wrong, spent = {}, 0
        for name, case in READ_CASES.items():
            if not is_stream and case.get("n", 1) > 1:
                continue  # refused: the server counts one choice only
            status = await ask(agent, gateway, stream=is_stream, **greedy, **case)
            state = await gateway.channel()
            made_now, read = divmod(state.spent - spent, 1000)
            spent = state.spent
            expected = await usage_of(real, {**greedy, **case}, is_stream=is_stream)
            if (status, read, made_now, state.reserved) != (200, *expected, 0):
                wrong[name] = (status, read, made_now, expected, state.reserved)
        assert wrong == {}


async def test_what_the_real_server_reads_from_its_cache_has_its_own_rate(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str
) -> None:
    """The same prompt twice: the second time nearly all of it comes from the cache."""
    shares = {**MONEY, "price__cached_input": "0.1", "price__output": "10"}
    async with (
        run_gateway(upstream__url=real, upstream__fields=FIELDS, **shares) as gateway,
        open_agent() as agent,
    ):
        text = f"Say hello to {'a dozen of us ' * 20}."
        costs = [0]
        for _ in range(2):
            messages = [{"role": "user", "content": text}]
            body = {"messages": messages, "max_tokens": 2, "stream": True, "ignore_eos": True}
            answer = await agent.post(gateway.completions, json=body)
            assert answer.status_code == 200
            assert "cached_input_token=" in answer.text or not costs[1:]
            costs.append((await gateway.channel()).spent)
        first, second = costs[1], costs[2] - costs[1]
        assert first > second > 20


_FUNCTION: Any = TOOL["function"]
OTHERS: dict[str, dict[str, Any]] = {
    "a text": {"prompt": "The sky is"},
    "tokens": {"prompt": [1, 2, 3]},
    "several prompts": {"prompt": ["The sky is", "One two"]},
    "several prompts of several answers": {"prompt": ["The sky is", [1, 2]], "n": 2},
    "log probabilities": {"prompt": "The sky is", "logprobs": 3},
    "a stop": {"prompt": "The sky is", "grammar": 'root ::= "a"{90}', "stop": ["aaaaa"]},
    "a grammar of emoji": {"prompt": "x", "grammar": EMOJI, "max_tokens": 24},
    "a response": {"input": "Say hello."},
    "a response to a conversation": {
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
    },
    "a response in emoji": {"input": "x", "grammar": EMOJI, "max_tokens": 24},
    "a response with a tool": {
        "input": "Greet Ada.",
        "tools": [{"type": "function", **_FUNCTION}],
        "tool_choice": "required",
    },
}


@pytest.mark.parametrize("is_stream", [True, False])
async def test_other_endpoints_charge_what_the_server_made(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str, *, is_stream: bool
) -> None:
    """O-02, O-03: by its own counter, and the answer states the same."""
    async with (
        run_gateway(upstream__url=real, upstream__fields=FIELDS, **MONEY) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        wrong, refused, spent, before = {}, set(), 0, await made(bare, real)
        for name, case in OTHERS.items():
            path = "completions" if "prompt" in case else "responses"
            bound = "max_tokens" if "prompt" in case else "max_output_tokens"
            fields = {bound: case.get("max_tokens", 4), **case, "stream": is_stream}
            if path == "responses":
                fields.pop("max_tokens", None)
            payload = {**fields, "stream_options": {"include_usage": True}}
            answer = await agent.post(f"{gateway.url}/v1/{path}", json=payload)
            state, after = await gateway.channel(), await made(bare, real)
            cost, made_now = state.spent - spent, after - before
            spent, before = state.spent, after
            if answer.status_code == 200:
                stated = re.findall(r'"cost_details":\{"amount":"(\d+)"', answer.text)
            else:
                refused.add(name)
                stated = ["0"]
            if cost // 1000 != made_now or stated != [str(cost)] or state.reserved:
                wrong[name] = (answer.status_code, cost, made_now, stated, answer.text)
        assert wrong == {}
        unsold = {"several prompts", "several prompts of several answers", "log probabilities"}
        assert refused == (set() if is_stream else unsold)


async def test_a_prompt_is_counted_before_the_model_runs_under_every_endpoint(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str
) -> None:
    """O-04: exactly, so that the server's usage adds nothing."""
    async with run_gateway(upstream__url=real, **MONEY) as gateway, open_agent() as agent:
        for path, asked in (
            ("completions", {"prompt": "The sky is", "max_tokens": 2}),
            ("completions", {"prompt": [5, 6, 7, 8], "max_tokens": 2}),
            ("responses", {"input": "Say hello.", "max_output_tokens": 2}),
            ("chat/completions", {"messages": MESSAGES, "max_tokens": 2}),
        ):
            answer = await agent.post(f"{gateway.url}/v1/{path}", json=asked)
            usage = answer.json()["usage"]
            read = usage.get("prompt_tokens") or usage["input_tokens"]
            assert usage["cost_details"]["usage"]["input_token"] == read, path
        totals = gateway.gateway.answers.check.totals
        assert [one.large for one in totals.values()] == [0, 0, 0]
