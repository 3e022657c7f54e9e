"""Metering inside FastAPI and Starlette: the handler counts, the gate charges."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount
from starlette.routing import Route as AppRoute

from channel.errors import ConfigError
from channel.http import Event, PaidEventStream, PaymentGate, Price, Route, metered
from channel.http.metering import METER
from channel.wire.credential import format_credential
from tests.channel.http.test_events import events, final_receipt
from tests.channel.selling import PRICE, Answer, Provider, Visit, ask, never_stop, open_provider

PRICED = Price(unit_price=PRICE, unit_type="llm_token")
ROUTES = [
    Route(method="GET", path="/words", price=PRICED, metered=True),
    Route(method="GET", path="/counted", price=PRICED, metered=True),
    Route(method="GET", path="/stream", price=PRICED, metered=True),
    Route(method="GET", path="/lines", price=PRICED, metered=True),
    Route(method="GET", path="/failing", price=PRICED, metered=True),
    Route(method="GET", path="/fixed", price=PRICED),
]


async def tokens() -> AsyncIterator[Event]:
    for word in ("to", "be"):
        yield Event(word)
    yield Event("[DONE]", units=0)


async def fail_after(scope: Any, units: int) -> Response:
    async with metered(scope) as meter:
        for _ in range(units):
            await meter.spend()
    return Response("out of memory", 500)


async def count_unheld(scope: Any, units: int) -> dict[str, int]:
    async with metered(scope) as meter:
        await meter.spend(units)
        return {"units": meter.units}


async def count_words(scope: Any, units: int) -> dict[str, int]:
    async with metered(scope) as meter:
        await meter.hold(units)
        await meter.spend(units)
        return {"units": meter.units}


async def lines(scope: Any) -> AsyncIterator[bytes]:
    async with metered(scope) as meter:
        await meter.hold(3)
        for number in range(3):
            await meter.spend(1)
            yield b"%d\n" % number


def fastapi_app(provider: Provider, *, outside: bool) -> Callable[..., Any]:
    app = FastAPI()

    @app.get("/words")
    async def words(request: FastAPIRequest, units: int = 4) -> dict[str, int]:
        return await count_words(request.scope, units)

    @app.get("/counted")
    async def counted(request: FastAPIRequest, units: int) -> dict[str, int]:
        return await count_unheld(request.scope, units)

    @app.get("/stream")
    async def stream() -> Response:
        return PaidEventStream(tokens())

    @app.get("/lines")
    async def text(request: FastAPIRequest) -> Response:
        return StreamingResponse(lines(request.scope))

    @app.get("/failing")
    async def failing(request: FastAPIRequest, units: int) -> Response:
        return await fail_after(request.scope, units)

    @app.get("/fixed")
    async def fixed(request: FastAPIRequest) -> dict[str, bool]:
        return {"has_meter": METER in request.scope}

    if outside:
        return PaymentGate(app, engine=provider.engine, routes=ROUTES, stop_worker=never_stop)
    app.add_middleware(PaymentGate, engine=provider.engine, routes=ROUTES, stop_worker=never_stop)
    return app


def starlette_app(provider: Provider, *, outside: bool) -> Callable[..., Any]:
    async def words(request: Request) -> Response:
        units = int(request.query_params.get("units", "4"))
        return JSONResponse(await count_words(request.scope, units))

    async def counted(request: Request) -> Response:
        units = int(request.query_params["units"])
        return JSONResponse(await count_unheld(request.scope, units))

    async def stream(_: Request) -> Response:
        return PaidEventStream(tokens())

    async def text(request: Request) -> Response:
        return StreamingResponse(lines(request.scope))

    async def failing(request: Request) -> Response:
        return await fail_after(request.scope, int(request.query_params["units"]))

    async def fixed(request: Request) -> Response:
        return JSONResponse({"has_meter": METER in request.scope})

    routes = [
        AppRoute("/words", words),
        AppRoute("/counted", counted),
        AppRoute("/stream", stream),
        AppRoute("/lines", text),
        AppRoute("/failing", failing),
        AppRoute("/fixed", fixed),
    ]
    if outside:
        inner = Starlette(routes=routes)
        return PaymentGate(inner, engine=provider.engine, routes=ROUTES, stop_worker=never_stop)
    gate = Middleware(PaymentGate, engine=provider.engine, routes=ROUTES, stop_worker=never_stop)
    return Starlette(routes=routes, middleware=[gate])


class Kitchen:
    def __init__(self, provider: Provider, app: Callable[..., Any]) -> None:
        self.provider = provider
        self.app = app

    async def get(self, target: str, amount: int = 20 * PRICE) -> Answer:
        return await (await self.visit(target, amount)).answer()

    async def visit(self, target: str, amount: int = 20 * PRICE, *, key: str = "") -> Visit:
        challenge = (await ask(self.app, "GET", target)).challenge
        payload = self.provider.payer.voucher(amount)
        credential = format_credential(self.provider.payer.credential(challenge, payload))
        headers = {"authorization": credential} | ({"idempotency-key": key} if key else {})
        return Visit(self.app, "GET", target, headers=headers)


@pytest.fixture(params=[fastapi_app, starlette_app], ids=["fastapi", "starlette"])
async def kitchen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kitchen]:
    async with open_provider(tmp_path) as provider:
        app = request.param(provider, outside=False)
        provider.payer.open_on_chain()
        challenge = (await ask(app, "GET", "/words")).challenge
        opening = provider.payer.credential(challenge, provider.payer.opening(20 * PRICE))
        assert (await ask(app, "HEAD", "/words", opening)).status == 200
        yield Kitchen(provider, app)


async def test_a_whole_answer_costs_the_units_it_counted(kitchen: Kitchen) -> None:
    """ACC-05, RCPT-05: the receipt in its header is exact."""
    answer = await kitchen.get("/words")
    assert (answer.status, answer.body) == (200, b'{"units":4}')
    assert (answer.receipt.units, answer.receipt.spent) == (4, 4 * PRICE)
    state = await kitchen.provider.books()
    assert (state.spent, state.reserved) == (4 * PRICE, 0)


async def test_an_answer_dearer_than_a_step_is_held_before_the_work(kitchen: Kitchen) -> None:
    """F-45: more units than a reservation step."""
    answer = await kitchen.get("/words?units=90", 100 * PRICE)
    assert answer.receipt.spent == 90 * PRICE


async def test_an_answer_that_fails_costs_nothing_however_much_it_counted(
    kitchen: Kitchen,
) -> None:
    """F-48: more than one reservation step was counted, and none of it was emitted."""
    answer = await kitchen.get("/failing?units=90", 100 * PRICE)
    assert answer.status == 500
    state = await kitchen.provider.books()
    assert (state.spent, state.reserved) == (0, 0)


async def test_what_was_not_held_before_is_held_when_it_is_spent(kitchen: Kitchen) -> None:
    """ACC-05, F-45: more than a step, all of it paid for; and no more than is paid for."""
    answer = await kitchen.get("/counted?units=90", 100 * PRICE)
    assert (answer.status, answer.receipt.spent) == (200, 90 * PRICE)
    refused = await kitchen.get("/counted?units=11", 100 * PRICE)
    assert (refused.status, refused.kind) == (402, "session/insufficient-balance")
    assert refused.problem["requiredCumulative"] == str(101 * PRICE)
    state = await kitchen.provider.books()
    assert (state.spent, state.reserved) == (90 * PRICE, 0)


async def test_an_answer_that_is_not_covered_says_what_would_be(kitchen: Kitchen) -> None:
    """ERR: insufficient-balance from inside a handler is a 402 with a challenge."""
    answer = await kitchen.get("/words?units=30")
    assert (answer.status, answer.kind) == (402, "session/insufficient-balance")
    assert answer.problem["requiredCumulative"] == str(30 * PRICE)
    assert answer.challenge.method == "evm"
    state = await kitchen.provider.books()
    assert (state.spent, state.reserved) == (0, 0)


@pytest.mark.parametrize("build", [fastapi_app, starlette_app], ids=["fastapi", "starlette"])
async def test_a_gate_around_the_application_works_as_one_inside(
    tmp_path: Path, build: Callable[..., Any]
) -> None:
    """The framework's own 500 for our refusal never goes out."""
    async with open_provider(tmp_path) as provider:
        app = build(provider, outside=True)
        provider.payer.open_on_chain()
        challenge = (await ask(app, "GET", "/words")).challenge
        opening = provider.payer.credential(challenge, provider.payer.opening(20 * PRICE))
        assert (await ask(app, "HEAD", "/words", opening)).status == 200
        kitchen = Kitchen(provider, app)
        assert (await kitchen.get("/words")).receipt.spent == 4 * PRICE
        answer = await kitchen.get("/words?units=30")
        assert (answer.status, answer.kind) == (402, "session/insufficient-balance")
        assert answer.problem["requiredCumulative"] == str(34 * PRICE)


