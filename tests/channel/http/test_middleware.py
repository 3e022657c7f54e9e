"""The gate: unpaid is refused, paid is served once, and what fails is not charged."""

import asyncio
from pathlib import Path
from typing import Any

from channel.http import PaymentGate, Price, Route
from tests.channel.selling import PRICE, Desk, ask, open_desk

ROUTES = [
    Route(method="GET", path="/paid", price=Price(unit_price=PRICE, unit_type="request")),
    Route(method="POST", path="/paid", price=Price(unit_price=PRICE, unit_type="request")),
]


class App:
    """Answers with a count of its calls, or as told."""

    def __init__(self) -> None:
        self.calls = 0
        self.status = 200
        self.delay_s = 0.0
        self.error: Exception | None = None

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        self.calls += 1
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        body = b"content %d" % self.calls
        headers = [(b"content-length", str(len(body)).encode()), (b"cache-control", b"public")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def opened(desk: Desk, gate: PaymentGate, amount: int = 0) -> None:
    desk.payer.open_on_chain()
    challenge = (await ask(gate, "HEAD", "/paid")).challenge
    answer = await ask(
        gate, "HEAD", "/paid", desk.payer.credential(challenge, desk.payer.opening(amount))
    )
    assert answer.status == 200, answer.body


async def test_an_unpaid_request_gets_a_challenge_and_moves_nothing(tmp_path: Path) -> None:
    """CORE-01, CORE-02, CORE-06."""
    async with open_desk(tmp_path) as desk:
        app = App()
        gate = PaymentGate(app, engine=desk.engine, routes=ROUTES)
        answer = await ask(gate, "GET", "/paid")
        assert (answer.status, answer.kind) == (402, "payment-required")
        assert answer.header("cache-control") == "no-store"
        assert answer.challenge.realm == "api.example.com"
        assert app.calls == 0


async def test_a_paid_request_is_served_once_and_spent(tmp_path: Path) -> None:
    """ACC-03, RCPT-01, RCPT-05, CORE-06."""
    async with open_desk(tmp_path) as desk:
        app = App()
        gate = PaymentGate(app, engine=desk.engine, routes=ROUTES)
        await opened(desk, gate)
        challenge = (await ask(gate, "GET", "/paid")).challenge
        answer = await ask(
            gate, "GET", "/paid", desk.payer.credential(challenge, desk.payer.voucher(PRICE))
        )
        assert (answer.status, answer.body) == (200, b"content 1")
        assert answer.receipt.spent == answer.receipt.accepted == PRICE
        assert answer.header("cache-control") == "private"
        state = await desk.books()
        assert (state.accepted, state.spent, state.reserved) == (PRICE, PRICE, 0)
