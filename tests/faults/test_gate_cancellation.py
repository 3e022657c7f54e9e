"""A request or a stream is cancelled at every moment of its life; the books stay right (F-42).

The moments are loop turns: the handler is cancelled after none, one, two, ... of them, until it
ends by itself. Each time: nothing stays held, what was emitted is what was spent, and the next
request is served.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from channel.http import PaidEventStream, PaymentGate, Price, Route
from channel.wire.credential import format_credential
from tests.channel.http.test_events import events
from tests.channel.selling import PRICE, Provider, Visit, ask, open_provider

PRICED = Price(unit_price=PRICE, unit_type="unit")
ROUTES = [
    Route(method="GET", path="/fixed", price=PRICED),
    Route(method="GET", path="/stream", price=PRICED, metered=True),
]
MOMENTS = 60
TOKENS = 12


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/stream":
        await PaidEventStream(tokens())(scope, receive, send)
        return
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"content"})


async def tokens() -> AsyncIterator[str]:
    for _ in range(TOKENS):
        await asyncio.sleep(0)
        yield "x"


async def turns(count: int) -> None:
    """Let the loop turn, and the ledger's thread with it."""
    for _ in range(count):
        await asyncio.sleep(0.0002)


async def start(provider: Provider, gate: PaymentGate, path: str, amount: int, key: str) -> Visit:
    challenge = (await ask(gate, "GET", path)).challenge
    credential = provider.payer.credential(challenge, provider.payer.voucher(amount))
    headers = {"authorization": format_credential(credential)}
    if key:
        headers["idempotency-key"] = key
    return Visit(gate, "GET", path, headers=headers)


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
@pytest.mark.parametrize("path", ["/fixed", "/stream"])
@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_whenever_it_ends_nothing_stays_held(
    tmp_path: Path, path: str, how: str, *, keyed: bool
) -> None:
    """F-42, F-48, SSE-07: and `spent` covers what was emitted, by at most one request or unit."""
    async with open_provider(tmp_path, reservation_step_units=4) as provider:
        gate = PaymentGate(app, engine=provider.engine, routes=ROUTES)
        provider.payer.open_on_chain(10**9)
        challenge = (await ask(gate, "HEAD", "/fixed")).challenge
        opening = provider.payer.credential(challenge, provider.payer.opening(10**6))
        assert (await ask(gate, "HEAD", "/fixed", opening)).status == 200
        spent = ended_early = 0
        for moment in range(MOMENTS):
            key = f"key {moment}" if keyed else ""
            visit = await start(provider, gate, path, 10**6 + moment, key)
            await turns(moment)
            if how == "cancelled":
                visit.task.cancel()
            else:
                visit.leave()
            await asyncio.wait({visit.task})
            ended_early += visit.task.cancelled()
            await provider.engine.aclose()
            state = (
                await provider.ledger.apply(provider.payer.key, [])
            ).state  # after all that is queued
            assert state.reserved == 0, moment
            cost = state.spent - spent
            spent = state.spent
            if path == "/fixed":
                assert cost in (0, PRICE)
                if visit.sent:
                    assert cost == PRICE, moment
            else:
                emitted = [name for name, _ in events(visit)].count("message")
                # One more may have been handed over in the turn in which the client left.
                in_flight = cost // PRICE - emitted
                assert in_flight in ((0, 1) if how == "left" else (0,)), moment
        if how == "cancelled":
            assert ended_early > 0
        if keyed:
            visit = await start(provider, gate, path, 10**6 + 100, "a new key")
            assert (await visit.answer()).status == 200
