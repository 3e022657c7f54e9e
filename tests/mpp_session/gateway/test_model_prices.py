"""Several models at different prices on one path."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channel.errors import ConfigError, OfferRefusedError
from channel.methods.evm.method import EVM
from channel.wire.challenge import parse_challenges
from mpp_session.settings.price_rows import read_price_rows
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway, Running
from tests.mpp_session.model_server import ModelServer
from tests.mpp_session.serving import serve

ROWS = [
    {"model": "cheap", "output": "0.40"},
    {"model": "dear-*", "output": "900", "input": "1"},
]
WORDS = 3
"""Tokens of the model server's answer."""
PROMPT = 7
"""Tokens of the prompt, as it reports."""


def body(model: Any = "cheap", **more: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, **more}
    return asked if model is None else {"model": model, **asked}


def prices_of(response: httpx.Response) -> list[int]:
    """The price of a million output tokens in each challenge."""
    challenges = parse_challenges(response.headers.get_list("www-authenticate"))
    asked = [EVM.parse_request(one.request).pricing for one in challenges]
    return [one.cost({"output_token": 10**6}) for one in asked]


class Watched:
    """A gateway on a further socket: the credential and the status of each POST."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.url = ""
        self.statuses: list[int] = []
        self.credentials: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] == "POST":
                self.statuses.append(message["status"])
            await send(message)

        found = [value.decode() for name, value in scope["headers"] if name == b"authorization"]
        self.credentials += found if scope["method"] == "POST" else []
        await self._app(scope, receive, note)


@asynccontextmanager
async def watched(gateway: Running) -> AsyncIterator[Watched]:
    app = Watched(gateway.gateway)
    async with serve(app) as url:
        app.url = f"{url}/v1/chat/completions"
        yield app


async def test_each_model_is_offered_at_its_own_price(run_gateway: RunGateway) -> None:
    async with run_gateway(prices__rows=ROWS) as gateway, httpx.AsyncClient() as client:
        found = {
            model: prices_of(await client.post(gateway.completions, json=body(model)))
            for model in ("cheap", "dear-1", "dear-2")
        }
        assert found == {"cheap": [400_000], "dear-1": [900 * 10**6], "dear-2": [900 * 10**6]}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_one_channel_pays_for_both_without_a_402_each_time(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    model.usage = {"completion_tokens": WORDS, "prompt_tokens": PROMPT}
    model.tokens = PROMPT
    names = ["cheap", "dear-1", "cheap", "dear-1", "cheap"]
    async with (
        run_gateway(prices__rows=ROWS, upstream__counts="vllm") as gateway,
        watched(gateway) as app,
        open_agent() as agent,
    ):
        for name in names:
            answer = await agent.post(app.url, json=body(name, stream=is_stream))
            assert answer.status_code == 200
        assert app.statuses[-3:] == [200] * 3  # a 402 precedes the first answer of each model
        assert [seen.body["model"] for seen in model.seen] == names
        cheap, dear = -(-WORDS * 400_000 // 10**6), WORDS * 900 + PROMPT
        assert (await gateway.channel()).spent == 3 * cheap + 2 * dear


async def test_a_challenge_for_the_cheap_model_does_not_buy_the_dear_one(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-31: the credential that bought the cheap model comes with a body for the dear one."""
    async with (
        run_gateway(prices__rows=ROWS) as gateway,
        watched(gateway) as app,
        open_agent() as agent,
        httpx.AsyncClient() as thief,
    ):
        await agent.post(app.url, json=body("cheap"))
        headers = {"authorization": app.credentials[-1]}
        spent = (await gateway.channel()).spent
        stolen = await thief.post(app.url, json=body("dear-1"), headers=headers)
        assert stolen.status_code == 402
        assert stolen.json()["type"].endswith("challenge-not-found")
        assert prices_of(stolen) == [900 * 10**6]
        bare = await thief.post(f"{app.url}?a=b", content=b"", headers=headers)
        assert bare.status_code in (400, 402)
        assert (await gateway.channel()).spent == spent
    assert [seen.body["model"] for seen in model.seen] == ["cheap"]


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (b'{"model": "other"}', 404, "'other' is not sold here. Models sold under this path: "),
        (b'{"model": "DEAR-1"}', 404, "cheap, dear-*."),
        (b'{"messages": []}', 404, "`model` is missing. Models sold"),
        (b'{"model": null}', 404, "`model` is missing"),
        (b'{"model": 7}', 400, "`model` must be a text"),
        (b'{"model": "cheap", "model": "dear-1"}', 400, "names `model` twice"),
        (b"[]", 400, "not a JSON object"),
        (b"{", 400, "not JSON"),
        (b"[" * 100, 400, "nested"),
    ],
)
async def test_what_has_no_price_is_refused_before_payment(
    run_gateway: RunGateway, model: ModelServer, asked: bytes, status: int, said: str
) -> None:
    async with run_gateway(prices__rows=ROWS) as gateway, httpx.AsyncClient() as client:
        answer = await client.post(gateway.completions, content=asked)
        assert answer.status_code == status
        assert said in answer.json()["detail"]
        assert "www-authenticate" not in answer.headers
        if status == httpx.codes.NOT_FOUND:
            assert answer.json()["type"].endswith("model-not-sold")
            assert answer.json()["error"]["message"] == answer.json()["detail"]
    assert model.seen == []


