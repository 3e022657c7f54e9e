"""A hostile server with several rates, on a real socket: no more is signed than is due."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from channel.errors import (
    AgentError,
    OfferRefusedError,
    OverclaimError,
    PaymentRefusedError,
    ReceiptViolationError,
)
from channel.methods.evm.method import EVM
from channel.tariff import Rate, RunningCost, Tariff, Usage
from channel.wire.encoding import canonical_json, encode_base64url
from channel.wire.receipt import format_receipt_json
from channel.wire.sse import NeedVoucher, format_event, format_need_voucher
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import only_voucher
from tests.channel.client.provider import Books, Provider, Seen
from tests.channel.client.sockets import serve_provider

MODEL = Tariff(
    (
        Rate("output_token", 4, 10),
        Rate("input_token", 1, 10),
        Rate("cached_input_token", 1, 100),
    ),
    minimum=2,
)
CAPS = {"output_token": 1, "input_token": 1, "cached_input_token": 1, "image": 9}
STEP = 26
"""64 output tokens."""
BODY = {"stream": True, "prompt": "x" * 200}
PROMPT = len(json.dumps(BODY, separators=(",", ":"))) + 64


class Ask:
    """Buys over a socket, and returns the text."""

    def __init__(self, agent: Agent, url: str) -> None:
        self.agent = agent
        self._url = url

    async def __call__(self, body: dict[str, Any] = BODY) -> str:
        content = json.dumps(body, separators=(",", ":"))
        url = f"{self._url}/chat"
        async with self.agent.client.stream("POST", url, content=content) as response:
            response.raise_for_status()
            return (await response.aread()).decode()


@pytest.fixture
async def ask(open_agent: OpenAgent, provider: Provider) -> AsyncIterator[Ask]:
    policy = policy_of(
        {"unit_price_max": CAPS, "deposit_max": 100_000, "budget": 100_000},
        allow_loopback_http=True,
    )
    async with serve_provider(provider) as url, httpx.AsyncHTTPTransport() as transport:
        yield Ask(await open_agent(policy, transport=transport), url)


def offer(provider: Provider, tariff: Tariff = MODEL) -> None:
    price, unit_type = tariff.unit()
    provider.offer = {"unit_price": price, "unit_type": unit_type, "tariff": tariff}


def sell(provider: Provider, *usages: Usage, tariff: Tariff = MODEL, text: str = "word ") -> None:
    """Sell a stream with these events, honestly: each is paid for before it is sent."""
    offer(provider, tariff)
    provider.tokens = 1

    async def speak(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        cost = RunningCost(tariff)
        for usage in usages:
            async for need in wait(provider, seen, books, cost.price_of(usage)):
                yield need
            books.spent += cost.add(usage)
            stated = None if usage == {"output_token": 1} else usage
            yield format_event(chunk(text), usage=stated)
        receipt = provider.receipt(seen, books, usage=cost.usage)
        yield format_event(format_receipt_json(receipt), "payment-receipt")

    provider.speak = speak


def chunk(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]})


async def wait(provider: Provider, seen: Seen, books: Books, price: int) -> AsyncIterator[bytes]:
    """Ask until so much more is paid."""
    assert seen.credential is not None
    while books.accepted - books.spent < price:
        provider.waiting.clear()
        need = NeedVoucher(
            channel_id=seen.credential.payload.channel_id,
            required_cumulative=books.spent + price,
            accepted=books.accepted,
            deposit=books.deposit,
        )
        yield format_need_voucher(need)
        await provider.waiting.wait()


async def signed(ask: Ask) -> int:
    (account,) = await ask.agent.payments.channels()
    return account.signed


def bound(output: int, *, tariff: Tariff = MODEL) -> int:
    """What so many events may cost with all of the prompt, and one step."""
    return tariff.cost({"output_token": output, "input_token": PROMPT}) + STEP


async def test_an_honest_stream_is_counted_to_the_base_unit(ask: Ask, provider: Provider) -> None:
    usages = [{"input_token": 57, "cached_input_token": 8, "output_token": 1}]
    sell(provider, *usages, *[{"output_token": 1}] * 300, {"output_token": 4})
    for turn in range(1, 4):
        assert (await ask()).count("content") == 302
        (account,) = await ask.agent.payments.channels()
        cost = MODEL.cost({"input_token": 57, "cached_input_token": 8, "output_token": 305})
        (books,) = provider.books.values()
        assert books.spent == account.spent == account.received == turn * cost
        assert account.signed <= account.received + bound(0)


@pytest.mark.parametrize("kind", ["input_token", "cached_input_token"])
async def test_input_that_the_prompt_cannot_hold_is_not_paid(
    ask: Ask, provider: Provider, kind: str
) -> None:
    """F-94: each event states the whole prompt again; what it states beyond that is not counted."""
    tariff = replace(MODEL, rates=(MODEL.rates[0], Rate(kind, 1)))
    sell(provider, *[{kind: PROMPT, "output_token": 1}] * 50, tariff=tariff)
    with pytest.raises(OverclaimError):
        await ask()
    assert await signed(ask) <= tariff.cost({"output_token": 1, kind: PROMPT}) + STEP


@pytest.mark.parametrize("claimed", [bound(1) + 1, 10_000, 2**127])
async def test_a_claim_beyond_the_prompt_is_refused_before_anything_is_served(
    ask: Ask, provider: Provider, claimed: int
) -> None:
    """F-94: and no deposit follows it."""
    offer(provider)
    provider.override = lambda seen: (
        provider.refuse("session/insufficient-balance", requiredCumulative=claimed, spent=0)
        if seen.credential is not None and seen.method == "POST"
        else None
    )
    with pytest.raises(OverclaimError) as caught:
        await ask()
    assert caught.value.asked == claimed
    assert caught.value.allowed <= bound(1)
    assert await signed(ask) <= bound(1)


@pytest.mark.parametrize("more", [1, 10**6])
async def test_a_claim_beyond_the_count_ends_a_stream(
    ask: Ask, provider: Provider, more: int
) -> None:
    """F-94, CLIENT-06."""
    sell(provider)

    async def speak(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        assert seen.credential is not None
        for _ in range(10):
            yield format_event(chunk("word "))
        need = NeedVoucher(
            channel_id=seen.credential.payload.channel_id,
            required_cumulative=bound(10) + more,
            accepted=books.accepted,
            deposit=books.deposit,
        )
        yield format_need_voucher(need)

    provider.speak = speak
    with pytest.raises(OverclaimError) as caught:
        await ask()
    assert caught.value.allowed <= bound(10)
    assert await signed(ask) <= bound(10)


RISES = {
    "tariff.input_token": replace(MODEL, rates=(MODEL.rates[0], Rate("input_token", 11, 100))),
    "tariff.output_token": replace(MODEL, rates=(Rate("output_token", 5, 10), *MODEL.rates[1:])),
    "tariff.image": replace(MODEL, rates=(*MODEL.rates, Rate("image", 1))),
    "tariff.minimum": replace(MODEL, minimum=3),
}


@pytest.mark.parametrize("field", RISES)
async def test_what_rises_while_a_stream_runs_is_refused(
    ask: Ask, provider: Provider, field: str
) -> None:
    """F-95: the field is named, and no voucher is signed under the new price."""
    sell(provider, *[{"output_token": 1}] * 500)

    def dearer(seen: Seen) -> httpx.Response | None:
        if seen.method == "HEAD" and only_voucher(seen):
            offer(provider, RISES[field])
            return provider.refuse("session/challenge-not-found")
        return None

    provider.override = dearer
    with pytest.raises(OfferRefusedError, match=field.replace(".", r"\.")) as caught:
        await ask()
    assert caught.value.field == field
    (books,) = provider.books.values()
    (account,) = await ask.agent.payments.channels()
    assert account.signed <= account.received + bound(0)
    assert books.accepted <= account.signed


@pytest.mark.parametrize("field", RISES)
@pytest.mark.parametrize("kind", ["session/insufficient-balance", "session/challenge-not-found"])
async def test_what_rises_between_offer_and_answer_is_refused(
    ask: Ask, provider: Provider, field: str, kind: str
) -> None:
    """F-95: a request is answered at the price at which it was begun, or not paid again."""
    offer(provider)

    def dearer(seen: Seen) -> httpx.Response | None:
        if seen.method == "POST" and seen.credential is not None:
            offer(provider, RISES[field])
            return provider.refuse(kind, requiredCumulative=20)
        return None

    provider.override = dearer
    with pytest.raises(OfferRefusedError) as caught:
        await ask()
    assert caught.value.field == field
    assert len([seen for seen in provider.paid if seen.method == "POST"]) == 1


async def test_a_price_that_changed_between_requests_is_paid_within_the_caps(
    ask: Ask, provider: Provider
) -> None:
    """A challenge keeps its price until it ends; then the caps decide."""
    sell(provider, {"output_token": 1})
    await ask()
    dearer = RISES["tariff.output_token"]
    sell(provider, {"output_token": 1}, tariff=dearer)
    refusals = iter([provider.refuse("session/challenge-not-found")])
    provider.override = lambda seen: next(refusals, None) if seen.credential else None
    assert (await ask()).count("content") == 1


async def test_a_price_that_was_refused_is_asked_for_anew(ask: Ask, provider: Provider) -> None:
    """The next request begins at the new price, if the caps allow it."""
    sell(provider, {"output_token": 1})
    await ask()
    sell(provider, {"output_token": 1}, tariff=RISES["tariff.minimum"])
    refusals = iter([provider.refuse("session/insufficient-balance", requiredCumulative=4)])
    provider.override = lambda seen: next(refusals, None) if seen.credential else None
    with pytest.raises(OfferRefusedError, match=r"tariff\.minimum"):
        await ask()
    assert (await ask()).count("content") == 1


async def test_an_event_of_a_kind_that_was_not_offered_ends_the_stream(
    ask: Ask, provider: Provider
) -> None:
    sell(provider)

    async def speak(_seen: Seen, books: Books) -> AsyncIterator[bytes]:
        books.spent = books.accepted
        yield format_event(chunk("word "), usage={"image": 1})

    provider.speak = speak
    with pytest.raises(ReceiptViolationError, match="usage of image 1; expected only what the"):
        await ask()
    assert await signed(ask) <= bound(1)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_receipt_of_a_kind_that_was_not_offered_stops_the_channel(
    ask: Ask, provider: Provider, *, is_stream: bool
) -> None:
    """CLIENT-09."""
    sell(provider, {"output_token": 1})
    provider.tokens = int(is_stream)
    provider.change_receipt = lambda fields: fields | {"units": None, "usage": {"image": 1}}
    with pytest.raises(ReceiptViolationError, match="usage of image"):
        await ask({"stream": is_stream})
    (account,) = await ask.agent.payments.channels()
    assert account.state == "stopped"


async def test_a_receipt_that_states_too_much_raises_no_count(ask: Ask, provider: Provider) -> None:
    """F-94: of an answer in one piece, and of the input of a stream."""
    body = {"stream": False, "max_tokens": 10}
    prompt = len(json.dumps(body, separators=(",", ":"))) + 64
    offer(provider)
    said = {"output_token": 10**9, "input_token": 10**9}
    provider.change_receipt = lambda fields: fields | {"units": None, "usage": said}
    await ask(body)
    (account,) = await ask.agent.payments.channels()
    assert account.received == MODEL.cost({"output_token": 10, "input_token": prompt})
    sell(provider, {"output_token": 1})
    await ask()
    before, account = account, (await ask.agent.payments.channels())[0]
    assert account.received - before.received == bound(1) - STEP


HUGE = "9" * 500_000


@pytest.mark.parametrize(
    "line",
    [
        f"payment-usage: input_token={HUGE}",
        f"payment-usage: {'input_token=1,' * 40_000}output_token=1",
        f"payment-usage: {','.join(f'kind_{place}=1' for place in range(50_000))}",
        "payment-usage: input_token=1,input_token=1",
        "payment-usage: input_token=-1",
        "payment-usage: " + "x" * 2_000_000,
    ],
)
async def test_a_statement_that_cannot_be_read_is_one_unit_or_the_end(
    ask: Ask, provider: Provider, line: str
) -> None:
    """F-02, F-94."""
    sell(provider)

    async def speak(_seen: Seen, books: Books) -> AsyncIterator[bytes]:
        books.spent = books.accepted
        for _ in range(3):
            yield f"{line}\ndata: {chunk('word ')}\n\n".encode()

    provider.speak = speak
    if len(line) > 10**6:
        with pytest.raises(PaymentRefusedError, match="cannot be metered"):
            await ask()
    else:
        await ask()
        (account,) = await ask.agent.payments.channels()
        assert account.units == 3
    assert await signed(ask) <= bound(3)


@pytest.mark.parametrize(
    "changes",
    [{"amount": "1"}, {"unitType": "output_token"}, {"unitType": "4_output_tokens"}],
)
async def test_a_tariff_that_contradicts_what_others_are_shown_is_refused(
    ask: Ask, provider: Provider, changes: dict[str, str]
) -> None:
    """CHAL-02: a reader that knows one rate only must see the main one."""
    offer(provider)
    wire = EVM.request_object(provider.asked) | changes
    provider.challenge_changes = {"request": encode_base64url(canonical_json(wire))}
    with pytest.raises(OfferRefusedError, match="its main rate is 2 for each 5_output_tokens"):
        await ask()
    assert not provider.paid
    assert await ask.agent.payments.channels() == []


async def test_no_mixture_of_lies_is_signed_for(ask: Ask, provider: Provider) -> None:
    """F-94: everything that the server holds at the end is within the count and one step."""
    sell(provider)

    async def speak(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        for place in range(200):
            said = {"input_token": 10**6, "cached_input_token": 10**6, "output_token": 10**6}
            yield format_event("ab", usage=said)
            if place % 10 == 9:
                async for need in wait(provider, seen, books, 1):
                    yield need
            books.spent = books.accepted

    provider.speak = speak
    with pytest.raises(AgentError):
        await ask(BODY | {"max_tokens": 20})
    (account,) = await ask.agent.payments.channels()
    prompt = PROMPT + len(',"max_tokens":20')
    top = MODEL.cost({"output_token": 40, "input_token": prompt}) + STEP
    assert account.signed <= top