async def test_an_event_stream_is_returned_like_any_response(kitchen: Kitchen) -> None:
    """SSE-04, SSE-05."""
    visit = await kitchen.visit("/stream")
    answer = await visit.answer()
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert [data for _, data in events(visit)[:-1]] == ["to", "be", "[DONE]"]
    assert final_receipt(visit).spent == 2 * PRICE


async def test_any_other_stream_spends_as_it_goes(kitchen: Kitchen) -> None:
    """ACC-04: each unit is held durably before its bytes; the rest is given back."""
    answer = await kitchen.get("/lines")
    assert answer.body == b"0\n1\n2\n"
    assert answer.receipt.spent == PRICE  # its head leaves with the first line
    state = await kitchen.provider.books()
    assert (state.spent, state.reserved) == (3 * PRICE, 0)


async def test_a_metered_stream_is_charged_where_its_metering_ends(tmp_path: Path) -> None:
    """ACC-05: what is not spent by then is free for other requests, though the answer goes on."""
    go_on = asyncio.Event()

    async def pieces(scope: Any) -> AsyncIterator[bytes]:
        async with metered(scope, is_stream=True) as meter:
            await meter.spend(3)
            yield b"data: all that is sold\n\n"
        yield b"data: and now a free one\n\n"
        await go_on.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        response = StreamingResponse(pieces(scope), media_type="text/event-stream")
        await response(scope, receive, send)

    async with open_provider(tmp_path) as provider:
        gate = PaymentGate(app, engine=provider.engine, routes=ROUTES, stop_worker=never_stop)
        provider.payer.open_on_chain()
        challenge = (await ask(gate, "GET", "/lines")).challenge
        opening = provider.payer.credential(challenge, provider.payer.opening(20 * PRICE))
        visit = Visit(gate, "GET", "/lines", headers={"authorization": format_credential(opening)})
        await visit.until(lambda: "free" in visit.text)
        state = await provider.books()
        assert (state.spent, state.reserved) == (3 * PRICE, 0)
        go_on.set()
        assert (await visit.answer()).status == 200
        assert (await provider.books()).spent == 3 * PRICE


