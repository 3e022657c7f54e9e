"""O-09: events that are many units each, or none, sold and paid for by our own parts."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel.errors import OverclaimError
from channel.http.events import Event, Frame, _read_chunk
from channel.wire.sse import format_event, parse_event, parse_event_usage
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import read_stream, sell_stream
from tests.channel.client.provider import Books, Provider, Seen

PRICE = 10
ROWS = "x" * 400


def batches(provider: Provider, *units: int, text: str = ROWS) -> None:
    """Sell events of so many units each, as the gate writes them; and honestly."""
    sell_stream(provider, 1)

    async def speak(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        for count in units:
            provider.tokens = 1
            frame, cost, _, _ = _read_chunk(Event(text, units=count), "row")
            asked = provider.offer
            provider.offer = asked | {"unit_price": PRICE * cost}
            if cost:
                async for piece in honest(seen, books):
                    yield piece
                    if b"content" not in piece and b"need" not in piece:
                        break
            provider.offer = asked
            yield frame
        yield format_event("[DONE]")

    async def honest(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        async for piece in Provider.events(provider, seen, books):
            if b"need-voucher" in piece:
                yield piece
            elif b"content" in piece:
                return

    provider.speak = speak


@pytest.mark.parametrize(
    ("step", "units"),
    [
        (64, (64,) * 20),
        (64, (1, 64, 0, 7, 63, 0, 1)),
        (4096, (100,) * 60),
        (4096, (400, 3) * 5),
    ],
)
async def test_batches_are_paid_for_as_they_say(
    open_agent: OpenAgent, provider: Provider, step: int, units: tuple[int, ...]
) -> None:
    """O-09: 60 events of 100 units ended in an overclaim after 41."""
    agent = await open_agent(policy_of({"deposit_max": 10**6, "budget": 10**6}, voucher_step=step))
    batches(provider, *units)
    text = await read_stream(agent)
    assert text.count(ROWS) == len(units)
    (account,) = await agent.payments.channels()
    (books,) = provider.books.values()
    assert books.spent == account.received == sum(units) * PRICE
    assert account.signed <= account.received + (step + 1) * PRICE


async def test_a_batch_is_believed_as_far_as_its_text_bears_it(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-09, F-94: a hostile server gains nothing by large numbers on empty events."""
    agent = await open_agent(policy_of(voucher_step=5))
    sell_stream(provider, 1)

    async def speak(_seen: Seen, books: Books) -> AsyncIterator[bytes]:
        books.spent = books.accepted
        for _ in range(10):
            yield format_event("ab", units=10**17)

    provider.speak = speak
    await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert account.received == 10 * 2 * PRICE


async def test_a_batch_beyond_the_step_is_refused(agent: Agent, provider: Provider) -> None:
    """O-09, F-94: the step is the most that is paid for before it comes."""
    batches(provider, 100)
    with pytest.raises(OverclaimError):
        await read_stream(agent)


@pytest.mark.parametrize(
    ("block", "units"),
    [
        (b"data: x\n\n", None),
        (b"payment-units: 7\ndata: x\n\n", 7),
        (b"data: x\npayment-units:0\n\n", 0),
        (b"data: payment-units: 7\n\n", None),
        (b"payment-units: -7\ndata: x\n\n", None),
        (b"payment-units: 9999999999999999999\ndata: x\n\n", None),
    ],
)
def test_an_event_says_its_units_on_a_line_of_its_own(block: bytes, units: Any) -> None:
    assert parse_event_usage(block) == units


def test_only_the_gate_can_write_the_units_that_the_payer_reads() -> None:
    """O-09, F-55: text and other servers' events cannot say what they cost."""
    frame, *_ = _read_chunk(Event("a\npayment-units: 9\nb", units=3), "row")
    assert parse_event_usage(frame) == 3
    assert parse_event(frame) == ("message", "a\npayment-units: 9\nb")
    assert _read_chunk(Event("one"), "row")[0] == b"data: one\n\n"
    for field in (b"payment-units: 9", b"payment-usage: row=9"):
        frame, *used = _read_chunk(Frame(field + b"\ndata: x\n\n"), "row")
        assert (frame, used) == (b": dropped\n\n", [0, 0, None])