async def test_a_row_for_all_models_takes_what_the_others_leave(run_gateway: RunGateway) -> None:
    rows = [*ROWS, {"output": "2"}]
    async with run_gateway(prices__rows=rows) as gateway, httpx.AsyncClient() as client:
        for name, price in (("cheap", 400_000), ("other", 2 * 10**6), (None, 2 * 10**6)):
            asked = await client.post(gateway.completions, json=body(name))
            assert prices_of(asked) == [price]


async def test_a_request_without_a_body_is_offered_every_price(run_gateway: RunGateway) -> None:
    """A close needs a challenge, and its HEAD names no model."""
    async with run_gateway(prices__rows=ROWS) as gateway, httpx.AsyncClient() as client:
        for method in ("HEAD", "POST"):
            asked = await client.request(method, gateway.completions)
            assert asked.status_code == 402
            assert prices_of(asked) == [400_000, 900 * 10**6]
        named = await client.head(gateway.completions, headers={"payment-model": "dear-1"})
        assert prices_of(named) == [900 * 10**6]
        unsold = await client.head(gateway.completions, headers={"payment-model": "other"})
        assert unsold.status_code == 404


async def test_channels_of_such_a_gateway_can_be_closed(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    async with run_gateway(prices__rows=ROWS) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body("dear-1"))
        (record,) = await agent.payments.close(gateway.url)
        assert record.state == "closed"
        assert record.refund == record.deposit - record.spent


