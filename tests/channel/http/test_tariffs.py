"""Requests sold under tariffs, on a real gate and ledger: exact to the base unit."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as AppRoute

from channel.errors import ConfigError
from channel.http import Event, Frame, PaidEventStream, PaymentGate, Price, Route, metered
from channel.http.asgi import ASGIApp
from channel.http.events import Chunk
from channel.methods.evm.method import EVM
from channel.tariff import Rate, Tariff, Usage
from channel.types import TokenUnit
from channel.wire.challenge import Challenge
from channel.wire.credential import format_credential
from channel.wire.sse import EventSplitter, parse_event_usage
from tests.channel.http.test_events import Tokens, events, final_receipt, has, pay
from tests.channel.selling import Answer, Provider, Visit, ask, never_stop, open_provider

USDC = TokenUnit("USDC", 6)
DEPOSIT = 10**9
MODEL = Price(rates={"output_token": "0.40 / 1M", "input_token": "0.10 / 1M"})

# From LiteLLM's model_prices_and_context_window.json, in dollars per million tokens.
PUBLISHED: Mapping[str, Mapping[str, str]] = {
    "text-embedding-3-small": {"input_token": "0.02", "output_token": "0"},
    "amazon.nova-lite-v1:0": {"output_token": "0.24", "input_token": "0.06"},
    "gemini-2.0-flash-lite": {
        "output_token": "0.30",
        "input_token": "0.075",
        "cached_input_token": "0.01875",
    },
    "gemini-2.0-flash": {
        "output_token": "0.40",
        "input_token": "0.10",
        "cached_input_token": "0.025",
        "audio_token": "0.70",
    },
    "ft:gpt-4o-mini-2024-07-18": {
        "output_token": "1.20",
        "input_token": "0.30",
        "cached_input_token": "0.15",
    },
    "gemini-2.5-flash": {
        "output_token": "2.50",
        "reasoning_token": "2.50",
        "input_token": "0.30",
        "cached_input_token": "0.03",
        "audio_token": "1.00",
    },
    "ft:gpt-4.1-mini-2025-04-14": {
        "output_token": "3.20",
        "input_token": "0.80",
        "cached_input_token": "0.20",
    },
    "ft:gpt-4o-2024-08-06": {
        "output_token": "15",
        "input_token": "3.75",
        "cached_input_token": "1.875",
    },
    "amazon.nova-2-pro-preview-20251202-v1:0": {
        "output_token": "17.5",
        "input_token": "2.1875",
        "cached_input_token": "0.546875",
    },
    "claude-opus-4-1": {
        "output_token": "75",
        "input_token": "15",
        "cached_input_token": "1.50",
        "cache_write_token": "18.75",
    },
}


def exact(rates: Mapping[str, str], usage: Usage) -> Fraction:
    """Base units of six decimals: a dollar per million tokens is one for each."""
    return sum((Fraction(rates[kind]) * units for kind, units in usage.items()), Fraction(0))


def route(price: Any = MODEL, path: str = "/stream", *, is_metered: bool = True) -> Route:
    return Route(method="GET", path=path, price=price, metered=is_metered)


def gate_of(provider: Provider, app: ASGIApp, *routes: Route, **options: Any) -> PaymentGate:
    return PaymentGate(
        app,
        engine=provider.engine,
        routes=routes or [route()],
        unit=USDC,
        stop_worker=never_stop,
        **options,
    )


def streaming(*chunks: Chunk) -> ASGIApp:
    async def produce() -> AsyncIterator[Chunk]:
        for chunk in chunks:
            yield chunk

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PaidEventStream(produce())(scope, receive, send)

    return app


async def opened(provider: Provider, app: ASGIApp, path: str = "/stream") -> Challenge:
    """Open the channel; return a challenge for the path."""
    challenge = (await ask(app, "GET", path)).challenge
    provider.payer.open_on_chain(DEPOSIT)
    credential = provider.payer.credential(challenge, provider.payer.opening())
    assert (await ask(app, "HEAD", path, credential)).status == 200
    return challenge


async def buy(
    provider: Provider, app: ASGIApp, challenge: Challenge, amount: int, path: str = "/stream"
) -> Visit:
    credential = provider.payer.credential(challenge, provider.payer.voucher(amount))
    return Visit(app, "GET", path, headers={"authorization": format_credential(credential)})


async def answered(
    provider: Provider, app: ASGIApp, challenge: Challenge, amount: int, path: str = "/stream"
) -> Answer:
    return await (await buy(provider, app, challenge, amount, path)).answer()


@pytest.mark.parametrize(("minimum", "cost"), [(None, 20), ("0.00005", 50)])
async def test_a_thousand_tokens_at_two_cents_a_million_cost_twenty_base_units(
    tmp_path: Path, minimum: str | None, cost: int
) -> None:
    """Exactly, or the minimum."""
    price = Price(rates={"output_token": "0.02 / 1M"}, minimum=minimum)
    async with open_provider(tmp_path) as provider:
        gate = gate_of(provider, streaming(*["x"] * 1000), route(price))
        visit = await buy(provider, gate, await opened(provider, gate), 100)
        await visit.answer()
        receipt = final_receipt(visit)
        assert (receipt.spent, receipt.units, receipt.usage) == (cost, 1000, None)
        assert (await provider.books()).reserved == 0


@pytest.mark.parametrize("model", PUBLISHED)
async def test_a_published_price_is_configured_and_sold(tmp_path: Path, model: str) -> None:
    """From 0.02 to 75 dollars a million tokens: the exact price, rounded up once."""
    chance = random.Random(model)  # noqa: S311 - a repeatable history, not a secret
    rates = PUBLISHED[model]
    price = Price(rates={kind: f"{dollars} / 1M" for kind, dollars in rates.items()})
    others = {kind: chance.randrange(1, 5000) for kind in rates if kind != "output_token"}
    chunks: list[Chunk] = [Event("", usage=dict(others))]
    for _ in range(200):
        units = chance.randrange(1, 4)
        chunks.append(Event("word", usage={"output_token": units}))
        others["output_token"] = others.get("output_token", 0) + units
    async with open_provider(tmp_path) as provider:
        gate = gate_of(provider, streaming(*chunks), route(price))
        visit = await buy(provider, gate, await opened(provider, gate), DEPOSIT // 2)
        await visit.answer()
        receipt = final_receipt(visit)
        assert receipt.usage == others
        assert receipt.spent == ceil(exact(rates, others))


async def test_a_stream_that_is_charged_chunk_by_chunk_costs_its_totals(tmp_path: Path) -> None:
    """Paused and paid again and again, in chunks of every size: the price of the totals."""
    chance = random.Random(5)  # noqa: S311 - a repeatable history, not a secret
    async with open_provider(tmp_path, reservation_step_units=8) as provider:
        tokens = Tokens()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await PaidEventStream(tokens())(scope, receive, send)

        gate = gate_of(provider, app)
        challenge = await opened(provider, gate)
        usage = {"input_token": 0, "output_token": 0}
        paid = 1
        visit = await buy(provider, gate, challenge, paid)
        for emitted in range(1, 120):
            used = {"output_token": chance.randrange(0, 9), "input_token": chance.randrange(0, 90)}
            for kind, units in used.items():
                usage[kind] += units
            tokens.queue.put_nowait(Event("x", usage=used))
            due = MODEL.tariff_in(USDC).cost(usage)
            if due > paid:
                await visit.until(has(visit, "payment-need-voucher"))
                paid = due + chance.randrange(3)
                await pay(provider, gate, paid)
            await visit.until(has(visit, "message", emitted))
            state = await provider.books()
            assert state.spent <= due <= state.spent + state.reserved <= paid
        tokens.end()
        await visit.answer()
        receipt = final_receipt(visit)
        assert receipt.usage == usage
        assert receipt.spent == MODEL.tariff_in(USDC).cost(usage)
        assert receipt.spent == ceil(exact({"output_token": "0.4", "input_token": "0.1"}, usage))


async def test_events_state_what_they_cost(tmp_path: Path) -> None:
    """O-09: one unit of the main kind needs no line."""
    chunks: Sequence[Chunk] = [
        Event("a", usage={"input_token": 57, "output_token": 1}),
        Event("b", usage={"output_token": 3}),
        "c",
        Event("d", usage={}),
        Frame(b"data: e", usage={"input_token": 2}),
        Frame(b"data: f\n\n", usage={"output_token": 1}),
        Event("[DONE]", usage={"output_token": 1}),
    ]
    async with open_provider(tmp_path) as provider:
        gate = gate_of(provider, streaming(*chunks))
        visit = await buy(provider, gate, await opened(provider, gate), 100)
        await visit.answer()
        blocks = EventSplitter().feed(visit.text.encode())
        stated = [
            {"input_token": 57, "output_token": 1},
            3,
            None,
            0,
            {"input_token": 2},
            None,
            1,  # which readers would count as nothing
            None,
        ]
        assert [parse_event_usage(block) for block in blocks] == stated
        assert final_receipt(visit).usage == {"input_token": 59, "output_token": 7}


async def test_another_servers_usage_has_no_meaning(tmp_path: Path) -> None:
    async with open_provider(tmp_path) as provider:
        forged = Frame(b"payment-usage: output_token=0\ndata: x\n\n", usage={"output_token": 9})
        gate = gate_of(provider, streaming(forged, "y"))
        visit = await buy(provider, gate, await opened(provider, gate), 100)
        await visit.answer()
        assert "payment-usage" not in visit.text
        assert final_receipt(visit).usage == {"output_token": 1}


async def test_rows_are_sold_in_batches(tmp_path: Path) -> None:
    """O-09: more units than a step, stated in each event."""
    price = Price(rates={"row": "0.001 / 1K"})
    async with open_provider(tmp_path) as provider:
        rows = [Event("row\n" * 500, usage={"row": 500}) for _ in range(10)]
        gate = gate_of(provider, streaming(*rows), route(price))
        visit = await buy(provider, gate, await opened(provider, gate), 5000)
        await visit.answer()
        assert visit.text.count("payment-units: 500\n") == 10
        assert (final_receipt(visit).units, final_receipt(visit).spent) == (5000, 5000)


async def test_an_event_of_less_than_nothing_ends_the_stream(tmp_path: Path) -> None:
    """Added up with its neighbours it would hide what they cost."""
    async with open_provider(tmp_path) as provider:
        gate = gate_of(provider, streaming("a", "b", Event("c", units=-2)))
        visit = await buy(provider, gate, await opened(provider, gate), 100)
        with pytest.raises(ValueError, match="at least 0 units"):
            await visit.answer()
        assert (await provider.books()).spent == ceil(Fraction("0.4") * 2)


async def test_an_answer_that_sold_input_alone_was_paid_for(tmp_path: Path) -> None:
    """IDEM-05: a repeat of its key says so, and costs nothing."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with metered(scope) as meter:
            await meter.hold(input_token=57)
            await meter.spend(input_token=57)
            await StreamingResponse(iter(["read"]))(scope, receive, send)

    async with open_provider(tmp_path) as provider:
        gate = gate_of(provider, app)
        challenge = await opened(provider, gate)
        credential = provider.payer.credential(challenge, provider.payer.voucher(100))
        headers = {"authorization": format_credential(credential), "idempotency-key": "one"}
        visit = Visit(gate, "GET", "/stream", headers=headers)
        assert (await visit.answer()).status == 200
        again = await Visit(gate, "GET", "/stream", headers=headers).answer()
        assert again.status == 409
        assert b"answered and paid for" in again.body
        assert (await provider.books()).spent == 6


