"""What a hostile server gets: where money may go, how much, and what is believed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from channel.client.http.transport import is_safe, origin_of
from channel.errors import (
    AgentError,
    BudgetExceededError,
    ChannelUnusableError,
    OfferRefusedError,
    OverclaimError,
    PaymentRefusedError,
    ReceiptViolationError,
)
from channel.methods.evm.payload import (
    TopUpHash,
)
from channel.types import Address, ChannelId
from channel.wire.sse import NeedVoucher, format_event, format_need_voucher
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import only_voucher, read_stream, sell_stream
from tests.channel.client.provider import (
    PAYEE,
    Books,
    Events,
    PaperChain,
    Provider,
    Seen,
)
from tests.waiting import PATIENCE_S

THIEF = Address(b"\x66" * 20)
PRICE = 10


# -- where money may go


async def test_a_redirect_elsewhere_is_followed_but_never_paid(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-93, CLIENT-10."""
    agent = await open_agent(follow_redirects=True)

    def elsewhere(seen: Seen) -> httpx.Response | None:
        if seen.url.host == "api.example":
            return httpx.Response(307, headers={"Location": "https://evil.example/joke"})
        return None

    provider.override = elsewhere
    with pytest.raises(OfferRefusedError) as caught:
        await agent.client.get("/joke")
    assert caught.value.origin == "https://evil.example:443"
    assert not provider.paid
    assert await agent.payments.channels() == []


