"""How the gate's requests stand in the accounts: route, variant, usage, and how they ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channel.http import Price, Route, metered
from channel.http.asgi import ASGIApp
from channel.http.metering import require_meter
from channel.http.middleware import PaymentGate
from channel.ledger.accounts import ChargeRow
from channel.state.charges import ChargeOutcome
from channel.wire.credential import format_credential
from tests.channel.http.test_events import Tokens, gate_of, has, started
from tests.channel.selling import PRICE, Provider, Visit, ask, never_stop, open_provider

KINDS = Price(rates={"output_token": PRICE, "input_token": 3}, variant="small")


async def charges(provider: Provider) -> list[ChargeRow]:
    assert await provider.ledger.faults() == []
    return await provider.ledger.list_charges(0, 2**62)


async def one_charge(provider: Provider) -> ChargeRow:
    (row,) = await charges(provider)
    assert row.amount == (await provider.books()).spent
    return row


def end(_: Visit, tokens: Tokens) -> None:
    tokens.end()


def leave(visit: Visit, _: Tokens) -> None:
    visit.leave()


def fail(_: Visit, tokens: Tokens) -> None:
    tokens.queue.put_nowait(RuntimeError("the model broke"))


def ask_for_more(_: Visit, tokens: Tokens) -> None:
    """More than is paid for: the stream waits for a voucher that does not come."""
    for word in "defghi":
        tokens.queue.put_nowait(word)


@pytest.mark.parametrize(
    ("ending", "outcome", "units"),
    [
        (end, ChargeOutcome.DONE, 3),
        (leave, ChargeOutcome.LEFT, 3),
        (fail, ChargeOutcome.FAILED, 3),
        (ask_for_more, ChargeOutcome.FAILED, 8),
    ],
)
async def test_a_stream_is_one_row_that_says_how_it_ended(
    tmp_path: Path, ending: Callable[[Visit, Tokens], None], outcome: ChargeOutcome, units: int
) -> None:
    """However many steps it was paid in."""
    async with open_provider(tmp_path, reservation_step_units=2) as provider:
        tokens = Tokens("a", "b", "c")
        visit = await started(provider, gate_of(provider, tokens, pause_s=0.1), 8 * PRICE)
        await visit.until(has(visit, "message", 3))
        assert await charges(provider) == []
        ending(visit, tokens)
        if ending is fail:
            with pytest.raises(RuntimeError, match="the model broke"):
                await visit.task
        else:
            await visit.task
        row = await one_charge(provider)
        assert (row.outcome, row.is_stream, row.route) == (outcome, True, "GET /stream")
        assert row.usage is not None
        assert [*row.usage.values()] == [units]


async def test_a_stream_that_starts_in_the_middle_of_its_answer_is_one_row(
    tmp_path: Path,
) -> None:
    """What was spent before `start_stream` stays part of the request."""

    async def app(scope: Any, _: Any, send: Any) -> None:
        async with metered(scope) as meter:
            await meter.hold(9)
            await meter.spend(2)
            start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
            await send(start)
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
            await meter.start_stream()
            await meter.spend(3)
            await send({"type": "http.response.body", "body": b"cde"})

    async with open_provider(tmp_path) as provider:
        await buy(provider, app)
        row = await one_charge(provider)
        assert (row.amount, row.is_stream) == (5 * PRICE, True)


async def buy(provider: Provider, app: ASGIApp, **headers: str) -> int:
    """Open a channel if there is none, buy once, and return the status."""
    price = KINDS if app is answering else Price(unit_price=PRICE, unit_type="output_token")
    route = Route(method="GET", path="/answer", price=price, metered=True)
    gate = PaymentGate(app, engine=provider.engine, routes=[route], stop_worker=never_stop)
    challenge = (await ask(gate, "GET", "/answer")).challenge
    payer = provider.payer
    if not provider.chain.facts:
        payer.open_on_chain()
        opening = payer.credential(challenge, payer.opening())
        assert (await ask(gate, "HEAD", "/answer", opening)).status == 200
    credential = format_credential(payer.credential(challenge, payer.voucher(40 * PRICE)))
    answer = await ask(gate, "GET", "/answer", credential, headers=headers)
    return answer.status


async def answering(scope: Any, _: Any, send: Any) -> None:
    """Answer with a few tokens of two kinds, and state the id of the answer."""
    async with metered(scope) as meter:
        require_meter(scope).reservation.response_id = "cmpl-7"
        await meter.spend(input_token=10, output_token=4)
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


async def refusing(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"no such model"})


async def test_an_answer_in_one_piece_is_a_row_with_its_kinds_and_ids(tmp_path: Path) -> None:
    """IDEM-05: a repeat of its key is none."""
    async with open_provider(tmp_path) as provider:
        for _ in range(2):
            assert await buy(provider, answering, **{"idempotency-key": "one"}) == 200
        row = await one_charge(provider)
        assert (row.route, row.variant) == ("GET /answer", "small")
        assert row.usage == {"input_token": 10, "output_token": 4}
        assert (row.outcome, row.is_stream) == (ChargeOutcome.DONE, False)
        assert row.response_id == "cmpl-7"
        assert len(row.reservation_id) == 16
        assert int.from_bytes(row.reservation_id[:4], "big") == int(provider.clock())


async def test_a_refused_request_is_no_row(tmp_path: Path) -> None:
    async with open_provider(tmp_path) as provider:
        assert await buy(provider, refusing) == 404
        assert await charges(provider) == []