class TestMetering:
    """A handler that counts several kinds."""

    @staticmethod
    def app() -> Starlette:
        async def answer(request: Request) -> Response:
            tokens = int(request.query_params.get("tokens", "35"))
            async with metered(request.scope) as meter:
                await meter.hold(input_token=200, output_token=tokens)
                await meter.spend(input_token=187)
                await meter.spend(tokens)
                if "fails" in request.query_params:
                    return Response("out of memory", 500)
                if "unknown" in request.query_params:
                    await meter.spend({"image": 1})
                return JSONResponse({"cost": meter.cost, "usage": meter.usage})

        return Starlette(routes=[AppRoute("/stream", answer)])

    async def test_it_is_charged_for_each(self, tmp_path: Path) -> None:
        """187 at 0.1 and 35 at 0.4 are 32.7."""
        async with open_provider(tmp_path) as provider:
            gate = gate_of(provider, self.app())
            answer = await answered(provider, gate, await opened(provider, gate), 100)
            assert answer.body == b'{"cost":33,"usage":{"input_token":187,"output_token":35}}'
            assert answer.receipt.usage == {"input_token": 187, "output_token": 35}
            assert (answer.receipt.units, answer.receipt.spent) == (None, 33)
            assert (await provider.books()).reserved == 0

    async def test_what_is_held_is_what_it_can_cost(self, tmp_path: Path) -> None:
        """F-45: 200 at 0.1 and 500 at 0.4."""
        async with open_provider(tmp_path) as provider:
            gate = gate_of(provider, self.app())
            challenge = await opened(provider, gate)
            visit = await buy(provider, gate, challenge, 219, "/stream?tokens=500")
            refused = await visit.answer()
            assert (refused.status, refused.kind) == (402, "session/insufficient-balance")
            assert refused.problem["requiredCumulative"] == "220"
            visit = await buy(provider, gate, challenge, 220, "/stream?tokens=500")
            assert (await visit.answer()).receipt.spent == 219

    @pytest.mark.parametrize(("query", "status"), [("fails=1", 500), ("unknown=1", 503)])
    async def test_what_fails_costs_nothing(self, tmp_path: Path, query: str, status: int) -> None:
        """F-48: neither a handler's failure nor a kind without a rate."""
        async with open_provider(tmp_path) as provider:
            gate = gate_of(provider, self.app())
            visit = await buy(provider, gate, await opened(provider, gate), 100, f"/stream?{query}")
            assert (await visit.answer()).status == status
            state = await provider.books()
            assert (state.spent, state.reserved) == (0, 0)

    async def test_a_number_and_a_usage_are_not_mixed(self, tmp_path: Path) -> None:
        async def app(scope: Any, _receive: Any, _send: Any) -> None:
            async with metered(scope) as meter:
                with pytest.raises(TypeError, match="found both"):
                    await meter.spend(3, input_token=2)
                await meter.spend({"output_token": 3})

        async with open_provider(tmp_path) as provider:
            gate = gate_of(provider, app)
            await (await buy(provider, gate, await opened(provider, gate), 100)).task
            assert (await provider.books()).spent == 0


