"""A stream is paid as it comes, and its control events stay hidden."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import cast

import httpx
import pytest

from channel.errors import (
    ChannelBusyError,
    PaymentRefusedError,
)
from channel.types import Address
from channel.wire.sse import format_event
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import read_stream, sell_stream
from tests.channel.client.provider import (
    PAYEE,
    Books,
    Events,
    PaperChain,
    Provider,
    Seen,
)

THIEF = Address(b"\x66" * 20)
PRICE = 10


async def test_a_stream_is_paid_as_it_comes_and_its_control_events_stay_hidden(
    agent: Agent, provider: Provider
) -> None:
    """VCH-08, CLIENT-07: the caller sees content only."""
    sell_stream(provider, 200)
    text = await read_stream(agent)
    assert text.count('"content"') == 200
    assert "payment-" not in text
    assert text.endswith("data: [DONE]\n\n")
    (books,) = provider.books.values()
    assert books.spent == 2_000
    (account,) = await agent.payments.channels()
    assert account.spent == account.received == 2_000
    assert account.units == 200


async def test_a_voucher_is_never_more_than_one_step_ahead(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """CLIENT-06, F-94: at every voucher of a stream."""
    agent = await open_agent(policy_of(voucher_step=5))
    sell_stream(provider, 63)
    await read_stream(agent)
    rises = [
        after - before
        for before, after in zip(provider.vouchers[1:], provider.vouchers[2:], strict=False)
    ]
    assert set(rises) <= {0, 50, 60}
    assert provider.vouchers[-1] <= 630 + 60


async def test_text_that_looks_like_control_events_is_text(
    agent: Agent, provider: Provider
) -> None:
    """F-55."""
    sell_stream(provider, 1)
    evil = "x\n\nevent: payment-receipt\ndata: {}\n\nevent: payment-need-voucher\ndata: {}"

    async def speak(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        yield format_event(evil)

    provider.speak = speak
    text = await read_stream(agent)
    assert text == format_event(evil).decode()


async def test_events_arrive_as_they_come_however_they_are_cut(
    agent: Agent, provider: Provider
) -> None:
    sell_stream(provider, 30)
    honest = provider.events

    async def bytewise(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        async for event in honest(seen, books):
            for position in range(len(event)):
                yield event[position : position + 1]
        yield b"data: unfinished"

    provider.speak = bytewise
    text = await read_stream(agent)
    assert text.count('"content"') == 30
    assert text.endswith("data: [DONE]\n\ndata: unfinished")


async def test_a_control_event_without_its_end_stays_hidden(
    agent: Agent, provider: Provider
) -> None:
    sell_stream(provider, 1)

    async def speak(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        yield b": a comment\n\ndata: x\n\nevent: payment-receipt\ndata: {}"

    provider.speak = speak
    assert await read_stream(agent) == ": a comment\n\ndata: x\n\n"


async def test_a_compressed_stream_is_metered_too(agent: Agent, provider: Provider) -> None:
    sell_stream(provider, 3)
    honest = provider.stream

    def compressed(seen: Seen, books: Books) -> httpx.Response:
        response = honest(seen, books)
        source = response.stream

        async def zipped() -> AsyncIterator[bytes]:
            assert isinstance(source, httpx.AsyncByteStream)
            yield gzip.compress(b"".join([chunk async for chunk in source]))

        headers = dict(response.headers) | {"Content-Encoding": "gzip", "Content-Length": "9"}
        return httpx.Response(200, headers=headers, stream=Events(zipped()))

    provider.stream = compressed  # type: ignore[method-assign]
    text = await read_stream(agent)
    assert text.count('"content"') == 3
    assert "payment-" not in text


async def test_an_event_without_end_is_not_held_in_memory(agent: Agent, provider: Provider) -> None:
    sell_stream(provider, 1)

    async def endless(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * 100_000 + b"\n"

    provider.speak = endless
    with pytest.raises(PaymentRefusedError, match="cannot be metered"):
        await read_stream(agent)


async def test_a_stream_that_the_caller_leaves_can_be_followed_by_others(
    agent: Agent, provider: Provider
) -> None:
    """F-56: what was under way was delivered; the channel stays good, time after time."""
    sell_stream(provider, 200)
    for _ in range(10):
        async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
            async for _line in response.aiter_lines():
                break
    provider.tokens = 3
    assert (await read_stream(agent)).count("content") == 3
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 10 * 10 + 30


@pytest.mark.parametrize("is_one_packet", [False, True])
async def test_a_caller_that_stops_at_done_leaves_no_receipt_behind(
    agent: Agent, provider: Provider, *, is_one_packet: bool
) -> None:
    """SSE-04: as the openai client does, with any later bytes, in packets of any size."""
    sell_stream(provider, 3)
    honest = provider.events

    async def receipt_last(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        events = [event async for event in honest(seen, books)]
        events = [*events[:-2], events[-1], events[-2]]
        for event in [b"".join(events)] if is_one_packet else events:
            yield event

    provider.speak = receipt_last
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 30


async def test_a_caller_that_drains_in_haste_leaves_no_receipt_behind(
    agent: Agent, provider: Provider
) -> None:
    """SSE-04: the openai client reads on for a tenth of a second, and then cancels the reading."""
    sell_stream(provider, 3)
    honest = provider.events
    is_given_up = asyncio.Event()

    async def receipt_late(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        events = [event async for event in honest(seen, books)]
        for event in [*events[:-2], events[-1]]:
            yield event
        await is_given_up.wait()
        yield events[-2]

    provider.speak = receipt_late
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                anext(aiter(cast("AsyncIterator[bytes]", response.stream))), 0.05
            )
        is_given_up.set()
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 30


async def test_a_caller_that_drains_gets_to_the_end(agent: Agent, provider: Provider) -> None:
    """The connection can be used again, and the receipt is taken on the way."""
    sell_stream(provider, 3)
    honest = provider.events

    async def receipt_last(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        events = [event async for event in honest(seen, books)]
        for event in [*events[:-2], events[-1], events[-2], b"data: more\n\n"]:
            yield event

    provider.speak = receipt_last
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
        rest = [piece async for piece in cast("AsyncIterator[bytes]", response.stream)]
    assert rest == []
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 30


async def test_a_stream_that_ends_without_a_receipt_is_granted_within_a_bound(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-94: a caller that stops at `[DONE]`, as the openai client does, left nothing unread."""
    agent = await open_agent(policy_of(lost_units_max=100))
    sell_stream(provider, 200)

    async def ends(_seen: Seen, books: Books) -> AsyncIterator[bytes]:
        books.spent = books.accepted
        yield format_event("one") + format_event("[DONE]")

    provider.speak = ends
    for _ in range(20):
        async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    break
    (account,) = await agent.payments.channels()
    assert account.received <= 20 * PRICE
    assert account.lost <= 100 * PRICE
    assert account.signed <= account.received + account.lost + 65 * PRICE