async def test_a_stream_that_is_not_covered_is_refused_before_it_begins(
    kitchen: Kitchen,
) -> None:
    """ACC-05, O-49: it was cut off once it ran dry, since it cannot ask for vouchers."""
    await kitchen.get("/words?units=18")
    answer = await kitchen.get("/lines")
    assert (answer.status, answer.kind) == (402, "session/insufficient-balance")
    assert answer.problem["requiredCumulative"] == str(21 * PRICE)
    state = await kitchen.provider.books()
    assert (state.spent, state.reserved) == (18 * PRICE, 0)


async def test_a_metered_answer_is_repeated_by_its_key(kitchen: Kitchen) -> None:
    """IDEM-02."""
    first = await (await kitchen.visit("/words", key="one")).answer()
    again = await (await kitchen.visit("/words", key="one")).answer()
    assert first.body == again.body
    assert first.receipt.spent == again.receipt.spent == 4 * PRICE


async def test_a_fixed_price_has_no_meter(kitchen: Kitchen) -> None:
    """A handler cannot charge for what is charged already."""
    answer = await kitchen.get("/fixed")
    assert answer.body == b'{"has_meter":false}'
    with pytest.raises(ConfigError):
        async with metered({}):
            pass


async def test_units_are_spent_and_not_given_back(kitchen: Kitchen) -> None:
    """F-44: one way to charge, and it only rises."""
    with pytest.raises(ValueError, match="spent units stay spent"):
        await kitchen.get("/words?units=-1")
    assert (await kitchen.provider.books()).spent == 0


async def test_a_mounted_gate_matches_below_its_mount(tmp_path: Path) -> None:
    """Routes are relative to where the gate stands."""
    async with open_provider(tmp_path) as provider:
        inner = starlette_app(provider, outside=True)
        app = Starlette(routes=[Mount("/api", inner)])
        assert (await ask(app, "GET", "/api/fixed")).status == 402
        assert (await ask(app, "GET", "/fixed")).status == 404
        await asyncio.sleep(0)
