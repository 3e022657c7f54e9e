"""What other people's clients, which cannot pay here, make of a 402: each is the real package."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
from mpp.client.transport import PaymentTransport
from x402 import x402Client
from x402.http.clients.httpx import PaymentError, wrapHttpxWithPayment

from channel.http import PaymentGate, Price, Route
from tests.channel.selling import open_provider
from tests.foreign.running import ask_clients
from tests.mpp_session.serving import serve

PRICE = Price(unit_price=10, unit_type="request")
ROUTES = [
    Route(method="POST", path="/v1/chat/completions", price=PRICE),
    Route(method="GET", path="/joke", price=PRICE),
]


REASONS = ("must be paid for", "10 base units", "on chain 31337", "mpp-session pay")


class Unserved:
    """An application that counts how often it is reached: never."""

    calls = 0

    async def __call__(self, scope: Any, _receive: Any, _send: Any) -> None:
        self.calls += scope["type"] == "http"


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[str]:
    app = Unserved()
    async with open_provider(tmp_path) as provider:
        served = PaymentGate(app, engine=provider.engine, routes=ROUTES)
        async with serve(served) as url:
            yield url
    assert app.calls == 0


async def test_clients_from_npm_say_that_it_must_be_paid(gate: str) -> None:
    """O-43: with price, token, chain and way to pay; mppx and x402 name what they miss."""
    said = await ask_clients(gate)
    assert {name: one.text for name, one in said.items()} == dict.fromkeys(said)
    errors = {name: one.error or {} for name, one in said.items()}
    assert (errors["openai"]["status"], errors["ai"]["statusCode"]) == (402, 402)
    assert (errors["openai"]["code"], errors["openai"]["type"]) == (
        "payment-required",
        "payment_required",
    )
    for name in ("openai", "ai"):
        for reason in REASONS:
            assert reason in errors[name]["message"], name
    assert "evm.session" in errors["mppx"]["message"]
    assert "payment requirements" in errors["x402"]["message"]


async def test_the_python_client_of_openai_says_that_it_must_be_paid(gate: str) -> None:
    """O-43: as its counterpart in JavaScript does."""
    async with openai.AsyncOpenAI(base_url=f"{gate}/v1", api_key="none") as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "hello"}]
            )
    assert refused.value.status_code == 402
    for reason in REASONS:
        assert reason in str(refused.value)


async def test_a_client_of_x402_does_not_take_the_challenge_for_its_own(gate: str) -> None:
    """O-53: it reads its own header or body, and says that there is none."""
    async with wrapHttpxWithPayment(x402Client()) as client:
        with pytest.raises(PaymentError, match="payment"):
            await client.get(f"{gate}/joke")


async def test_pympp_hands_on_what_none_of_its_methods_pays(gate: str) -> None:
    """O-53: the 402 as it is, with its challenge."""
    async with httpx.AsyncClient(transport=PaymentTransport(methods=[])) as client:
        answer = await client.get(f"{gate}/joke")
    assert answer.status_code == 402
    assert 'intent="session"' in answer.headers["www-authenticate"]


async def test_curl_shows_the_problem(gate: str) -> None:
    """O-43."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--include", f"{gate}/joke", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    head, _, body = out.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 402 ")
    assert "application/problem+json" in head
    problem = msgspec.json.decode(body)
    assert problem["status"] == 402
    for reason in REASONS:
        assert reason in problem["detail"]