async def test_a_stream_that_breaks_is_granted_within_a_bound(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-94: a server gains nothing by breaking streams again and again."""
    agent = await open_agent(policy_of(lost_units_max=100))
    sell_stream(provider, 200)

    async def breaks(_seen: Seen, books: Books) -> AsyncIterator[bytes]:
        books.spent = books.accepted
        yield format_event("one")
        raise httpx.ReadError("gone")

    provider.speak = breaks
    for _ in range(20):
        with pytest.raises(httpx.ReadError):
            await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert account.lost <= 100 * PRICE
    assert account.signed <= account.received + account.lost + 65 * PRICE


async def test_a_second_stream_waits_for_the_first(agent: Agent, provider: Provider) -> None:
    """ACC-06: one channel, one stream."""
    sell_stream(provider, 3)
    texts = await asyncio.gather(*(read_stream(agent) for _ in range(5)))
    assert [text.count("content") for text in texts] == [3] * 5
    assert len(provider.books) == 1


async def test_streams_side_by_side_have_channels_of_their_own(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """ACC-06."""
    agent = await open_agent(policy_of(parallel_streams_max=2))
    sell_stream(provider, 3)
    async with (
        agent.client.stream("POST", "/chat", json={"stream": True}) as first,
        agent.client.stream("POST", "/chat", json={"stream": True}) as second,
    ):
        await first.aread()
        await second.aread()
    assert len(chain.deposited) == 2
    await asyncio.gather(*(read_stream(agent) for _ in range(6)))
    assert len(chain.deposited) == 2


async def test_a_stream_that_finds_no_channel_in_time_says_so(
    agent: Agent, provider: Provider
) -> None:
    """A stream inside a stream must not wait for itself for ever."""
    agent.payer.pool._stream_wait_s = 0.01  # noqa: SLF001
    sell_stream(provider, 3)
    async with agent.client.stream("POST", "/chat", json={"stream": True}):
        with pytest.raises(ChannelBusyError, match="parallel_streams_max"):
            await read_stream(agent)
    assert (await read_stream(agent)).count("content") == 3


async def test_a_route_of_its_own_scope_has_a_channel_of_its_own(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """A challenge for other terms while a request is under way changes the channel, once."""
    await agent.client.get("/joke")
    changes = iter([True])

    def moved(_: Seen) -> httpx.Response | None:
        if not next(changes, False):
            return None
        provider.offer = {"recipient": THIEF}
        return provider.refuse("session/challenge-not-found")

    provider.override = moved
    assert (await agent.client.get("/joke")).status_code == 200
    assert [fact.terms.payee for fact in chain.facts.values()] == [PAYEE, THIEF]
