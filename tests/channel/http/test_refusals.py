"""What a 402 says to programs that know nothing of it, and to people (O-43)."""

import json
import re
from pathlib import Path

import pytest

from channel.errors import PaymentRequiredError
from channel.http import PaymentGate, Price, Route
from channel.http.refusals import format_page, wants_page
from channel.types import SignedVoucher, TokenUnit
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.http.test_middleware import App
from tests.channel.selling import PRICE, ask, open_provider

ROUTES = [
    Route(
        method="POST",
        path="/v1/chat/completions",
        price=Price(unit_price=PRICE, unit_type="llm_token"),
        metered=True,
    ),
    Route(method="GET", path="/album", price=Price(unit_price=PRICE, unit_type="song", units=3)),
    Route(method="PUT", path="/album", price=Price(unit_price=2 * PRICE, unit_type="upload")),
]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


USDC = TokenUnit("USDC", 6)


async def test_a_402_says_price_unit_token_chain_and_how_to_pay(tmp_path: Path) -> None:
    """O-43: in `detail`, in `error.message` for clients of model servers, and for programs."""
    async with open_provider(tmp_path) as provider:
        gate = PaymentGate(App(), engine=provider.engine, routes=ROUTES, unit=USDC)
        answer = await ask(gate, "POST", "/v1/chat/completions")
        assert answer.status == 402
        problem = json.loads(answer.body)
        (price,) = problem["price"]
        asked = answer.challenge
        for text in (problem["detail"], problem["error"]["message"]):
            assert "It costs 10 USDC / 1M llm tokens, paid in" in text
            assert f"chain {price['chainId']}" in text
            assert price["currency"] in text
            assert "mpp-session pay" in text
            assert "WWW-Authenticate" in text
        assert problem["error"]["type"] == "payment_required"
        assert problem["error"]["code"] == "payment-required"
        assert price["amount"] == str(PRICE)
        assert price["display"] == "10 USDC / 1M llm tokens"
        assert price["unit"] == "llm_token"
        assert re.fullmatch("0x[0-9a-fA-F]{40}", price["escrow"])
        assert asked.id


async def test_a_fixed_price_says_its_units_and_every_offer_is_listed(tmp_path: Path) -> None:
    """O-43: without a name of the token the amount is in base units alone."""
    async with open_provider(tmp_path) as provider:
        gate = PaymentGate(App(), engine=provider.engine, routes=ROUTES)
        problem = json.loads((await ask(gate, "GET", "/album")).body)
        assert f"{PRICE} base units / song, 3 a request" in problem["detail"]
        assert [one["units"] for one in problem["price"]] == [3]
        assert "display" not in problem["price"][0]


async def test_a_refusal_of_what_was_paid_keeps_its_own_word_and_adds_the_price(
    tmp_path: Path,
) -> None:
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        gate = PaymentGate(App(), engine=provider.engine, routes=ROUTES)
        challenge = (await ask(gate, "GET", "/album")).challenge
        opening = provider.payer.credential(challenge, provider.payer.opening())
        await ask(gate, "HEAD", "/album", opening)
        forged = VoucherPayload(SignedVoucher(provider.payer.key.channel_id, PRICE, bytes(65)))
        answer = await ask(gate, "GET", "/album", provider.payer.credential(challenge, forged))
        problem = json.loads(answer.body)
        assert answer.status == 402
        assert problem["type"].endswith("session/invalid-signature")
        assert "base units / song" in problem["error"]["message"]
        assert problem["error"]["code"] == "session/invalid-signature"


@pytest.mark.parametrize("path", ["/album", "/v1/chat/completions"])
async def test_a_browser_is_shown_a_page_with_nothing_to_run_or_fetch(
    tmp_path: Path, path: str
) -> None:
    """O-43: with the challenge, and a policy that forbids all but text."""
    async with open_provider(tmp_path) as provider:
        gate = PaymentGate(App(), engine=provider.engine, routes=ROUTES, unit=USDC)
        method = "GET" if path == "/album" else "POST"
        answer = await ask(gate, method, path, headers={"accept": BROWSER})
        assert answer.status == 402
        headers = dict(answer.headers)
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["cache-control"] == "no-store"
        assert headers["www-authenticate"].startswith("Payment ")
        assert int(headers["content-length"]) == len(answer.body)
        page = answer.body.decode()
        assert "<h1>402 Payment Required</h1>" in page
        assert ("0.00001 USDC / song" if path == "/album" else "10 USDC / 1M llm tokens") in page
        assert not re.search(r"<(script|style|link|img|a|form)\b|https?:|javascript", page)


def test_nothing_in_a_page_is_markup_of_another() -> None:
    page = format_page(PaymentRequiredError("x"), 'costs <script>alert("x")</script> & more')
    assert b"<script" not in page
    assert b"&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML;q=0.5", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("application/problem+json, text/html;q=0.1", False),
        ("text/event-stream", False),
        ("text/plain, text/htmlx", False),
    ],
)
def test_a_page_is_for_browsers_alone(accept: str, *, is_page: bool) -> None:
    assert wants_page(accept) == is_page
