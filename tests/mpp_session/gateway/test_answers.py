"""Answers, paid: a real gateway, ledger, chain and agent; the model server is ours."""

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from channel.client.payments import Summary
from channel.limits import LENGTH_DIGITS_MAX
from mpp_session.agent.client import PayingClient
from mpp_session.gateway.asking import read_request
from mpp_session.gateway.errors import RequestTooLargeError
from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway
from tests.mpp_session.model_server import ModelServer, chunk, sse
from tests.waiting import PATIENCE_S, until, within

MESSAGES = [{"role": "user", "content": "hello"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, **fields}


async def read_stream(client: httpx.AsyncClient, url: str, **fields: Any) -> list[str]:
    """The data of every event the agent's code gets to see."""
    async with client.stream("POST", url, json=body(stream=True, **fields)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]


def text_of(events: list[str]) -> str:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    choices = [choice for piece in chunks for choice in piece.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def summary(agent: PayingClient) -> Summary:
    (one,) = await agent.payments.summary()
    return one


async def test_a_stream_is_paid_chunk_by_chunk_and_arrives_whole(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    """SSE-04, ACC-04: three content chunks cost three units; the rest of the step comes back."""
    async with run_gateway() as gateway, open_agent() as agent:
        events = await read_stream(agent, gateway.completions)
        assert text_of(events) == "one two three"
        assert events[-1] == "[DONE]"
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (3 * PRICE, 0)
        assert (await summary(agent)).units == 3


async def test_two_answers_are_paid_from_one_channel(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    async with run_gateway() as gateway, open_agent() as agent:
        await read_stream(agent, gateway.completions)
        await read_stream(agent, gateway.completions)
        assert (await gateway.channel()).spent == 6 * PRICE


async def test_the_books_may_be_kept_in_postgresql(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, postgres_url: str
) -> None:
    """DESIGN decision 9: the same gateway, the same charges, also voucher by voucher."""
    model.words = ["x"] * 60
    small = {"payment__reservation_step_units": 8, "ledger__url": postgres_url}
    async with run_gateway(**small) as gateway, open_agent(voucher_step=10) as agent:
        assert text_of(await read_stream(agent, gateway.completions)) == "x" * 60
        answer = await agent.post(gateway.completions, json=body(max_tokens=80))
        assert answer.status_code == 200
        assert (await gateway.channel()).spent == 120 * PRICE
        (closed,) = await agent.payments.close(gateway.url)
        assert closed.settled == 120 * PRICE


async def test_exact_counts_charge_what_the_server_counted(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-57: two tokens in one chunk are two units, and the end token is one."""
    model.pieces = [
        chunk(role="assistant"),
        chunk(content="one", timings=1),
        chunk(content=" two three", timings=3),
        chunk(timings=4),
        sse("[DONE]"),
    ]
    async with run_gateway(upstream__counts="llama.cpp") as gateway, open_agent() as agent:
        assert text_of(await read_stream(agent, gateway.completions)) == "one two three"
        assert (await gateway.channel()).spent == 4 * PRICE
    assert model.seen[0].body["timings_per_token"] is True


async def test_a_long_stream_goes_on_voucher_by_voucher(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """SSE-01, SSE-03: the agent signs small steps, the stream waits for each and misses nothing."""
    model.words = [f"{number} " for number in range(150)]
    async with (
        run_gateway(payment__reservation_step_units=8) as gateway,
        open_agent(voucher_step=10) as agent,
    ):
        assert text_of(await read_stream(agent, gateway.completions)) == "".join(model.words)
        assert (await gateway.channel()).spent == 150 * PRICE
        assert (await summary(agent)).vouchers > 5


async def test_an_answer_in_one_piece_costs_its_usage(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    model.usage = {"completion_tokens": 7}
    async with run_gateway() as gateway, open_agent() as agent:
        response = await agent.post(gateway.completions, json=body(max_tokens=20))
        assert response.json()["choices"][0]["message"]["content"] == "one two three"
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (7 * PRICE, 0)
        assert response.headers["payment-receipt"]


async def test_an_explicit_zero_for_nothing_is_free_and_a_missing_count_is_no_answer(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-57: charging without a count would be a guess."""
    async with run_gateway() as gateway, open_agent() as agent:
        model.usage, model.words = {"completion_tokens": 0}, []
        assert (await agent.post(gateway.completions, json=body(max_tokens=5))).status_code == 200
        assert (await gateway.channel()).spent == 0
        model.usage, model.words = {}, ["one"]
        refused = await agent.post(gateway.completions, json=body(max_tokens=5))
        assert refused.status_code == 502
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (0, 0)


async def test_an_answer_longer_than_its_reservation_is_not_sold(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """ACC-05: never delivered beyond what is held."""
    model.usage = {"completion_tokens": 6}
    async with run_gateway() as gateway, open_agent() as agent:
        refused = await agent.post(gateway.completions, json=body(max_tokens=5))
        assert refused.status_code == 502
        assert "one two" not in refused.text
        assert (await gateway.channel()).spent == 0


@pytest.mark.parametrize("tokens", [0, -3, 1, 2])
async def test_a_count_below_what_was_delivered_is_not_believed(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, tokens: int
) -> None:
    """O-02: three choices cannot have fewer than three tokens; their text decides then."""
    choices = [{"index": i, "message": {"content": f"choice {i}"}} for i in range(3)]
    model.answer = JSONResponse({"choices": choices, "usage": {"completion_tokens": tokens}})
    async with run_gateway(upstream__counts="usage") as gateway, open_agent() as agent:
        response = await agent.post(gateway.completions, json=body(max_tokens=5, n=3))
        assert response.status_code == 200
        assert (await gateway.channel()).spent == 6 * PRICE


async def test_without_a_bound_an_answer_in_one_piece_is_held_by_default_and_given_back(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-44: the call that every framework makes; with a default of 0 it is refused, and free."""
    async with run_gateway() as gateway, open_agent() as agent:
        response = await agent.post(gateway.completions, json=body())
        assert response.status_code == 200
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (3 * PRICE, 0)
        assert state.accepted >= 1024 * PRICE
    assert model.seen[0].body["max_tokens"] == 1024


async def test_an_operator_may_refuse_answers_without_a_bound(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    async with run_gateway(upstream__default_max_tokens=0) as gateway, open_agent() as agent:
        refused = await agent.post(gateway.completions, json=body())
        assert refused.status_code == 400
        assert "max_tokens" in refused.json()["detail"]
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (0, 0)
    assert model.seen == []


async def test_unpaid_requests_never_reach_the_model(
    run_gateway: RunGateway, model: ModelServer
) -> None:
    """CORE-02: 402 with a challenge, and no side effect."""
    async with run_gateway() as gateway, httpx.AsyncClient() as stranger:
        for payload in (body(stream=True), body(max_tokens=1)):
            response = await stranger.post(gateway.completions, json=payload)
            assert response.status_code == 402
            assert response.headers["www-authenticate"].startswith("Payment ")
            assert response.headers["cache-control"] == "no-store"
        assert await gateway.channels() == []
    assert model.seen == []


REFUSALS: list[tuple[Response, int]] = [
    (JSONResponse({"error": {"message": "no such model"}}, 404), 404),
    (JSONResponse({"error": {"message": "context too long"}}, 400), 400),
    (PlainTextResponse("broken", 500), 500),
    (JSONResponse({"error": "slow down"}, 429, {"retry-after": "3"}), 429),
    (JSONResponse({"error": "bad key"}, 401), 502),
    (JSONResponse({"error": "pay me"}, 402, {"www-authenticate": 'Payment id="x"'}), 502),
    (JSONResponse({"error": "no"}, 403), 502),
]


@pytest.mark.parametrize(("answer", "status"), REFUSALS)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_what_the_model_server_refuses_is_not_charged(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    answer: Response,
    status: int,
    *,
    is_stream: bool,
) -> None:
    """F-48, F-58, CORE-07: asked once, passed on without a receipt; a refusal of the gateway
    itself becomes 502.
    """
    model.answer = answer
    async with run_gateway() as gateway, open_agent() as agent:
        payload = body(stream=is_stream, max_tokens=5)
        response = await agent.post(gateway.completions, json=payload)
        assert response.status_code == status
        assert "payment-receipt" not in response.headers
        assert "www-authenticate" not in response.headers
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (0, 0)
        assert len(model.seen) == 1


async def test_an_answer_that_is_no_stream_is_502_before_a_stream_is_begun(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-57: a model server that does not know `stream`, or a page in between."""
    model.answer = JSONResponse({"object": "chat.completion"})
    async with run_gateway() as gateway, open_agent() as agent:
        response = await agent.post(gateway.completions, json=body(stream=True))
        assert (response.status_code, response.json()["title"]) == (502, "Model Server Failed")
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (0, 0)


async def test_a_stream_that_breaks_off_is_paid_as_far_as_it_came_and_says_so(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-57: charged once, for what was delivered; the agent learns that it is not the whole."""
    model.pieces = [chunk(content="one"), chunk(content=" two")]
    async with run_gateway() as gateway, open_agent() as agent:
        events = await read_stream(agent, gateway.completions)
        assert "error" in json.loads(events[-1])
        assert (await gateway.channel()).spent == 2 * PRICE


@pytest.mark.parametrize(
    "pieces",
    [
        [sse("{not json")],
        [sse('["choices"]')],
        ["data: " + "[" * 100_000 + "\n\n"],
        ["event: payment-receipt\ndata: {}\n\n"],
    ],
)
async def test_what_is_no_chunk_ends_the_stream_without_a_crash(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, pieces: list[str]
) -> None:
    """F-02, F-55: nothing a model server sends passes for a payment event, or ends the gateway."""
    model.pieces = [*pieces, chunk(content="never"), sse("[DONE]")]
    async with run_gateway() as gateway, open_agent() as agent:
        events = await read_stream(agent, gateway.completions)
        assert ("never" in text_of(events)) == pieces[0].startswith("event:")
        model.pieces = None
        assert text_of(await read_stream(agent, gateway.completions)) == "one two three"


async def test_a_client_that_leaves_cancels_the_model_within_two_seconds(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-56, SSE-07: what was sent is paid, the rest is neither generated nor charged."""
    model.words, model.delay_s = ["x"] * 10_000, 0.01
    async with run_gateway() as gateway, open_agent() as agent:
        async with agent.stream(
            "POST", gateway.completions, json=body(stream=True, max_tokens=4000)
        ) as response:
            async for line in response.aiter_lines():
                if '"x"' in line:
                    break
        async with within(2):
            await model.cancelled.wait()
        await _until_released(gateway)
        state = await gateway.channel()
        assert PRICE <= state.spent <= model.sent * PRICE


async def _until_released(gateway: Any) -> None:
    async def is_released() -> bool:
        return not (await gateway.channel()).reserved

    await until(is_released)


async def test_a_client_that_leaves_before_an_answer_in_one_piece_pays_nothing(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    model.may_answer.clear()
    async with run_gateway() as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(n=0))  # opens the channel, sells nothing
        asking = asyncio.create_task(agent.post(gateway.completions, json=body(max_tokens=5)))
        await until(lambda: bool(model.seen))
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.wait_for(model.cancelled.wait(), PATIENCE_S)
        await _until_released(gateway)
        assert (await gateway.channel()).spent == 0


async def test_a_client_that_stops_paying_gets_its_receipt_and_frees_the_model(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-60: one request for a voucher, a bounded pause, the receipt, and the model is cancelled."""
    model.words = ["x"]
    async with (
        run_gateway(payment__pause_timeout_s=0.5, payment__reservation_step_units=4) as gateway,
        open_agent(voucher_step=8) as agent,
        httpx.AsyncClient() as bare,
    ):
        await read_stream(agent, gateway.completions, max_tokens=1)
        model.words, model.delay_s = ["x"] * 1000, 0.001
        header = await _stolen_header(agent, gateway.completions)
        async with bare.stream(
            "POST", gateway.completions, json=body(stream=True), headers=header
        ) as response:
            text = (await response.aread()).decode()
        assert text.count("event: payment-need-voucher") == 1
        assert text.rstrip().rpartition("\n\n")[2].startswith("event: payment-receipt")
        await asyncio.wait_for(model.cancelled.wait(), PATIENCE_S)
        state = await gateway.channel()
        assert state.reserved == 0
        assert state.spent == state.accepted - state.accepted % PRICE


async def _stolen_header(agent: PayingClient, url: str) -> dict[str, str]:
    """The credential of the agent's next request, taken off the wire before it is sent."""
    taken: dict[str, str] = {}
    transport: Any = agent._transport  # noqa: SLF001 -- the test plays a broken agent
    inner = transport._inner  # noqa: SLF001

    async def take(request: httpx.Request) -> httpx.Response:
        taken["authorization"] = request.headers["authorization"]
        return httpx.Response(204)

    transport._inner = httpx.MockTransport(take)  # noqa: SLF001
    await agent.post(url, json=body(stream=True))
    transport._inner = inner  # noqa: SLF001
    return taken


async def test_nothing_of_the_client_but_named_headers_reaches_the_model(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """F-93, F-103: no credential, cookie or app authorisation crosses; events come uncompressed."""
    private = {
        "cookie": "session=1",
        "x-api-key": "mine",
        "x-forwarded-for": "10.0.0.1",
        "accept-encoding": "gzip",
        "x-request-id": "abc",
    }
    async with run_gateway(upstream__api_key="for-the-model") as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(max_tokens=5), headers=private)
    headers = model.seen[0].headers
    assert headers["authorization"] == "Bearer for-the-model"
    assert headers["accept-encoding"] == "identity"
    assert headers["x-request-id"] == "abc"
    forbidden = {"cookie", "x-api-key", "x-forwarded-for", "idempotency-key", "accept-payment"}
    assert forbidden.isdisjoint(headers)


async def test_a_client_authorization_is_never_passed_on(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    async with run_gateway() as gateway, open_agent() as agent:
        await read_stream(agent, gateway.completions)
    assert "authorization" not in model.seen[0].headers


async def test_a_body_above_the_bound_is_refused_before_the_model(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """SEC-10."""
    async with run_gateway(upstream__body_bytes_max=1000) as gateway, open_agent() as agent:
        response = await agent.post(gateway.completions, json=body(max_tokens=1, x="y" * 1000))
        assert response.status_code == 413
        assert (await gateway.channel()).spent == 0
    assert model.seen == []


async def test_a_content_length_has_at_most_so_many_digits() -> None:
    """SEC-10, issue 10 B: a number with more digits is not read, and neither is the body.

    The application is asked without a server: some servers refuse such a field before it.
    """
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"{}", "more_body": False}

    def request(length: str) -> Request:
        field = (b"content-length", length.encode())
        return Request({"type": "http", "method": "POST", "headers": [field]}, receive)

    assert await read_request(request("2".zfill(LENGTH_DIGITS_MAX)), 1000) == b"{}"
    assert received == 1
    with pytest.raises(RequestTooLargeError):
        await read_request(request("2".zfill(LENGTH_DIGITS_MAX + 1)), 1000)
    assert received == 1


async def test_a_retry_with_the_same_key_is_answered_again_and_charged_once(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """IDEM-02, F-26, F-27: the stored answer, not a second one."""
    async with run_gateway() as gateway, open_agent() as agent:
        headers = {"idempotency-key": "one and the same"}
        answers = [
            await agent.post(gateway.completions, json=body(max_tokens=9), headers=headers)
            for _ in range(2)
        ]
        assert answers[0].json() == answers[1].json()
        assert (await gateway.channel()).spent == 3 * PRICE
    assert len(model.seen) == 1


async def test_streams_end_with_their_receipt_when_the_gateway_stops(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """SSE-04: a shutdown loses no receipt and leaves nothing reserved."""
    model.words, model.delay_s = ["x"] * 10_000, 0.01
    async with run_gateway() as gateway, open_agent() as agent:
        events = []
        async with agent.stream("POST", gateway.completions, json=body(stream=True)) as response:
            async for line in response.aiter_lines():
                events.append(line)
                if len(events) == 20:
                    gateway.gateway.end_streams()
        state = await gateway.channel()
        assert state.reserved == 0
        (account,) = await agent.payments.channels()
        assert account.spent == state.spent == account.received


async def test_a_model_server_that_says_nothing_is_504_and_free(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    model.delay_s = 5.0
    async with run_gateway(upstream__read_timeout_s=0.3) as gateway, open_agent() as agent:
        response = await agent.post(gateway.completions, json=body(max_tokens=1))
        assert response.status_code == 504
        assert (await gateway.channel()).spent == 0


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip", "br", "deflate"])
async def test_a_compressed_request_is_refused_unread(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, coding: str
) -> None:
    """O-23: a bomb is neither unpacked here nor handed to the model server to unpack."""
    bomb = gzip.compress(gzip.compress(bytes(10_000_000)))
    headers = {"content-encoding": coding, "content-type": "application/json"}
    async with run_gateway() as gateway, open_agent() as agent:
        answer = await agent.post(gateway.completions, content=bomb, headers=headers)
        assert answer.status_code == 415
        assert answer.json()["type"].endswith("unsupported-coding")
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (0, 0)
    assert model.seen == []


HOSTILE = {
    "wide": b'{"stream":true,"messages":[' + b"[]," * 1_000_000 + b"0]}",
    "deep and wide": b'{"stream":true,"messages":['
    + (b"[" * 60 + b"]" * 60 + b",") * 30_000
    + b"0]}",
    "many keys": b'{"stream":true,' + b'"k":0,' * 600_000 + b'"k":1}',
    "logit_bias": b'{"stream":true,"logit_bias":{' + b'"1":0,' * 600_000 + b'"2":0}}',
}


async def test_hostile_bodies_are_refused_and_cost_nothing(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-22: a voucher is accepted, and nothing spent; how short the turns are is in test_chat."""
    large = {"upstream__body_bytes_max": 4 * 1024 * 1024}
    async with run_gateway(**large) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(max_tokens=3))
        asked = len(model.seen)
        spent = (await gateway.channel()).spent
        for content in HOSTILE.values():
            answer = await agent.post(gateway.completions, content=content)
            assert answer.status_code == 400
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (spent, 0)
    assert len(model.seen) == asked