async def test_a_redirect_elsewhere_after_payment_takes_no_credential_along(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-93: httpx copies the caller's headers, and the transport's were never among them."""
    agent = await open_agent(follow_redirects=True)
    await agent.client.get("/joke")

    def elsewhere(seen: Seen) -> httpx.Response | None:
        if seen.url.host == "api.example":
            return httpx.Response(307, headers={"Location": "https://evil.example/joke"})
        return httpx.Response(200, text="hello")

    provider.override = elsewhere
    assert (await agent.client.get("/joke")).text == "hello"
    assert "Authorization" not in provider.seen[-1].headers
    assert "Idempotency-Key" not in provider.seen[-1].headers


async def test_a_redirect_within_the_origin_is_paid(
    open_agent: OpenAgent, provider: Provider
) -> None:
    agent = await open_agent(follow_redirects=True)
    provider.override = lambda seen: (
        httpx.Response(307, headers={"Location": "/joke/"}) if seen.url.path == "/joke" else None
    )
    assert (await agent.client.get("/joke")).status_code == 200


@pytest.mark.parametrize("url", ["http://api.example/joke", "http://127.0.0.1/joke"])
async def test_nothing_is_paid_over_plain_http(agent: Agent, provider: Provider, url: str) -> None:
    """CORE-13."""
    with pytest.raises(OfferRefusedError, match="plain http"):
        await agent.client.get(url)
    assert not provider.paid


async def test_plain_http_to_this_machine_needs_the_switch(open_agent: OpenAgent) -> None:
    """CORE-13."""
    agent = await open_agent(policy_of(allow_loopback_http=True))
    for host in ("localhost", "127.0.0.1:8402", "[::1]"):
        assert (await agent.client.get(f"http://{host}/joke")).status_code == 200
    with pytest.raises(OfferRefusedError, match="plain http"):
        await agent.client.get("http://api.example/joke")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost.evil.example/", False),
        ("http://127.0.0.1.evil.example/", False),
        ("http://2130706433/", False),
        ("ws://127.0.0.1/", True),
        ("https://evil.example/", True),
    ],
)
def test_only_this_machine_is_this_machine(url: str, *, expected: bool) -> None:
    assert is_safe(httpx.URL(url), allow_loopback_http=True) is expected


def test_an_origin_is_scheme_host_and_port() -> None:
    assert origin_of(httpx.URL("https://a.example/x")) == origin_of(
        httpx.URL("https://a.example:443/y")
    )
    assert origin_of(httpx.URL("https://a.example")) != origin_of(httpx.URL("http://a.example"))
    assert origin_of(httpx.URL("http://[::1]:80/")) == "http://[::1]:80"


async def test_plain_http_that_asks_nothing_is_handed_on(agent: Agent, provider: Provider) -> None:
    provider.override = lambda _: httpx.Response(402, text="by cheque")
    assert (await agent.client.get("http://api.example/joke")).text == "by cheque"


async def test_a_thiefs_escrow_gets_no_deposit(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-91."""
    provider.offer = {"escrow": THIEF}
    with pytest.raises(AgentError, match="not trusted"):
        await agent.client.get("/joke")
    assert chain.deposited == []
    assert await agent.payments.channels() == []


async def test_another_chain_is_refused(open_agent: OpenAgent, provider: Provider) -> None:
    agent = await open_agent(policy_of({"chain_id": 5}))
    provider.offer = {"chain_id": 5}
    with pytest.raises(OfferRefusedError, match=r"chainId 5; the policy allows 31337"):
        await agent.client.get("/joke")


async def test_another_recipient_in_a_later_challenge_is_refused(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-01."""
    agent = await open_agent(policy_of({"recipients": frozenset({PAYEE})}))
    await agent.client.get("/joke")
    provider.offer = {"recipient": THIEF}
    provider.override = lambda seen: (
        provider.refuse("session/challenge-not-found") if seen.credential else None
    )
    with pytest.raises(OfferRefusedError, match="recipient"):
        await agent.client.get("/joke")
    assert len(chain.deposited) == 1


async def test_a_price_above_the_policy_is_refused(agent: Agent, provider: Provider) -> None:
    """F-95."""
    provider.offer = {"unit_price": 51}
    with pytest.raises(OfferRefusedError, match="amount per request 51; the policy allows 1 to 50"):
        await agent.client.get("/joke")
    assert not provider.paid


async def test_a_price_raised_while_a_stream_runs_is_refused(
    agent: Agent, provider: Provider
) -> None:
    """F-95: the price of a stream is the price it began with."""
    sell_stream(provider, 200)

    def dearer(seen: Seen) -> httpx.Response | None:
        if seen.method == "HEAD" and only_voucher(seen):
            provider.offer["unit_price"] = 11
            return provider.refuse("session/challenge-not-found")
        return None

    provider.override = dearer
    with pytest.raises(OfferRefusedError, match="amount 11"):
        await read_stream(agent)


@pytest.mark.parametrize(
    ("field", "value"), [("recipient", THIEF), ("unit_type", "request"), ("currency", THIEF)]
)
async def test_terms_changed_while_a_stream_runs_are_refused(
    agent: Agent, provider: Provider, field: str, value: object
) -> None:
    """F-95: also the unit, which says how far ahead vouchers may be, and how tokens are counted."""
    sell_stream(provider, 200)

    def another(seen: Seen) -> httpx.Response | None:
        if seen.method == "HEAD" and only_voucher(seen):
            provider.offer[field] = value
            return provider.refuse("session/challenge-not-found")
        return None

    provider.override = another
    with pytest.raises(OfferRefusedError, match=field):
        await read_stream(agent)


async def test_a_challenge_that_expires_in_a_stream_is_refreshed(
    agent: Agent, provider: Provider
) -> None:
    """F-61."""
    sell_stream(provider, 200)
    refusals = iter([None, None, provider.refuse("session/challenge-not-found")])
    provider.override = lambda seen: next(refusals, None) if seen.method == "HEAD" else None
    assert '"t199 "' in await read_stream(agent)


# -- how much


async def test_an_inflated_requirement_is_refused_and_causes_no_top_up(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-94."""
    await agent.client.get("/joke")
    provider.override = lambda _: provider.refuse(
        "session/insufficient-balance", requiredCumulative=3_000, spent=2_990
    )
    with pytest.raises(OverclaimError) as caught:
        await agent.client.get("/joke")
    assert (caught.value.asked, caught.value.received) == (3_000, 10)
    assert len(chain.deposited) == 1
    (account,) = await agent.payments.channels()
    assert account.signed == 20


async def test_a_stream_that_asks_for_more_than_it_delivered_is_left(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-94, CLIENT-06."""
    sell_stream(provider, 200)
    provider.offer["suggested_deposit"] = 4_000
    provider.change_need = lambda fields: fields | {"required_cumulative": 5_000, "deposit": 4_000}
    with pytest.raises(OverclaimError):
        await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert account.signed <= account.received + 64 * PRICE
    assert len(chain.deposited) == 1


async def test_a_stream_that_asks_and_asks_is_left(agent: Agent, provider: Provider) -> None:
    """F-60."""
    sell_stream(provider, 1)

    async def nagging(seen: Seen) -> AsyncIterator[bytes]:
        assert seen.credential is not None
        for _ in range(100):
            yield format_need_voucher(
                NeedVoucher(
                    channel_id=seen.credential.payload.channel_id,
                    required_cumulative=1,
                    accepted=0,
                    deposit=1_000,
                )
            )

    def nag(seen: Seen) -> httpx.Response | None:
        if seen.method == "HEAD" or seen.credential is None:
            return None
        return httpx.Response(
            200, headers={"Content-Type": "text/event-stream"}, stream=Events(nagging(seen))
        )

    provider.override = nag
    with pytest.raises(PaymentRefusedError, match="delivered nothing"):
        await read_stream(agent)


async def test_a_stream_that_is_paid_ahead_need_not_ask(agent: Agent, provider: Provider) -> None:
    """CLIENT-07: the next voucher comes unasked, however fast the last one is used up."""
    sell_stream(provider, 400)
    provider.offer["suggested_deposit"] = 5_000
    needs: list[dict[str, Any]] = []
    provider.change_need = lambda fields: needs.append(fields) or fields  # type: ignore[func-returns-value]
    honest = provider.events

    async def patient(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        async for event in honest(seen, books):
            yield event
            if books.accepted - books.spent < PRICE:
                provider.waiting.clear()
                async with asyncio.timeout(PATIENCE_S):
                    await provider.waiting.wait()

    provider.speak = patient
    assert (await read_stream(agent)).count("content") == 400
    assert needs == []
    (account,) = await agent.payments.channels()
    assert account.spent == 4_000
    assert account.signed <= 4_000 + 64 * PRICE


async def test_a_voucher_ahead_that_fails_leaves_the_stream_alone(
    agent: Agent, provider: Provider
) -> None:
    sell_stream(provider, 60)
    provider.override = lambda seen: (
        httpx.Response(500) if seen.method == "HEAD" and only_voucher(seen) else None
    )
    assert (await read_stream(agent)).count("content") == 60


async def test_a_stream_is_paid_for_as_long_as_its_request_allows(
    agent: Agent, provider: Provider
) -> None:
    """F-94, F-95: events without end are not bought."""
    sell_stream(provider, 300)
    with pytest.raises(OverclaimError):
        await agent.client.post("/chat", json={"stream": True, "max_tokens": 50})
    (account,) = await agent.payments.channels()
    assert account.units == 100
    assert account.signed <= 1_000 + 65 * PRICE


async def test_a_need_of_another_channel_is_ignored(agent: Agent, provider: Provider) -> None:
    """CLIENT-06."""
    sell_stream(provider, 5)
    honest = provider.events

    async def with_another(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        yield format_need_voucher(
            NeedVoucher(
                channel_id=ChannelId(b"\x99" * 32), required_cumulative=1, accepted=0, deposit=1
            )
        )
        async for event in honest(seen, books):
            yield event

    provider.speak = with_another
    text = await read_stream(agent)
    assert "payment-" not in text
    assert [seen.method for seen in provider.seen] == ["POST", "HEAD", "POST"]


@pytest.mark.parametrize("name", ["payment-need-voucher", "payment-receipt"])
async def test_a_control_event_that_cannot_be_read_ends_the_stream(
    agent: Agent, provider: Provider, name: str
) -> None:
    sell_stream(provider, 5)

    async def garbled(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        yield format_event("{", name)

    provider.speak = garbled
    with pytest.raises(ReceiptViolationError, match=name):
        await read_stream(agent)


async def test_the_budget_ends_a_loop(open_agent: OpenAgent, provider: Provider) -> None:
    """F-96."""
    agent = await open_agent(policy_of({"budget": 35}))
    for _ in range(3):
        await agent.client.get("/joke")
    with pytest.raises(BudgetExceededError) as caught:
        await agent.client.get("/joke")
    assert (caught.value.asked, caught.value.allowed) == (40, 35)
    (books,) = provider.books.values()
    assert books.accepted == 30


async def test_many_origins_share_one_budget(open_agent: OpenAgent, chain: PaperChain) -> None:
    """F-96: a server of many names gets one budget, not one a name, and no deposit beyond it."""
    policy = policy_of({"budget": 100, "budget_total": 250})
    paid = [0] * 5
    for number in range(len(paid)):
        agent = await open_agent(policy)  # each time after a restart
        with contextlib.suppress(BudgetExceededError):
            for _ in range(20):
                await agent.client.get(f"https://{number}.example/joke")
                paid[number] += 1
    assert paid == [10, 10, 5, 0, 0]
    assert len(chain.facts) == 3
    with pytest.raises(BudgetExceededError, match="signed for all origins") as caught:
        await agent.client.get("https://another.example/joke")
    assert (caught.value.asked, caught.value.allowed) == (260, 250)


async def test_looking_ahead_ends_with_the_budget(
    open_agent: OpenAgent, provider: Provider
) -> None:
    agent = await open_agent(policy_of({"budget": 100}))
    sell_stream(provider, 8)
    await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert (account.signed, account.spent) == (100, 80)


async def test_the_cumulative_cap_ends_a_channel(open_agent: OpenAgent) -> None:
    agent = await open_agent(policy_of({"cumulative_max": 20}))
    await agent.client.get("/joke")
    await agent.client.get("/joke")
    with pytest.raises(BudgetExceededError, match="cumulative_max"):
        await agent.client.get("/joke")


async def test_a_channel_is_topped_up_when_it_runs_out(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-07: first the deposit, then the voucher."""
    agent = await open_agent(policy_of(expected_units=2))
    for _ in range(5):
        assert (await agent.client.get("/joke")).status_code == 200
    assert chain.deposited == [20, 20, 20]
    actions = [type(seen.credential.payload) for seen in provider.paid if seen.credential]
    assert actions.count(TopUpHash) == 2


async def test_a_stream_is_topped_up_while_it_runs(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-07."""
    agent = await open_agent(policy_of(expected_units=50))
    sell_stream(provider, 170)
    assert (await read_stream(agent)).count("content") == 170
    assert sum(chain.deposited) >= 1_700
    assert len(chain.deposited) > 2


async def test_a_top_up_ends_at_the_greatest_deposit(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    agent = await open_agent(policy_of({"deposit_max": 30}, expected_units=2))
    for _ in range(3):
        await agent.client.get("/joke")
    with pytest.raises(BudgetExceededError, match="deposit_max to 40"):
        await agent.client.get("/joke")
    assert sum(chain.deposited) == 30


@pytest.mark.parametrize("closes", [True, False])
async def test_what_was_signed_for_a_top_up_that_never_came_is_not_shown(
    open_agent: OpenAgent, provider: Provider, *, closes: bool
) -> None:
    """CLIENT-06, F-75: a request that was cancelled between the two leaves a usable channel."""
    agent = await open_agent(policy_of(expected_units=10))
    await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    await agent.store.update(account.key, lambda current: replace(current, signed=120))
    (books,) = provider.books.values()
    if closes:
        books.accepted = books.spent = 20  # of an answer that was lost
        (closed,) = await agent.payments.close()
        assert (closed.state, closed.settled) == ("closed", 20)
    else:
        for _ in range(3):
            assert (await agent.client.get("/joke")).status_code == 200
        assert books.spent == 40
    assert max(provider.vouchers) <= 100


async def test_a_top_up_that_the_server_missed_is_looked_up_not_repeated(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-50: after a crash between top-up and answer, the chain's deposit is what counts."""
    agent = await open_agent(policy_of(expected_units=2))
    await agent.client.get("/joke")
    await agent.client.get("/joke")

    def crash(what: str) -> None:
        raise RuntimeError(what)

    chain.before_answer = crash
    with pytest.raises(RuntimeError):
        await agent.client.get("/joke")
    chain.before_answer = lambda _: None
    for books in provider.books.values():
        books.deposit = 40
    assert (await agent.client.get("/joke")).status_code == 200
    assert chain.deposited == [20, 20]


async def test_a_deposit_that_the_server_denies_is_looked_up_once(
    agent: Agent, provider: Provider
) -> None:
    """F-50, F-97."""
    await agent.client.get("/joke")
    provider.override = lambda _: provider.refuse("session/amount-exceeds-deposit", deposit=1)
    with pytest.raises(PaymentRefusedError, match="amount-exceeds-deposit"):
        await agent.client.get("/joke")
    assert provider.vouchers == [10, 10, 20, 20]


# -- receipts


@pytest.mark.parametrize(
    ("lie", "field"),
    [
        ({"accepted": 10**6}, "acceptedCumulative"),
        ({"spent": 10**6}, "spent"),
        ({"channel_id": ChannelId(b"\x99" * 32)}, "channelId"),
        ({"chain_id": 1}, "channelId"),
        ({"challenge_id": "another"}, "challengeId"),
        ({"spent": 0}, "spent"),
    ],
)
async def test_a_lying_receipt_stops_the_channel(
    agent: Agent, provider: Provider, chain: PaperChain, lie: dict[str, Any], field: str
) -> None:
    """CLIENT-09."""
    await agent.client.get("/joke")
    provider.change_receipt = lambda fields: fields | lie
    with pytest.raises(ReceiptViolationError) as caught:
        await agent.client.get("/joke")
    assert caught.value.field == field
    provider.change_receipt = lambda fields: fields
    with pytest.raises(ChannelUnusableError, match="contradicted itself"):
        await agent.client.get("/joke")
    assert len(chain.deposited) == 1
    (account,) = await agent.payments.channels()
    assert (account.state, account.signed) == ("stopped", 20)


async def test_an_unreadable_receipt_stops_the_channel(agent: Agent, provider: Provider) -> None:
    await agent.client.get("/joke")
    provider.override = lambda _: httpx.Response(200, headers={"Payment-Receipt": "!"})
    with pytest.raises(ReceiptViolationError, match="Payment-Receipt"):
        await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert account.state == "stopped"


async def test_a_lie_at_the_end_of_a_stream_stops_the_channel(
    agent: Agent, provider: Provider
) -> None:
    """SSE-04, CLIENT-09."""
    sell_stream(provider, 5)
    provider.change_receipt = lambda fields: (
        fields | {"spent": 10**6, "accepted": 10**6} if fields.get("units") else fields
    )
    with pytest.raises(ReceiptViolationError):
        await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert account.state == "stopped"


async def test_an_answer_without_a_receipt_counts_one_unit(
    agent: Agent, provider: Provider
) -> None:
    await agent.client.get("/joke")
    provider.override = lambda _: httpx.Response(200, text="no receipt")
    assert (await agent.client.get("/joke")).text == "no receipt"
    (account,) = await agent.payments.channels()
    assert (account.received, account.spent) == (20, 10)


async def test_an_error_of_the_application_counts_nothing(agent: Agent, provider: Provider) -> None:
    await agent.client.get("/joke")
    provider.override = lambda _: httpx.Response(404, text="no such joke")
    assert (await agent.client.get("/joke")).status_code == 404
    (account,) = await agent.payments.channels()
    assert (account.received, account.signed) == (10, 20)
    provider.override = lambda _: None
    await agent.client.get("/joke")
    assert provider.vouchers[-1] == 20