async def test_a_quote_is_for_the_model_of_its_request(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    async with run_gateway(prices__rows=ROWS) as gateway, open_agent() as agent:
        for name, price in (("cheap", 400_000), ("dear-1", 900 * 10**6)):
            request = agent.build_request("POST", gateway.completions, json=body(name))
            quote = await agent.payments.quote(request)
            assert quote.tariff.cost({"output_token": 10**6}) == price


@pytest.mark.parametrize("path", ["/v1/chat/completions%0A", "/v1//chat/completions"])
async def test_another_spelling_of_the_path_sells_nothing(
    run_gateway: RunGateway, model: ModelServer, path: str
) -> None:
    async with run_gateway(prices__rows=ROWS) as gateway, httpx.AsyncClient() as client:
        answer = await client.post(gateway.url + path, json=body("dear-1"))
        assert answer.status_code in (400, 404)
    assert model.seen == []


async def test_a_body_is_read_within_bounds(run_gateway: RunGateway) -> None:
    async with (
        run_gateway(
            prices__rows=ROWS, upstream__body_bytes_max=1000, listen__body_timeout_s=0.2
        ) as gateway,
        httpx.AsyncClient() as client,
    ):
        large = await client.post(gateway.completions, json=body(user="x" * 2000))
        assert large.status_code == 413

        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"model": '
            await asyncio.sleep(1)
            yield b'"cheap"}'

        slow = await client.post(gateway.completions, content=pieces())
        assert slow.status_code == 408
        coded = await client.post(
            gateway.completions, content=b"x", headers={"content-encoding": "gzip"}
        )
        assert coded.status_code == 415


async def test_one_price_for_all_models_reads_no_body(run_gateway: RunGateway) -> None:
    async with (
        run_gateway(prices__rows=[{"output": "0.40"}]) as gateway,
        httpx.AsyncClient() as client,
    ):
        answer = await client.post(gateway.completions, content=b"{")
        assert answer.status_code == 402
        assert prices_of(answer) == [400_000]


async def test_the_policy_decides_by_the_price_of_the_model(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    rows = [ROWS[0], {"model": "dearest", "output": "2000"}]  # the agent pays 1000 a token
    async with run_gateway(prices__rows=rows) as gateway, open_agent() as agent:
        with pytest.raises(OfferRefusedError):
            await agent.post(gateway.completions, json=body("dearest"))
        answer = await agent.post(gateway.completions, json=body("cheap"))
        assert answer.status_code == 200
    assert [seen.body["model"] for seen in model.seen] == ["cheap"]


async def test_a_running_stream_keeps_its_price_when_prices_change(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-31: also if its model is not sold any more: its vouchers are still accepted."""
    model.held.add("held")
    model.words = ["w"] * 100
    rows = [{"model": "cheap", "output": "900"}, {"model": "dear-1", "output": "1", "input": "1"}]
    async with run_gateway(prices__rows=rows) as gateway, open_agent() as agent:
        asked = body("cheap", stream=True, user="held", max_tokens=100)
        async with agent.stream("POST", gateway.completions, json=asked) as answer:
            lines = answer.aiter_lines()
            while '"content"' not in await anext(lines):
                pass
            gateway.gateway.replace_prices(read_price_rows(rows[1:]))
            refused = await agent.post(gateway.completions, json=body("cheap"))
            assert refused.status_code == 404
            model.held.clear()
            received = [line async for line in lines]
        assert "data: [DONE]" in received
        assert (await gateway.channel()).spent == 100 * 900


async def test_invalid_prices_change_nothing(run_gateway: RunGateway) -> None:
    async with run_gateway(prices__rows=ROWS) as gateway, httpx.AsyncClient() as client:
        bad = read_price_rows([ROWS[0], {"model": "x", "output": "1 EUR"}])
        with pytest.raises(ConfigError, match=r"row 2 \(model x\): `output`"):
            gateway.gateway.replace_prices(bad)
        asked = await client.post(gateway.completions, json=body("cheap"))
        assert prices_of(asked) == [400_000]
        assert (await client.post(gateway.completions, json=body("x"))).status_code == 404


async def test_a_challenge_keeps_its_price_until_it_expires(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    """Decision 6: the client was promised that price; its next challenge has the new one."""
    async with run_gateway(prices__rows=ROWS) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body("cheap"))
        before = (await gateway.channel()).spent
        gateway.gateway.replace_prices(read_price_rows([{"model": "cheap", "output": "900"}]))
        await agent.post(gateway.completions, json=body("cheap"))
        assert (await gateway.channel()).spent - before == before
        async with httpx.AsyncClient() as client:
            asked = await client.post(gateway.completions, json=body("cheap"))
        assert prices_of(asked) == [900 * 10**6]


async def test_a_row_begins_to_count_while_the_gateway_serves(run_gateway: RunGateway) -> None:
    begins = datetime.now(UTC) + timedelta(seconds=2)
    rows = [{"model": "cheap", "output": "1", "valid_from": begins}, ROWS[0]]
    async with run_gateway(prices__rows=rows) as gateway, httpx.AsyncClient() as client:
        shown = "0.40 dUSD / 1M output tokens"
        assert shown in (await client.get(f"{gateway.url}/llms.txt")).text
        assert prices_of(await client.post(gateway.completions, json=body())) == [400_000]
        await asyncio.sleep(2.1)
        assert prices_of(await client.post(gateway.completions, json=body())) == [10**6]
        assert shown not in (await client.get(f"{gateway.url}/llms.txt")).text
