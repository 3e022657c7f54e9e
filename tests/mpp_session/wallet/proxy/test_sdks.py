"""Real packages of others pay by a base URL and a key, and know nothing of payments."""

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from mpp_session.settings import Secret
from mpp_session.wallet.proxy.serve import only_for
from tests.foreign.running import ask_clients
from tests.mpp_session.gateway.conftest import PRICE
from tests.mpp_session.wallet.proxy.conftest import TOKEN, Stack, paying, proxying

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[4]
MESSAGES: Any = [{"role": "user", "content": "hello"}]
SAID = "one two three"


async def test_openai_for_python_pays_with_either_client(stack: Stack) -> None:
    before = await stack.spent()
    async with openai.AsyncOpenAI(base_url=f"{stack.proxy}/v1", api_key=TOKEN) as sdk:
        whole = await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
        assert whole.choices[0].message.content == SAID
        stream = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(pieces) == SAID

    def ask() -> str:
        with openai.OpenAI(base_url=f"{stack.proxy}/llm", api_key=TOKEN) as sdk:
            chunks = sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
            return "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)

    assert await asyncio.to_thread(ask) == SAID
    assert await stack.spent() - before == 3 * 3 * PRICE


async def test_openai_and_ai_from_npm_pay(stack: Stack) -> None:
    before = await stack.spent()
    said = await ask_clients(stack.proxy, "openai", "ai", API_KEY=TOKEN)
    assert {name: one.text for name, one in said.items()} == {"openai": SAID, "ai": SAID}
    assert await stack.spent() - before == 2 * 3 * PRICE


async def test_langchain_pays_synchronously(stack: Stack) -> None:
    before = await stack.spent()
    python = ROOT / ".cache" / "langchain-venv" / "bin" / "python"
    program = ROOT / "tests" / "foreign" / "langchain_client.py"
    process = await asyncio.create_subprocess_exec(
        *(python, program, f"{stack.proxy}/v1", TOKEN), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.decode().splitlines() == [SAID, SAID]
    assert await stack.spent() - before == 2 * 3 * PRICE


@pytest.mark.parametrize("way", ["base URL", "http_proxy"])
async def test_curl_pays(stack: Stack, way: str) -> None:
    """As a forward proxy it takes the whole URL, and the token as the proxy's password."""
    port = stack.proxy.rpartition(":")[2]
    if way == "base URL":
        url, token = stack.proxy, ["--header", f"Authorization: Bearer {TOKEN}"]
    else:
        url, token = stack.gateway, ["--proxy", f"http://agent:{TOKEN}@127.0.0.1:{port}"]
    before = await stack.spent()
    command = ["curl", "--silent", "--fail", "--noproxy", "", *token]
    body = msgspec.json.encode({"model": "tiny", "messages": MESSAGES}).decode()
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--json", body, f"{url}/v1/chat/completions"),
        stdout=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name.lower() != "no_proxy"},
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert msgspec.json.decode(out)["choices"][0]["message"]["content"] == SAID
    assert await stack.spent() - before == 3 * PRICE


async def test_a_refusal_is_shown_once_and_not_retried(stack: Stack, tmp_path: Path) -> None:
    """The SDK says what the policy did not allow."""
    seen = len(stack.model.seen)
    poor = only_for(
        Secret(TOKEN), lambda: paying(stack.chain, tmp_path / "poor.db", most=PRICE - 1)
    )
    async with (
        proxying(poor, stack.gateway) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="mpp_other") as sdk,
    ):
        with pytest.raises(openai.AuthenticationError, match="found another"):
            await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
        with pytest.raises(openai.APIStatusError, match="allows 24") as refused:
            await sdk.with_options(api_key=TOKEN).chat.completions.create(
                model="tiny", messages=MESSAGES
            )
    assert refused.value.status_code == 402
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(stack.model.seen) == seen
