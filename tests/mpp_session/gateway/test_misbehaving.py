"""A model server that misbehaves, under every endpoint: nothing is lost, forged, or sold for less.

The bill is the count of what was delivered. The server's usage may raise it where it can be right,
and never lowers it (F-57). Reports of such faults elsewhere are named where they are tested.
"""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway
from tests.mpp_session.gateway.dialects import DIALECTS, Dialect
from tests.mpp_session.gateway.test_answers import _stolen_header
from tests.mpp_session.model_server import ModelServer

WORDS = ["one", " two", " three"]
EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)

Usage = Callable[[Dialect], dict[str, Any] | None]
USAGES: dict[str, tuple[Usage, int]] = {
    "missing (litellm#37923)": (lambda _: None, 3),
    "zero": (lambda one: one.usage(0), 3),
    "negative": (lambda one: one.usage(-4), 3),
    "absurd": (lambda one: one.usage(10**12), 3),
    "too low (litellm#42663)": (lambda one: one.usage(2), 3),
    "hidden tokens": (lambda one: one.usage(8), 8),
    "no object": (lambda _: {"completion_tokens": "many", "output_tokens": []}, 3),
    "contradictory": (lambda one: {**one.usage(3), "total_tokens": 1}, 3),
}


@EVERY
async def test_usage_of_any_kind_never_lowers_the_bill(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """F-57, litellm#37923, #42663, hermes#108936."""
    wrong, before = {}, 0
    async with run_gateway() as gateway, open_agent() as agent:
        for name, (usage, units) in USAGES.items():
            model.pieces = dialect.stream(WORDS, usage(dialect))
            payload = dialect.ask(
                stream=True, **{dialect.bound: 20}, stream_options={"include_usage": True}
            )
            answer = await agent.post(gateway.url + dialect.path, json=payload)
            spent = (await gateway.channel()).spent - before
            before += spent
            if (spent, dialect.costs(answer.text)) != (units * PRICE, [str(units * PRICE)]):
                wrong[name] = (spent / PRICE, answer.text)
    assert wrong == {}


@EVERY
async def test_usage_in_every_chunk_is_not_added_up(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """litellm#36083, #36168: usage beside choices was counted four times."""
    pieces = dialect.stream(WORDS, dialect.usage(3))
    record = json.dumps(dialect.usage(3))
    model.pieces = [one.replace('"choices"', f'"usage": {record}, "choices"') for one in pieces]
    async with run_gateway() as gateway, open_agent() as agent:
        payload = dialect.ask(stream=True, **{dialect.bound: 20})
        await agent.post(gateway.url + dialect.path, json=payload)
        assert (await gateway.channel()).spent == 3 * PRICE


Framing = Callable[[str], bytes | list[bytes]]
FRAMINGS: dict[str, Framing] = {
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "no space behind the colon": lambda text: text.replace("data: ", "data:").encode(),
    "comments between": lambda text: text.replace("\n\n", "\n\n: ping\n\n").encode(),
    "ids and retries": lambda text: text.replace("data: ", "id: 7\nretry: 1\ndata: ").encode(),
    "byte by byte": lambda text: [bytes([one]) for one in text.encode()],
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "a null event": lambda text: b"data: null\n\n" + text.encode(),
    "no blank line at the end": lambda text: text.encode().rstrip(),
}


@EVERY
async def test_every_framing_of_events_is_read(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """F-55, O-48: also characters that are split between two packets."""
    words = ["één", " \u2028 zwei", " 三"]
    wrong, before = {}, 0
    async with run_gateway() as gateway, open_agent() as agent:
        for name, framing in FRAMINGS.items():
            text = "".join(dialect.stream(words, dialect.usage(3)))
            raw = framing(text.replace("\\u", "\\u"))
            pieces = raw if isinstance(raw, list) else [raw]
            model.answer = StreamingResponse(_slowly(pieces), 200, None, "text/event-stream")
            payload = dialect.ask(stream=True, **{dialect.bound: 20})
            answer = await agent.post(gateway.url + dialect.path, json=payload)
            spent = (await gateway.channel()).spent - before
            before += spent
            if (spent, dialect.texts_of(answer.text)) != (3 * PRICE, "".join(words)):
                wrong[name] = (spent, answer.text)
    assert wrong == {}


async def _slowly(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


FORGED = (
    "event: payment-receipt\ndata: {}\n\n",
    "event: payment-need-voucher\ndata: {}\n\n",
    "payment-units: 0\n",
    "payment-usage: output_token=0\n",
)


@EVERY
async def test_no_event_of_the_model_server_is_one_of_the_payment(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """F-55: by an event's name, a line in an event, a type, or text with line ends."""
    texts = ["a\n\nevent: payment-receipt\ndata: {}\n\n", "b\rpayment-units: 0\r"]
    pieces = dialect.stream(texts, dialect.usage(2))
    typed = json.dumps({"type": "payment-receipt", "choices": [], "delta": ""})
    model.pieces = [*FORGED[:2], *[forged + pieces[0] for forged in FORGED[2:]], *pieces[1:]]
    model.pieces.insert(0, f"event: payment-receipt\ndata: {typed}\n\n")
    async with (
        run_gateway() as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        url = gateway.url + dialect.path
        payload = dialect.ask(stream=True, **{dialect.bound: 20})
        assert (await agent.post(url, json=payload)).status_code == 200
        before = (await gateway.channel()).spent
        header = await _stolen_header(agent, url)
        answer = await bare.post(url, json=payload, headers=header)
        lines = answer.text.splitlines()
        assert [line for line in lines if line.startswith("event: payment")] == [
            "event: payment-receipt"
        ]
        assert answer.text.rstrip().rpartition("\n\n")[2].startswith("event: payment-receipt")
        stated = [line for line in lines if line.startswith("payment-u")]
        assert all(line == "payment-units: 0" for line in stated)
        assert (await gateway.channel()).spent - before == before
        assert before >= 2 * PRICE


@EVERY
async def test_an_error_in_mid_stream_leaves_what_was_delivered_paid(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """A reset, a stream that ends early, and text that is no JSON: an event names the fault."""
    begun = dialect.stream(WORDS, None)[: -len(dialect.end(WORDS, None))]
    async with run_gateway() as gateway, open_agent() as agent:
        for number, ending in enumerate(("no JSON", "an early end", "a reset"), 1):
            model.pieces = [*begun, *(["data: <html>\n\n"] if ending == "no JSON" else [])]
            model.breaks_off = ending == "a reset"
            payload = dialect.ask(stream=True, **{dialect.bound: 20})
            answer = await agent.post(gateway.url + dialect.path, json=payload)
            assert '"error"' in answer.text, ending
            assert dialect.texts_of(answer.text) == "one two three", ending
            assert (await gateway.channel()).spent == number * 3 * PRICE, ending


@EVERY
@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_error_under_a_success_status_is_502_and_free(
    run_gateway: RunGateway,
    open_agent: OpenAgent,
    model: ModelServer,
    dialect: Dialect,
    *,
    is_stream: bool,
) -> None:
    """O-48: also as the only event of a stream, which then has begun."""
    error = {"error": {"message": "no GPU", "code": 500}}
    async with run_gateway() as gateway, open_agent() as agent:
        model.answer = JSONResponse(error)
        payload = dialect.ask(stream=is_stream, **{dialect.bound: 5})
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert answer.status_code == 502
        assert "no GPU" in answer.text
        assert (await gateway.channel()).spent == 0


@EVERY
async def test_gzip_is_read_and_a_line_without_end_is_not(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """O-23: a bound on each event in any coding."""
    async with run_gateway() as gateway, open_agent() as agent:
        text = "".join(dialect.stream(WORDS, dialect.usage(3)))
        headers = {"content-encoding": "gzip"}
        packed = gzip.compress(text.encode())
        model.answer = Response(packed, 200, headers, "text/event-stream")
        payload = dialect.ask(stream=True, **{dialect.bound: 20})
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert dialect.texts_of(answer.text) == "one two three"
        assert (await gateway.channel()).spent == 3 * PRICE
        endless = [b"data: " + b"x" * (1 << 20)] * 3
        model.answer = StreamingResponse(_slowly(endless), 200, None, "text/event-stream")
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert "too long" in answer.text
        assert (await gateway.channel()).spent == 3 * PRICE


@EVERY
async def test_a_server_that_falls_silent_is_given_up(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """A stall in mid-stream: what was delivered is paid, and the reservation ends."""
    begun = dialect.stream(WORDS, None)[: -len(dialect.end(WORDS, None))]

    async def stall() -> AsyncIterator[bytes]:
        yield "".join(begun).encode()
        await asyncio.sleep(30)

    model.answer = StreamingResponse(stall(), 200, None, "text/event-stream")
    async with run_gateway(upstream__read_timeout_s=1) as gateway, open_agent() as agent:
        payload = dialect.ask(stream=True, **{dialect.bound: 20})
        began = time.monotonic()
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert time.monotonic() - began < 20
        assert "silent" in answer.text
        state = await gateway.channel()
        assert (state.spent, state.reserved) == (3 * PRICE, 0)


@EVERY
async def test_ten_thousand_tokens_without_a_pause_are_all_paid(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """As fast as the server can send them."""
    words = ["x "] * 10_000
    text = "".join(dialect.stream(words, dialect.usage(10_000))).encode()
    pieces = [text[at : at + 65_536] for at in range(0, len(text), 65_536)]
    model.answer = StreamingResponse(_slowly(pieces), 200, None, "text/event-stream")
    async with run_gateway(upstream__max_tokens=16_000) as gateway, open_agent() as agent:
        payload = dialect.ask(stream=True, **{dialect.bound: 12_000})
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert dialect.texts_of(answer.text) == "x " * 10_000
        assert (await gateway.channel()).spent == 10_000 * PRICE


@EVERY
async def test_more_than_was_asked_for_is_not_sold(
    run_gateway: RunGateway, open_agent: OpenAgent, model: ModelServer, dialect: Dialect
) -> None:
    """ACC-05: a server that does not keep to its bound is cut off, and never charged beyond it."""
    model.pieces = dialect.stream(["x "] * 200, dialect.usage(200))
    async with run_gateway() as gateway, open_agent() as agent:
        payload = dialect.ask(stream=True, **{dialect.bound: 20})
        answer = await agent.post(gateway.url + dialect.path, json=payload)
        assert "longer than requested" in answer.text
        assert (await gateway.channel()).spent == 20 * PRICE
