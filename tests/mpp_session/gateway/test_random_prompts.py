"""Random prompts through the real model: the bill is the server's own exact count.

The rule: a complete answer is charged the tokens that the server's counter says it made, and its
prompt as the server's `usage` states it. A stream whose client leaves is charged its prompt, the
tokens up to the last event that the client received, by the server's count in it, and at most a
step more; never more than the server's counter says it made.

The test command asks a part of the prompts. `PROMPTS=200 scripts/test FILE` asks all.
"""

import json
import os
import random
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from channel.limits import RESERVATION_STEP_UNITS
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway, Running
from tests.mpp_session.gateway.real_model import real_model
from tests.mpp_session.gateway.test_real_model import FIELDS, TOOL, made
from tests.waiting import until

PROMPTS = int(os.environ.get("PROMPTS", "12"))
RESULT = os.environ.get("PROMPTS_RESULT", "")
"""A file for the sums."""
SEED = 20261201
END_OF_TIME = 2**62
PRICES: dict[str, Any] = {"price__per_unit": None, "price__input": "1", "price__output": "2"}
"""In base units, 1 for a token read and 2 for one made."""
TEXTS = (
    "Say hello.",
    "Nenne drei Tiere, die im Wald leben, und sage kurz warum.",
    "Écris une phrase sur la mer ; puis une autre, plus courte.",
    "请用一句话介绍你自己。",
    "日本の首都はどこですか",
    "\u041d\u0430\u043f\u0438\u0448\u0438 \u0434\u0432\u0430 \u0441\u043b\u043e\u0432\u0430.",
    "اكتب جملة قصيرة عن الشمس.",
    "एक छोटा वाक्य लिखो।",
    "한국어로 인사해 주세요.",
    "🦄🦖🧬🪐 what are these?",
    "def fib(n):\n    return n if n < 2 else",
    '{"a": [1, 2, {"b": null}]}',
    "A\r\nB\tC\u2028D\u00a0E",
    "e\u0301 and é, \u200dzero\u200bwidth",
)
GRAMMARS = (
    'root ::= "Hello there."',
    'root ::= "a"{40}',
    'root ::= ("\U0001f984" | "\U0001f996"){6}',
    'root ::= "Grüße" | "你好世界"',
)


class Case(msgspec.Struct, frozen=True):
    """One request."""

    path: str
    fields: dict[str, Any]
    leaves_after: int | None
    """Events with text after which the client leaves; None if it reads to the end."""

    @property
    def is_stream(self) -> bool:
        return bool(self.fields["stream"])


def make(number: int) -> Case:
    """Return one of the prompts; the same number is the same prompt in each run."""
    chance = random.Random(SEED + number)  # noqa: S311 - it repeats
    path = chance.choices(("chat/completions", "completions", "responses"), (6, 2, 2))[0]
    text = " ".join(chance.choices(TEXTS, k=chance.choice((1, 1, 2, 5))))
    most = chance.choice((1, 2, 7, 20, 40))
    fields: dict[str, Any] = {
        "stream": chance.random() < 0.7,
        "temperature": chance.choice((0, 0.7, 1.5)),
        "seed": chance.randrange(10**6),
    }
    if path == "responses":
        fields |= {"input": text, "max_output_tokens": most}
    elif path == "completions":
        fields |= {"prompt": text, "max_tokens": most}
    else:
        fields |= {"messages": [{"role": "user", "content": text}], "max_tokens": most}
    shape = chance.choice(("free", "grammar", "stop", "ignore_eos", "tools", "json", "logprobs"))
    if shape == "grammar":
        fields["grammar"] = chance.choice(GRAMMARS)
    elif shape == "stop" and path != "responses":
        fields |= {"grammar": GRAMMARS[1], "stop": [chance.choice(("aa", "aaaaa", "a" * 30))]}
    elif shape == "ignore_eos":
        fields["ignore_eos"] = True
    elif path == "chat/completions":
        shapes: dict[str, dict[str, Any]] = {
            "tools": {"tools": [TOOL], "tool_choice": chance.choice(("auto", "required"))},
            "json": {"response_format": {"type": "json_object"}},
            "logprobs": {"logprobs": True, "top_logprobs": 2},
        }
        fields |= shapes.get(shape, {})
    if fields["stream"] and path != "responses":
        fields["stream_options"] = {"include_usage": True}
        fields["n"] = chance.choice((1, 1, 1, 2, 3))
    leaves = fields["stream"] and chance.random() < 0.2
    return Case(path, fields, chance.choice((1, 2, 5)) if leaves else None)


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with real_model() as url:
        yield url


