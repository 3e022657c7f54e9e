"""Paid streams over real sockets: paused and fed, left in the middle, and read slowly."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as AppRoute

from channel.http import Event, PaidEventStream, PaymentGate, Price, Route
from channel.wire.credential import format_credential
from channel.wire.receipt import parse_receipt_json
from channel.wire.sse import EventSplitter, parse_event
from settlement.dev.devnet import Devnet
from tests.e2e.selling import PRICE, Provider, provide
from tests.waiting import PATIENCE_S, within

DEPOSIT = 1_000_000
PATH = "/tokens"


class Producer:
    """Emits numbered events, at a pace, until the test stops it; knows when it was closed."""

    def __init__(self) -> None:
        self.produced = 0
        self.pace_s = 0.0
        self.size = 1
        self.closed = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        self.produced = 0
        self.closed.clear()
        return PaidEventStream(self._events(int(request.query_params["count"])))

    async def _events(self, count: int) -> AsyncIterator[Event]:
        try:
            for _ in range(count):
                await asyncio.sleep(self.pace_s)
                self.produced += 1
                yield Event("x" * self.size)
        finally:
            self.closed.set()


@pytest.fixture
async def producer() -> Producer:
    return Producer()


@pytest.fixture
async def streamer(chain: Devnet, tmp_path: Path, producer: Producer) -> AsyncIterator[Provider]:
    def build(provider: Provider) -> PaymentGate:
        price = Price(unit_price=PRICE, unit_type="token", min_voucher_delta=20 * PRICE)
        return PaymentGate(
            Starlette(routes=[AppRoute(PATH, producer.answer)]),
            engine=provider.engine,
            routes=[Route(method="GET", path=PATH, price=price, metered=True)],
        )

    async with provide(chain, tmp_path, build=build) as running:
        await running.payer.open(DEPOSIT)
        opening = await running.credential(running.payer.opening(), path=PATH)
        assert (await running.send(opening, method="HEAD", path=PATH)).status_code == 200
        yield running


async def authorize(streamer: Provider, amount: int) -> dict[str, str]:
    credential = await streamer.credential(streamer.payer.voucher(amount), path=PATH)
    return {"authorization": format_credential(credential)}


async def read_events(answer: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    splitter = EventSplitter()
    async for piece in answer.aiter_bytes():
        for block in splitter.feed(piece):
            event = parse_event(block)
            if event is not None:
                yield event


async def test_a_stream_is_fed_from_another_connection(
    streamer: Provider, producer: Producer
) -> None:
    """SSE-01, SSE-03, VCH-08, CLIENT-07: to its end, with as many pauses as vouchers."""
    asked = 20 * PRICE
    pauses = units = 0
    headers = await authorize(streamer, asked)
    client = streamer.client
    async with client.stream("GET", f"{PATH}?count=100", headers=headers) as answer:
        assert answer.headers["payment-receipt"]
        async for name, data in read_events(answer):
            if name == "payment-need-voucher":
                pauses += 1
                asked = int(msgspec.json.decode(data)["requiredCumulative"])
                paid = await streamer.send(streamer.payer.voucher(asked), method="HEAD", path=PATH)
                assert paid.status_code == 200
            elif name == "payment-receipt":
                receipt = parse_receipt_json(data)
            else:
                units += 1
    assert (units, pauses, producer.produced) == (100, 4, 100)
    assert (receipt.units, receipt.spent, receipt.accepted) == (100, 100 * PRICE, asked)
    books = await streamer.books()
    assert books is not None
    assert (books.spent, books.reserved) == (100 * PRICE, 0)


async def test_who_leaves_pays_for_what_was_sent_and_the_producer_ends(
    streamer: Provider, producer: Producer
) -> None:
    """SSE-07, F-56: within two seconds, and the channel goes on."""
    producer.pace_s = 0.02
    headers = await authorize(streamer, 1_000 * PRICE)
    received = 0
    async with streamer.client.stream("GET", f"{PATH}?count=900", headers=headers) as answer:
        async for _ in read_events(answer):
            received += 1
            if received == 25:
                break
    async with within(2):
        await producer.closed.wait()
    async with within(2), streamer.ledger.watch(streamer.payer.key) as watch:
        while (books := await streamer.books()) is None or books.reserved:
            await watch.changed(0.1)
    assert received * PRICE <= books.spent <= producer.produced * PRICE
    assert producer.produced < 200
    producer.pace_s = 0
    headers = await authorize(streamer, 1_020 * PRICE)
    answer = await streamer.client.get(f"{PATH}?count=5", headers=headers)
    assert answer.status_code == 200
    after = await streamer.books()
    assert after is not None
    assert after.spent == books.spent + 5 * PRICE


async def test_who_leaves_while_the_stream_waits_for_money_ends_it(
    streamer: Provider, producer: Producer
) -> None:
    """SSE-03, SSE-07, F-56, F-60: within two seconds, not after the pause."""
    headers = await authorize(streamer, 20 * PRICE)
    async with streamer.client.stream("GET", f"{PATH}?count=100", headers=headers) as answer:
        async for name, _ in read_events(answer):
            if name == "payment-need-voucher":
                break
    async with within(2):
        await producer.closed.wait()
    async with within(2), streamer.ledger.watch(streamer.payer.key) as watch:
        while (books := await streamer.books()) is None or books.reserved:
            await watch.changed(0.1)
    assert books.spent == 20 * PRICE


async def test_who_does_not_read_is_not_charged_ahead(
    streamer: Provider, producer: Producer
) -> None:
    """F-56: the producer stops when the transport is full, and so does the meter."""
    producer.size = 64 * 1024
    headers = await authorize(streamer, 90_000 * PRICE)
    host, port = streamer.client.base_url.host, streamer.client.base_url.port
    reader, writer = await asyncio.open_connection(host, port, limit=1024)
    head = f"GET {PATH}?count=80000 HTTP/1.1\r\nhost: x\r\n"
    writer.write(f"{head}authorization: {headers['authorization']}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    produced = -1
    async with asyncio.timeout(PATIENCE_S):
        while produced != producer.produced:
            produced = producer.produced
            await asyncio.sleep(0.2)
    writer.transport.abort()
    async with within(2):
        await producer.closed.wait()
    async with within(2), streamer.ledger.watch(streamer.payer.key) as watch:
        while (books := await streamer.books()) is None or books.reserved:
            await watch.changed(0.1)
    assert books.spent <= producer.produced * PRICE
    assert producer.produced < 1_000


async def test_a_channel_keeps_one_account_over_many_streams(
    streamer: Provider, producer: Producer
) -> None:
    """ACC-01, ACC-02, RCPT-02: around the edges of a step, and each receipt adds up."""
    spent = 0
    for number, count in enumerate((1, 31, 32, 33, 64, 65), start=1):
        headers = await authorize(streamer, number * 100 * PRICE)
        answer = await streamer.client.get(f"{PATH}?count={count}", headers=headers)
        blocks = EventSplitter().feed(answer.content)
        event = parse_event(blocks[-1])
        assert event is not None
        receipt = parse_receipt_json(event[1])
        spent += count * PRICE
        assert (receipt.units, receipt.spent) == (count, spent)
        assert producer.produced == count
