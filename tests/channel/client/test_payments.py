"""What an agent does about its channels: look, close, leave, add up."""

import asyncio
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from channel.client.policy.policy import Policy
from channel.errors import ChannelUnusableError, OfferRefusedError, PaymentRefusedError
from channel.tariff import Tariff
from channel.types import Address, ChannelId
from channel.wire.payload import (
    ClosePayload,
    VoucherPayload,
)
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.provider import BASE, CHAIN_ID, TOKEN, PaperChain, Provider, Seen


async def spend_on_stream(agent: Agent, provider: Provider, tokens: int) -> None:
    provider.tokens = tokens
    provider.offer = {"unit_type": "llm_token"}
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        await response.aread()


def only(action: type) -> Any:
    def matches(seen: Seen) -> bool:
        return seen.credential is not None and isinstance(seen.credential.payload, action)

    return matches


async def test_a_close_pays_what_was_spent_and_no_more(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """CLOSE-06."""
    await spend_on_stream(agent, provider, 70)
    (account,) = await agent.payments.close()
    assert account.state == "closed"
    assert list(chain.closed_at.values()) == [700]
    assert account.signed > 700
    assert account.refund == account.deposit - 700
    assert account.end_tx is not None


async def test_a_close_asks_first_what_was_spent(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """CLOSE-06: after a stream that was left, the last receipt is an old one."""
    provider.tokens = 200
    provider.offer = {"unit_type": "llm_token"}
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for _ in response.aiter_lines():
            break
    (books,) = provider.books.values()
    (account,) = await agent.payments.close()
    assert account.spent == books.spent == 10
    assert list(chain.closed_at.values()) == [10]


async def test_a_price_above_the_policy_does_not_keep_a_channel_from_closing(
    agent: Agent, provider: Provider
) -> None:
    await agent.client.get("/joke")
    provider.offer = {"unit_price": 10_000}
    (account,) = await agent.payments.close()
    assert account.state == "closed"


async def test_a_server_that_takes_no_voucher_any_more_is_closed_by_the_last_receipt(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    await agent.client.get("/joke")
    provider.override = lambda seen: httpx.Response(410) if only(VoucherPayload)(seen) else None
    (account,) = await agent.payments.close()
    assert (account.state, list(chain.closed_at.values())) == ("closed", [10])


async def test_a_lie_before_the_close_changes_nothing_about_it(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-09."""
    await agent.client.get("/joke")
    provider.change_receipt = lambda fields: fields | {"spent": 9_999, "accepted": 9_999}
    (account,) = await agent.payments.close()
    assert (account.state, list(chain.closed_at.values())) == ("closed", [10])


async def test_a_stopped_channel_can_be_closed(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    await agent.client.get("/joke")
    provider.override = lambda _: httpx.Response(200, headers={"Payment-Receipt": "!"})
    with pytest.raises(Exception, match="unreadable"):
        await agent.client.get("/joke")
    provider.override = lambda _: None
    (account,) = await agent.payments.close()
    assert (account.state, list(chain.closed_at.values())) == ("closed", [10])


async def test_after_a_close_the_next_request_opens_anew(agent: Agent, chain: PaperChain) -> None:
    """CLIENT-04: under a salt of its own."""
    await agent.client.get("/joke")
    await agent.payments.close(BASE)
    await agent.client.get("/joke")
    assert len(chain.deposited) == 2
    closed, opened = await agent.payments.channels()
    assert closed.salt != opened.salt
    assert [account.state for account in await agent.payments.channels()] == ["closed", "open"]
    assert await agent.payments.close(BASE) != []
    assert await agent.payments.close(BASE) == []


async def test_a_server_that_will_not_close_leaves_the_way_over_the_chain(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """CLOSE-08, CLIENT-12: without the server, from the payment store."""
    await agent.client.get("/joke")
    provider.override = lambda seen: httpx.Response(500) if only(ClosePayload)(seen) else None
    with pytest.raises(PaymentRefusedError, match="500 a HEAD with action close"):
        await agent.payments.close()
    (account,) = await agent.payments.channels()
    assert account.state == "closing"
    provider.override = lambda _: httpx.Response(404)
    account = await agent.payments.request_close(account.key.channel_id)
    assert (account.state, account.close_requested_at > 0) == ("closing", True)
    account = await agent.payments.withdraw(account.key.channel_id)
    assert (account.state, account.refund) == ("closed", account.deposit)
    assert account.end_tx is not None
    assert len(chain.facts) == 1


async def test_a_close_that_is_under_way_is_waited_for(agent: Agent, provider: Provider) -> None:
    """F-75: a 503 with Retry-After is asked again with the same credential."""
    await agent.client.get("/joke")
    answers = iter([httpx.Response(503, headers={"Retry-After": "3"})])
    provider.override = lambda seen: next(answers, None) if only(ClosePayload)(seen) else None
    (account,) = await agent.payments.close()
    assert account.state == "closed"
    assert agent.waited == [3.0]


async def test_a_channel_that_is_closed_on_chain_needs_no_server(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, is_finalized=True, settled=10)
    provider.seen.clear()
    (account,) = await agent.payments.close()
    assert (account.state, account.settled, provider.seen) == ("closed", 10, [])


async def test_a_channel_with_a_request_under_way_is_not_closed(
    agent: Agent, provider: Provider
) -> None:
    provider.tokens = 5
    provider.offer = {"unit_type": "llm_token"}
    async with agent.client.stream("POST", "/chat", json={"stream": True}):
        with pytest.raises(ChannelUnusableError, match="still running"):
            await agent.payments.close()


async def test_an_opening_that_failed_cannot_be_closed_but_left(
    agent: Agent, provider: Provider
) -> None:
    provider.override = lambda seen: httpx.Response(402) if seen.method == "HEAD" else None
    with pytest.raises(PaymentRefusedError):
        await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    with pytest.raises(ChannelUnusableError, match="request_close"):
        await agent.payments.close()
    account = await agent.payments.request_close(account.key.channel_id)
    assert account.state == "closing"


@pytest.mark.parametrize("changes", [{"recipient": Address(b"\x66" * 20)}, None])
async def test_a_close_is_signed_on_the_channels_own_terms_only(
    agent: Agent, provider: Provider, changes: dict[str, Any] | None
) -> None:
    await agent.client.get("/joke")
    if changes is None:
        provider.override = lambda _: httpx.Response(
            402, headers={"WWW-Authenticate": "Payment broken"}
        )
    else:
        provider.offer = changes
    with pytest.raises(OfferRefusedError, match="its own"):
        await agent.payments.close()
    (account,) = await agent.payments.channels()
    assert account.state == "open"


async def test_a_close_never_goes_over_plain_http(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """CORE-13: also where the policy has changed since."""
    agent = await open_agent(policy_of(allow_loopback_http=True))
    await agent.client.get("http://localhost/joke")
    agent = await open_agent(policy_of())
    provider.seen.clear()
    with pytest.raises(OfferRefusedError, match="plain http"):
        await agent.payments.close()
    assert provider.seen == []


async def test_what_is_not_there_is_not_closed(agent: Agent) -> None:
    assert await agent.payments.close() == []
    with pytest.raises(ChannelUnusableError, match=r"no channel https://other\.example"):
        await agent.payments.close("https://other.example")
    with pytest.raises(ChannelUnusableError, match="0x0303"):
        await agent.payments.request_close(ChannelId(b"\x03" * 32))


async def test_channels_are_chosen_by_id_or_by_server(agent: Agent, chain: PaperChain) -> None:
    await agent.client.get("/joke")
    await agent.client.get("https://other.example/joke")
    first, second = await agent.payments.channels()
    assert (await agent.payments.close("https://other.example/x"))[0].key == second.key
    assert (await agent.payments.close(first.key.channel_id))[0].key == first.key
    assert len(chain.closed_at) == 2


async def test_everything_is_added_up(agent: Agent, provider: Provider) -> None:
    assert await agent.payments.summary() == []
    await asyncio.gather(*(agent.client.get("/joke") for _ in range(3)))
    await agent.client.get("https://other.example/joke")
    (before,) = await agent.payments.summary()
    assert (before.chain_id, before.token, before.channels) == (CHAIN_ID, TOKEN, 2)
    assert (before.signed, before.spent, before.units, before.vouchers) == (40, 40, 4, 2)
    assert (before.deposited, before.locked, before.refunded) == (2_000, 2_000, 0)
    await agent.payments.close(BASE)
    (after,) = await agent.payments.summary()
    assert (after.channels_closed, after.settled, after.refunded) == (1, 30, 970)
    assert (after.deposited, after.locked) == (2_000, 1_000)
    assert len(provider.books) == 2


async def test_a_summary_is_readable(agent: Agent, provider: Provider) -> None:
    """O-63: hexadecimal ids, amounts with decimals and symbol; without a name, base units."""
    await agent.client.get("/joke")
    (summary,) = await agent.payments.summary()
    assert repr(summary) == (
        f"Summary(chain_id={CHAIN_ID}, token=0x{TOKEN.hex()}, channels=1, channels_closed=0, "
        "deposited=1.000 dUSD, signed=0.010 dUSD, spent=0.010 dUSD, settled=0.000 dUSD, "
        "refunded=0.000 dUSD, locked=1.000 dUSD, vouchers=1, units=1)"
    )
    assert "signed=10 base units" in repr(replace(summary, unit=None))
    assert provider.books


def test_the_tests_policy_is_as_strict_as_the_default() -> None:
    assert policy_of() == Policy(limits=policy_of().limits)


async def test_a_quote_asks_for_the_offer_and_signs_nothing(
    agent: Agent, provider: Provider
) -> None:
    """Of a plain price, too; afterwards the remembered offer answers."""
    request = agent.client.build_request("GET", "/joke")
    quote = await agent.payments.quote(request)
    assert (quote.amount, quote.usage, quote.amounts) == (10, {"request": 1}, {"request": 10})
    assert quote.tariff == Tariff.of("request", 10)
    assert [seen.method for seen in provider.seen] == ["HEAD"]
    assert await agent.payments.channels() == []
    assert (await agent.client.send(request)).status_code == 200
    asked = len(provider.seen)
    assert await agent.payments.quote(request) == quote
    assert len(provider.seen) == asked


async def test_a_quote_is_within_the_limits(open_agent: OpenAgent, provider: Provider) -> None:
    """A stream without a length costs what the policy lets it, at most."""
    agent = await open_agent(policy_of({"deposit_max": 700, "budget": 900}))
    provider.offer = {"unit_type": "llm_token"}
    whole = agent.client.build_request("POST", "/chat", json={"stream": True})
    quote = await agent.payments.quote(whole)
    assert (quote.amount, quote.usage) == (700, {"llm_token": None})
    assert quote.amounts == {"llm_token": None}
    short = agent.client.build_request("POST", "/chat", json={"stream": True, "max_tokens": 3})
    assert (await agent.payments.quote(short)).amount == 60
    assert str(await agent.payments.quote(short)).startswith("at most ")


async def test_there_is_no_quote_for_what_is_free_or_not_allowed(
    agent: Agent, provider: Provider
) -> None:
    """CLIENT-01, CORE-13."""
    request = agent.client.build_request("GET", "/joke")
    provider.override = lambda _: httpx.Response(200)
    with pytest.raises(PaymentRefusedError, match="the request may be free"):
        await agent.payments.quote(request)
    provider.override = lambda _: None
    provider.offer = {"unit_price": 51}
    with pytest.raises(OfferRefusedError, match="amount per request 51"):
        await agent.payments.quote(request)
    with pytest.raises(OfferRefusedError, match="payment over plain http"):
        await agent.payments.quote(agent.client.build_request("GET", "http://api.example/joke"))
    assert await agent.payments.channels() == []
