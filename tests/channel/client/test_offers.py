"""O-53: where nothing can be paid, every offer is named, and what each would take."""

import httpx
import pytest
from msgspec.structs import replace

from channel.errors import OfferRefusedError
from channel.wire.challenge import format_challenge
from channel.wire.encoding import format_checksum_address
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.provider import CHAIN_ID, PAYEE, TOKEN, Provider, Seen

X402 = '{"x402Version": 2, "accepts": [{"scheme": "exact", "network": "eip155:8453"}]}'
TERMS = (
    f"10 base units of {format_checksum_address(TOKEN)} on chain {CHAIN_ID} "
    f"to {format_checksum_address(PAYEE)}"
)


def offer(provider: Provider, *kinds: tuple[str, str]) -> None:
    def answer(_: Seen) -> httpx.Response:
        lines = [
            (
                "WWW-Authenticate",
                format_challenge(replace(provider.challenge(), method=m, intent=i)),
            )
            for m, i in kinds
        ]
        return httpx.Response(402, headers=lines, content=X402)

    provider.override = answer


async def test_a_charge_names_the_setting_that_allows_it(agent: Agent, provider: Provider) -> None:
    offer(provider, ("evm", "charge"))
    with pytest.raises(OfferRefusedError, match=r"set Policy\.pays") as caught:
        await agent.client.get("/joke")
    (refused,) = caught.value.offers
    assert (refused.method, refused.amount, refused.chain_id) == ("evm/charge", 10, CHAIN_ID)
    assert (refused.token, refused.recipient) == tuple(map(format_checksum_address, (TOKEN, PAYEE)))
    assert refused.setting == "Policy.pays to a tuple with 'charge'"


async def test_every_offer_is_named_with_what_it_would_take(
    open_agent: OpenAgent, provider: Provider
) -> None:
    agent = await open_agent(policy_of({"unit_price_max": {"request": 9}}))
    offer(provider, ("tempo", "session"), ("evm", "charge"), ("evm", "session"))
    with pytest.raises(OfferRefusedError) as caught:
        await agent.client.get("/joke")
    assert (caught.value.field, caught.value.asked) == ("amount per request", 10)
    assert str(caught.value) == (
        "https://api.example:443 makes 3 offers, and none can be taken. "
        f"(1) tempo/session, {TERMS}, takes a client that pays so; this one pays evm/session, "
        "evm/charge and x402 exact by EIP-3009. "
        f"(2) evm/charge, {TERMS}, asks for a payment by charge; the policy allows session "
        "(set Policy.pays to a tuple with 'charge'). "
        f"(3) evm/session, {TERMS}, asks for amount per request 10; the policy allows 1 to 9 "
        "(set TokenLimits.unit_price_max)."
    )


async def test_an_offer_that_can_be_taken_is_taken_wherever_it_stands(
    agent: Agent, provider: Provider
) -> None:
    offer(provider, ("tempo", "session"), ("evm", "charge"), ("evm", "session"))
    honest = provider.override

    def answer(seen: Seen) -> httpx.Response | None:
        return honest(seen) if seen.credential is None else None

    provider.override = answer
    assert (await agent.client.get("/joke")).status_code == 200


async def test_x402_beside_a_session_is_named_too(
    open_agent: OpenAgent, provider: Provider
) -> None:
    agent = await open_agent(policy_of({"unit_price_max": {"request": 9}}))
    refusal = provider.refuse()
    refusal.headers["PAYMENT-REQUIRED"] = "e30="
    provider.override = lambda _: refusal
    with pytest.raises(OfferRefusedError, match=r"\(1\) evm/session,.* \(2\) x402 asks for"):
        await agent.client.get("/joke")


async def test_a_402_that_offers_nothing_readable_is_the_callers(
    agent: Agent, provider: Provider
) -> None:
    """It may be of a protocol that another layer speaks."""
    provider.override = lambda _: httpx.Response(
        402, headers={"PAYMENT-REQUIRED": "e30="}, content=X402
    )
    answer = await agent.client.get("/joke")
    assert (answer.status_code, answer.json()["x402Version"]) == (402, 2)