class Seen(msgspec.Struct):
    """What the client got."""

    status: int
    text: str
    read: int | None = None
    """Tokens of the prompt, as the server's usage states them."""
    counted: int = 0
    """Tokens made up to the last event that was received, by the server's count in it."""
    has_left: bool = False


async def ask(agent: httpx.AsyncClient, gateway: Running, case: Case) -> Seen:
    url = f"{gateway.url}/v1/{case.path}"
    if not case.is_stream:
        answer = await agent.post(url, json=case.fields, timeout=120)
        seen = Seen(answer.status_code, answer.text)
        if answer.is_success:
            seen.read = read_prompt(answer.json())
        return seen
    lines: list[str] = []
    by_choice: dict[int, int] = {}
    seen = Seen(0, "")
    async with agent.stream("POST", url, json=case.fields, timeout=120) as answer:
        seen.status = answer.status_code
        async for line in read_lines(answer):
            lines.append(line)
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            seen.read = read_prompt(event) or seen.read
            note(event, by_choice)
            if len(lines) > 2 * (case.leaves_after or 10**6) and by_choice:
                seen.has_left = True
                break
    seen.text, seen.counted = "\n".join(lines), sum(by_choice.values())
    return seen


async def read_lines(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield lines; httpx would also cut them at U+2028, which a model may write."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode()


def note(event: dict[str, Any], by_choice: dict[int, int]) -> None:
    """Take the server's count of a choice from an event: llama.cpp's `timings`, or one an event."""
    choices = event.get("choices") or []
    made_now = (event.get("timings") or {}).get("predicted_n")
    if choices and made_now is not None:
        by_choice[choices[0]["index"]] = made_now
    elif str(event.get("type")).endswith(".delta"):  # of a response: it has no count
        by_choice[0] = by_choice.get(0, 0) + 1


def read_prompt(answer: dict[str, Any]) -> int | None:
    usage = (answer.get("response") or answer).get("usage") or {}
    found = usage.get("prompt_tokens", usage.get("input_tokens"))
    return found if found is None else int(found)


async def is_over(gateway: Running, bare: httpx.AsyncClient, real: str) -> bool:
    """Whether the request has ended on both sides: a server stops shortly after its client left."""
    if any(one.reserved for one in await gateway.channels()):
        return False
    text = (await bare.get(f"{real}/metrics")).text
    return re.search(r"^llamacpp:requests_processing 0", text, re.MULTILINE) is not None


@pytest.mark.timeout(120 + 6 * PROMPTS)
async def test_the_bill_of_random_prompts_is_the_server_s_own_count(
    run_gateway: RunGateway, open_agent: OpenAgent, real: str
) -> None:
    async with (
        run_gateway(upstream__url=real, upstream__fields=FIELDS, **PRICES) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        unexplained: dict[int, Any] = {}
        spent = tokens = left = refused = 0
        last: Any = None
        for number in range(PROMPTS):
            case, before = make(number), await made(bare, real)
            seen = await ask(agent, gateway, case)
            await until(partial(is_over, gateway, bare, real))
            expected = await made(bare, real) - before
            now = sum(one.spent for one in await gateway.channels())
            charges = await gateway.parts.ledger.list_charges(0, END_OF_TIME, after=last)
            used = dict(charges[0].usage or {}) if charges else {}
            output, read = used.get("output_token", 0), used.get("input_token", 0)
            last = charges[0] if charges else last
            assert (len(charges) < 2, now - spent) == (True, 2 * output + read)
            spent = now
            if seen.has_left:
                left += 1
                most = min(expected, seen.counted + RESERVATION_STEP_UNITS)
                holds = seen.counted <= output <= most and read > 0
            elif seen.status != httpx.codes.OK:
                refused += 1
                holds = (output, read) == (0, 0)
            else:
                tokens += output
                holds = (output, read) == (expected, seen.read)
            if not holds:
                unexplained[number] = (output, read, expected, case, seen)
        found = f"{PROMPTS} prompts, {tokens} tokens, {left} left, {refused} refused"
        if RESULT:
            Path(RESULT).write_text(f"{found}, {len(unexplained)} unexplained\n")  # noqa: ASYNC240
        assert unexplained == {}
        assert refused < PROMPTS // 5