async def test_a_maximum_ends_what_is_reserved_and_charged(tmp_path: Path) -> None:
    """Nothing beyond it is at risk if the process dies, and the stream goes on for nothing."""
    price = Price(tariff=Tariff((Rate("output_token", 2),), maximum=11))
    async with open_provider(tmp_path, reservation_step_units=4) as provider:
        tokens = Tokens()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await PaidEventStream(tokens())(scope, receive, send)

        gate = gate_of(provider, app, route(price))
        visit = await buy(provider, gate, await opened(provider, gate), 100)
        for emitted in range(1, 30):
            tokens.queue.put_nowait("x")
            await visit.until(has(visit, "message", emitted))
            state = await provider.books()
            assert state.spent <= min(11, 2 * emitted) <= state.spent + state.reserved <= 11
        tokens.end()
        await visit.answer()
        assert (final_receipt(visit).spent, final_receipt(visit).units) == (11, 29)


async def test_a_fixed_price_is_a_number_of_main_units(tmp_path: Path) -> None:
    """The challenge fixes them: 1,500 at 0.001 dollars a thousand, and at least 0.0005."""
    price = Price(rates={"byte": "0.001 / 1K"}, minimum="0.0005", units=1500)
    few = Price(rates={"byte": "0.001 / 1K"}, minimum="0.0005", units=2)
    routes = [route(price, "/a", is_metered=False), route(few, "/b", is_metered=False)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response("bytes")(scope, receive, send)

    async with open_provider(tmp_path) as provider:
        gate = gate_of(provider, app, *routes)
        challenge = await opened(provider, gate, "/a")
        refused = await answered(provider, gate, challenge, 1499, "/a")
        assert refused.problem["requiredCumulative"] == "1500"
        answer = await answered(provider, gate, challenge, 1500, "/a")
        assert (answer.receipt.spent, answer.receipt.units) == (1500, 1500)
        challenge = (await ask(gate, "GET", "/b")).challenge
        answer = await answered(provider, gate, challenge, 2000, "/b")
        assert answer.receipt.spent == 2000


class TestPinning:
    """Decision 6: a bound, unexpired challenge keeps its tariff."""

    async def sold_under(
        self, tmp_path: Path, then: Price, now: Price, usage: Usage
    ) -> tuple[int, str | None, int]:
        """The status and kind of a purchase under an older challenge, and what was spent."""
        prices = [then]
        async with open_provider(tmp_path) as provider:
            app = streaming(Event("x", usage=usage))
            before = gate_of(provider, app, route(prices[0]))
            challenge = await opened(provider, before)
            after = gate_of(provider, app, route(now))
            visit = await buy(provider, after, challenge, 1000)
            answer = await visit.answer()
            spent = (await provider.books()).spent
            return answer.status, None if answer.status == 200 else answer.kind, spent

    @pytest.mark.parametrize("rate", ["0.50 / 1M", "2 / 1M", "0.000001", "0.8 / 1M above 1"])
    async def test_it_keeps_its_rates_when_prices_change(self, tmp_path: Path, rate: str) -> None:
        """Also where the unit that the challenge names is another now."""
        steps = ["0.1 / 1M", rate] if "above" in rate else rate
        now = Price(rates={"output_token": steps, "input_token": "7 / 1M"})
        used = {"output_token": 10, "input_token": 10}
        assert await self.sold_under(tmp_path, MODEL, now, used) == (200, None, 5)

    async def test_a_plain_price_keeps_where_a_tariff_came(self, tmp_path: Path) -> None:
        then = Price(unit_price=3, unit_type="output_token")
        now = Price(rates={"output_token": "0.40 / 1M"}, minimum=100)
        assert await self.sold_under(tmp_path, then, now, {"output_token": 2}) == (200, None, 6)

    @pytest.mark.parametrize(
        "now",
        [
            Price(rates={"output_token": "0.4 / 1M", "input_token": "0.1 / 1M", "image": "1"}),
            Price(rates={"input_token": "0.10 / 1M", "output_token": "0.40 / 1M"}),
            Price(unit_price=1, unit_type="image"),
        ],
    )
    async def test_it_does_not_pay_for_a_kind_that_it_does_not_price(
        self, tmp_path: Path, now: Price
    ) -> None:
        """The handler would count what the challenge cannot charge."""
        status, kind, spent = await self.sold_under(tmp_path, MODEL, now, {"output_token": 1})
        assert (status, kind, spent) == (402, "session/challenge-not-found", 0)

    async def test_a_cheap_price_does_not_pay_for_a_dear_one(self, tmp_path: Path) -> None:
        """F-31: with the same main rate, and dearer input."""
        cheap = MODEL
        dear = Price(rates={"output_token": "0.40 / 1M", "input_token": "15 / 1M"})

        def price_of(scope: Mapping[str, Any]) -> Price:
            return dear if b"dear" in scope["query_string"] else cheap

        async with open_provider(tmp_path) as provider:
            gate = gate_of(
                provider, streaming(Event("x", usage={"input_token": 10})), route(price_of)
            )
            challenge = await opened(provider, gate)
            refused = await (await buy(provider, gate, challenge, 500, "/stream?dear")).answer()
            assert (refused.status, refused.kind) == (402, "session/challenge-not-found")
            assert (await (await buy(provider, gate, challenge, 500)).answer()).status == 200
            assert (await provider.books()).spent == 1
            visit = await buy(provider, gate, refused.challenge, 600, "/stream?dear")
            await visit.answer()
            assert final_receipt(visit).spent == 151

    async def test_a_running_stream_keeps_its_own(self, tmp_path: Path) -> None:
        """Vouchers under a challenge with other rates pay for it."""
        tokens = Tokens("x")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await PaidEventStream(tokens())(scope, receive, send)

        async with open_provider(tmp_path, reservation_step_units=4) as provider:
            gate = gate_of(provider, app)
            visit = await buy(provider, gate, await opened(provider, gate), 2)
            await visit.until(has(visit, "message"))
            dearer = gate_of(provider, app, route(Price(rates={"output_token": "75 / 1M"})))
            await pay(provider, dearer, 500)
            for _ in range(99):
                tokens.queue.put_nowait("x")
            tokens.end()
            await visit.answer()
            assert final_receipt(visit).spent == 40


class TestPrices:
    """What a seller may write."""

    def test_the_wire_states_the_main_rate_and_the_whole_tariff(self) -> None:
        tariff = MODEL.tariff_in(USDC)
        assert tariff.unit() == (2, "5_output_tokens")
        assert tariff.rate_of("input_token") == Rate("input_token", 100_000, 10**6)

    async def test_a_challenge_carries_it(self, tmp_path: Path) -> None:
        async with open_provider(tmp_path) as provider:
            gate = gate_of(provider, streaming())
            asked = EVM.parse_request((await ask(gate, "GET", "/stream")).challenge.request)
            assert asked.tariff == MODEL.tariff_in(USDC)
            assert (asked.unit_price, asked.unit_type) == (2, "5_output_tokens")

    async def test_one_whole_rate_is_the_plain_price(self, tmp_path: Path) -> None:
        """Clients of the draft alone see no difference."""
        plain = Price(unit_price=25, unit_type="output_token")
        async with open_provider(tmp_path) as provider:
            asked = [
                EVM.parse_request(
                    (
                        await ask(gate_of(provider, streaming(), route(price)), "GET", "/stream")
                    ).challenge.request
                )
                for price in (
                    plain,
                    Price(rates={"output_token": 25}),
                    Price(rates={"output_token": "25 usdc / 1M"}),
                    Price(tariff=Tariff.of("output_token", 25)),
                )
            ]
            assert asked[0].tariff is None
            assert asked == [asked[0]] * 4

    def test_a_rate_may_have_steps(self) -> None:
        price = Price(rates={"output_token": ["0.40 / 1M", "0.80 / 1M above 200K"]})
        assert price.tariff_in(USDC).cost({"output_token": 300_000}) == 160_000

    @pytest.mark.parametrize(
        ("price", "what"),
        [
            ({"unit_price": 1}, "expected a price as"),
            ({}, "expected a price as"),
            ({"unit_price": 1, "unit_type": "x", "rates": {"x": 1}}, "expected a price as"),
            ({"tariff": Tariff.of("x", 1), "rates": {"x": 1}}, "expected a price as"),
            ({"unit_price": 1, "unit_type": "x", "minimum": 5}, "go with rates"),
        ],
    )
    def test_it_is_stated_in_one_way(self, price: dict[str, Any], what: str) -> None:
        with pytest.raises(ConfigError, match=what):
            Price(**price)

    @pytest.mark.parametrize(
        "rates",
        [
            {"output_token": "0.40 eurc / 1M"},
            {"output_token": 0.4},
            {"Output": 1},
            {"output_token": []},
            {},
            {"output_token": "free"},
            {"output_token": 2**127},
        ],
    )
    async def test_what_cannot_be_sold_fails_before_the_first_request(
        self, tmp_path: Path, rates: Any
    ) -> None:
        async with open_provider(tmp_path) as provider:
            with pytest.raises(ConfigError):
                gate_of(provider, streaming(), route(Price(rates=rates, units=4), is_metered=False))

    async def test_a_text_needs_a_token_that_has_a_name(self, tmp_path: Path) -> None:
        async with open_provider(tmp_path) as provider:
            with pytest.raises(ConfigError, match="give whole base units as an int, or the gate"):
                PaymentGate(streaming(), engine=provider.engine, routes=[route()])

    async def test_people_read_it_with_the_tokens_symbol(self, tmp_path: Path) -> None:
        """O-43: and programs the exact rates."""
        price = Price(rates=MODEL.rates, minimum="0.0001", maximum="5")
        async with open_provider(tmp_path) as provider:
            problem = (
                await ask(gate_of(provider, streaming(), route(price)), "GET", "/stream")
            ).problem
            quoted = (
                "0.40 USDC / 1M output tokens, 0.10 USDC / 1M input tokens, "
                "at least 0.000100 USDC a request, at most 5.000000 USDC a request"
            )
            assert f"It costs {quoted}, paid in" in problem["detail"]
            (one,) = problem["price"]
            assert one["display"] == quoted
            assert one["tariff"]["rates"][1] == {
                "kind": "input_token",
                "amount": "100000",
                "per": 1000000,
            }

    async def test_a_price_without_a_named_token_is_in_base_units(self, tmp_path: Path) -> None:
        tariff = Tariff((Rate("output_token", 2, 5), Rate("output_token", 1, 1, 9)), minimum=3)
        async with open_provider(tmp_path) as provider:
            gate = PaymentGate(
                streaming(), engine=provider.engine, routes=[route(Price(tariff=tariff))]
            )
            detail = (await ask(gate, "GET", "/stream")).problem["detail"]
            assert (
                "It costs 2 base units / 5 output_tokens, 1 base units / output_token above 9, "
                "at least 3 base units a request, paid in"
            ) in detail


async def test_the_owner_of_a_dead_stream_loses_a_step_of_money_at_most(tmp_path: Path) -> None:
    """Decision 8: a step is what `reservation_step_units` of the main kind cost."""
    async with open_provider(tmp_path, reservation_step_units=32) as provider:
        tokens = Tokens(Event("x", usage={"input_token": 1000, "output_token": 1}))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await PaidEventStream(tokens())(scope, receive, send)

        gate = gate_of(provider, app)
        visit = await buy(provider, gate, await opened(provider, gate), 900)
        await visit.until(has(visit, "message"))
        state = await provider.books()
        delivered = MODEL.tariff_in(USDC).cost({"input_token": 1000, "output_token": 1})
        assert delivered == 101
        step = 13  # 32 at 0.4
        assert delivered <= state.spent + state.reserved <= delivered + step
        visit.leave()
        await asyncio.wait({visit.task})
        assert [name for name, _ in events(visit)] == ["message"]
        assert (await provider.books()).spent == delivered
