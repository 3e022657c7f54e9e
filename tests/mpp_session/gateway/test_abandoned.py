"""Unpaid work is bounded for each channel, and then paid in advance (O-07)."""

import asyncio
from typing import Any

import httpx
import pytest

from channel.errors import OverclaimError
from channel.types import Address, ChannelId, ChannelKey
from mpp_session.agent.client import PayingClient
from mpp_session.gateway.abandoned import AbandonedWork
from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway, Running
from tests.mpp_session.gateway.test_answers import _stolen_header
from tests.mpp_session.model_server import ModelServer, chunk, sse
from tests.waiting import PATIENCE_S, until

MESSAGES = [{"role": "user", "content": "hello"}]


def key(number: int) -> ChannelKey:
    return ChannelKey(1, Address(bytes(20)), ChannelId(number.to_bytes(32)))


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, **fields}


def test_a_channel_may_leave_so_much_and_not_one_more() -> None:
    work = AbandonedWork(100)
    work.add(key(1), 100)
    assert not work.must_prepay(key(1))
    work.add(key(1), 1)
    assert work.must_prepay(key(1))
    assert not work.must_prepay(key(2))
    work.make_up(key(1), 1)
    assert not work.must_prepay(key(1))
    work.make_up(key(1), 10**6)
    work.add(key(1), 100)
    assert not work.must_prepay(key(1)), "nothing is put by for later"


def test_a_channel_may_wait_in_vain_so_often_and_not_once_more() -> None:
    work = AbandonedWork(100)
    work.add_unanswered(key(1), 100)
    assert not work.must_stream(key(1))
    work.add_unanswered(key(1), 1)
    assert work.must_stream(key(1))
    assert not work.must_prepay(key(1)), "it is charged nothing for it"
    work.make_up(key(1), 1)
    assert not work.must_stream(key(1))


def test_memory_is_bounded_by_channels() -> None:
    work = AbandonedWork(0, channels_max=2)
    for number in range(3):
        work.add(key(number), 1)
    assert [work.must_prepay(key(number)) for number in range(3)] == [False, True, True]


async def released(gateway: Running) -> None:
    async def is_released() -> bool:
        return not (await gateway.channel()).reserved

    await until(is_released)


async def leave(agent: PayingClient, gateway: Running, model: ModelServer, **fields: Any) -> None:
    """Ask for an answer, and go when the model is at work."""
    seen = len(model.seen)
    model.cancelled.clear()
    asking = asyncio.create_task(agent.post(gateway.completions, json=body(**fields)))
    await until(lambda: len(model.seen) > seen)
    asking.cancel()
    await asyncio.wait({asking})
    await asyncio.wait_for(model.cancelled.wait(), PATIENCE_S)
    await released(gateway)


async def test_answers_left_again_and_again_are_paid_for(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-07: 2,400 tokens for 0. Two of forty are free here, what comes then is paid in full."""
    async with run_gateway(upstream__abandoned_units_max=79) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(n=0))  # opens the channel, sells nothing
        spent = []
        model.may_answer.clear()
        for _ in range(4):
            await leave(agent, gateway, model, max_tokens=40)
            spent.append((await gateway.channel()).spent // PRICE)
        assert spent == [0, 0, 40, 80]
        model.may_answer.set()
        answer = await agent.post(gateway.completions, json=body(max_tokens=40))
        assert answer.status_code == 200, "and a client that pays is served"
        assert (await gateway.channel()).spent == 83 * PRICE


@pytest.mark.parametrize("is_stream", [True, False])
async def test_prompts_that_are_read_and_abandoned_repeatedly_are_paid_for(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, *, is_stream: bool
) -> None:
    """O-07: a long prompt for one token, left while the model reads it, was free without end."""
    async with run_gateway(upstream__abandoned_units_max=79) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(n=0))  # opens the channel, sells nothing
        spent = []
        model.may_answer.clear()
        prompt = [{"role": "user", "content": "x" * 64 * 40}]
        for _ in range(4):
            await leave(agent, gateway, model, max_tokens=1, messages=prompt, stream=is_stream)
            spent.append((await gateway.channel()).spent // PRICE)
        assert spent == [0, 0, 1, 2]


async def test_answers_that_take_too_long_in_one_piece_are_asked_for_as_streams(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-07: 4,096 tokens of a slow model took longer than the gateway waits, and cost nothing."""
    settings = {
        "upstream__abandoned_units_max": 79,
        "upstream__read_timeout_s": 0.3,
        "upstream__connect_timeout_s": 1.0,
    }
    async with run_gateway(**settings) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(n=0))  # opens the channel, sells nothing
        model.may_answer.clear()
        statuses = []
        for number in range(4):  # each another request, which no key of a lost one answers
            long = body(max_tokens=40, seed=number)
            statuses.append((await agent.post(gateway.completions, json=long)).status_code)
        assert statuses == [504, 504, 400, 400]
        channel = await gateway.channel()
        assert (channel.spent, channel.reserved) == (0, 0), "nothing of it was the payer's fault"
        model.may_answer.set()
        stream = await agent.post(gateway.completions, json=body(stream=True))
        assert stream.status_code == 200, "a stream is served, and makes up for it"
        answer = await agent.post(gateway.completions, json=body(max_tokens=40))
        assert answer.status_code == 200


async def test_a_stream_that_is_not_paid_on_stops_the_model_and_counts(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer
) -> None:
    """O-07: 4,096 tokens for 1 unit, again and again."""
    settings = {
        "payment__pause_timeout_s": 0.3,
        "payment__reservation_step_units": 1,
        "upstream__abandoned_units_max": 3000,
    }
    async with (
        run_gateway(**settings) as gateway,
        open_agent(voucher_step=2) as agent,
        httpx.AsyncClient() as bare,
    ):
        model.words = ["x"]
        await agent.post(gateway.completions, json=body(stream=True, max_tokens=1))
        model.words, model.delay_s = ["x"] * 4096, 0.001
        header = await _stolen_header(agent, gateway.completions)
        answer = await bare.post(
            gateway.completions, json=body(stream=True), headers=header, timeout=20
        )
        assert answer.status_code == 200
        await asyncio.wait_for(model.cancelled.wait(), PATIENCE_S)
        await released(gateway)
        assert len(model.seen) == 2
        with pytest.raises(OverclaimError, match="up to 102"):
            await agent.post(gateway.completions, json=body(stream=True))
        assert len(model.seen) == 2, "nothing runs before all of it is paid for"


@pytest.mark.parametrize("tokens_max", [8, 50])
async def test_a_stream_that_must_be_paid_in_advance_is_served_to_the_end(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, tokens_max: int
) -> None:
    """O-07: and what is not used of it is given back."""
    async with run_gateway(upstream__abandoned_units_max=0) as gateway, open_agent() as agent:
        await agent.post(gateway.completions, json=body(n=0))
        model.may_answer.clear()
        await leave(agent, gateway, model, max_tokens=40)
        model.may_answer.set()
        model.pieces = [chunk(content="x")] * 5 + [sse("[DONE]")]
        payload = body(stream=True, max_tokens=tokens_max)
        answer = await agent.post(gateway.completions, json=payload)
        assert "[DONE]" in answer.text
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (5 * PRICE, 0)
        assert state.accepted >= tokens_max * PRICE
