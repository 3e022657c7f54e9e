"""What a caller of httpx sees, and what a hostile server gets."""

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from msgspec.structs import replace

from channel.client.signer import LocalSigner
from channel.client.transport import is_safe, origin_of
from channel.engine.rate_limit import RateLimiter
from channel.errors import (
    AgentError,
    BodyNotReplayableError,
    BudgetExceededError,
    ChannelBusyError,
    ChannelUnusableError,
    OfferRefusedError,
    OverclaimError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    ReceiptViolationError,
)
from channel.limits import IDEMPOTENT_REQUEST_BYTES_MAX, VOUCHERS_PER_SECOND_MAX
from channel.types import Address, ChannelId
from channel.verify.typed_data import keccak
from channel.wire.payload import OpenHash, TopUpHash, VoucherPayload
from channel.wire.sse import NeedVoucher, format_event, format_need_voucher
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.provider import (
    BASE,
    NOW,
    PAYEE,
    PAYER,
    Books,
    Events,
    PaperChain,
    Provider,
    Seen,
)

THIEF = Address(b"\x66" * 20)
PRICE = 10


def sell_stream(provider: Provider, tokens: int) -> None:
    provider.tokens = tokens
    provider.offer = {"unit_type": "llm_token"}


async def read_stream(agent: Agent, path: str = "/chat") -> str:
    async with agent.client.stream("POST", path, json={"stream": True}) as response:
        response.raise_for_status()
        return (await response.aread()).decode()


class Broken(httpx.AsyncBaseTransport):
    """Lets some exchanges fail: after the request was sent, or before."""

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        self.failures: list[Exception] = []
        """Raised one by one for answers to paid content requests."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_paid = "Payment " in request.headers.get("Authorization", "")
        if not is_paid or request.method == "HEAD" or not self.failures:
            return await self.inner.handle_async_request(request)
        failure = self.failures.pop(0)
        if not isinstance(failure, httpx.ConnectError):
            await self.inner.handle_async_request(request)
        raise failure


# -- the ordinary way


async def test_a_paid_request_looks_like_any_other(agent: Agent, provider: Provider) -> None:
    response = await agent.client.get("/joke")
    assert response.json() == {"text": "because"}
    assert [seen.method for seen in provider.seen] == ["GET", "HEAD", "GET"]
    assert provider.seen[0].headers["Accept-Payment"] == "evm/session"


async def test_a_known_route_is_paid_at_once(agent: Agent, provider: Provider) -> None:
    await agent.client.get("/joke")
    provider.seen.clear()
    await agent.client.get("/joke?a=b")
    assert len(provider.seen) == 1
    assert provider.vouchers == [20]


async def test_what_is_free_is_not_paid_for(agent: Agent, provider: Provider) -> None:
    provider.override = lambda _: httpx.Response(200, text="free")
    assert (await agent.client.get("/joke")).text == "free"
    assert not provider.paid
    assert await agent.payments.channels() == []


async def test_another_kind_of_402_is_the_callers(agent: Agent, provider: Provider) -> None:
    provider.override = lambda _: httpx.Response(402, text="by cheque")
    response = await agent.client.get("/joke")
    assert (response.status_code, response.text) == (402, "by cheque")


async def test_a_caller_who_pays_by_itself_is_left_alone(agent: Agent, provider: Provider) -> None:
    provider.override = lambda _: httpx.Response(402, text="no")
    own = {"Payment-Authorization": "Payment abc"}
    assert (await agent.client.get("/joke", headers=own)).text == "no"
    assert "Accept-Payment" not in provider.seen[0].headers


async def test_twenty_parallel_requests_open_one_channel(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-41."""
    responses = await asyncio.gather(*(agent.client.get("/joke") for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
    assert len(chain.deposited) == 1
    (books,) = provider.books.values()
    assert books.spent == books.accepted == 200


async def test_the_same_key_goes_with_every_try_of_one_request(
    agent: Agent, provider: Provider
) -> None:
    """IDEM-01, CLIENT-08."""
    await agent.client.get("/joke")
    provider.override = lambda _: (
        provider.refuse("session/challenge-not-found") if len(provider.seen) == 4 else None
    )
    await agent.client.get("/joke")
    keys = [seen.headers.get("Idempotency-Key") for seen in provider.seen if seen.method == "GET"]
    assert keys[0] is None
    assert keys[1] != keys[2] == keys[3] is not None
    assert provider.vouchers == [10, 10, 20, 20]


async def test_a_callers_own_key_is_kept_and_its_stored_answer_believed(
    agent: Agent, provider: Provider
) -> None:
    """F-26: the same answer again, with a receipt from before, and nothing charged."""
    headers = {"Idempotency-Key": "mine"}
    first = await agent.client.get("/joke", headers=headers)
    await agent.client.get("/joke")
    again = await agent.client.get("/joke", headers=headers)
    assert again.content == first.content
    (books,) = provider.books.values()
    assert books.spent == 20


async def test_a_credential_may_travel_beside_the_callers_own(
    agent: Agent, provider: Provider
) -> None:
    """CHAL-12."""
    provider.challenge_changes = {"header": "Payment-Authorization"}

    def answer(seen: Seen) -> httpx.Response | None:
        assert seen.headers["Authorization"] == "Bearer app"
        if "Payment-Authorization" in seen.headers:
            return httpx.Response(204)
        return None

    provider.override = answer
    response = await agent.client.get("/joke", headers={"Authorization": "Bearer app"})
    assert response.status_code == 204


async def test_an_application_key_gives_way_where_the_credential_travels(
    agent: Agent, provider: Provider
) -> None:
    """CORE-10: one value, as the openai client's `api_key` must not stay beside it."""
    await agent.client.get("/joke", headers={"Authorization": "Bearer unused"})
    assert provider.seen[0].headers["Authorization"] == "Bearer unused"
    assert len(provider.seen[-1].headers.get_list("Authorization")) == 1


async def test_an_expired_challenge_is_fetched_anew(agent: Agent, provider: Provider) -> None:
    """AMB-05."""
    await agent.client.get("/joke")
    agent.payer.now = provider.now = lambda: NOW + 299
    provider.seen.clear()
    assert (await agent.client.get("/joke")).status_code == 200
    assert [seen.credential is None for seen in provider.seen] == [True, False]


async def test_an_answer_in_one_piece_is_paid_from_what_the_body_names(
    agent: Agent, provider: Provider
) -> None:
    """A reservation of the greatest length: signed once, without a second round."""
    provider.offer = {"unit_type": "llm_token"}
    provider.reserve = 30
    response = await agent.client.post("/chat", json={"max_tokens": 30})
    assert response.status_code == 200
    assert provider.vouchers == [300, 300]


async def test_an_answer_in_one_piece_without_a_bound_is_raised_on_demand(
    agent: Agent, provider: Provider
) -> None:
    provider.offer = {"unit_type": "llm_token"}
    provider.reserve = 30
    assert (await agent.client.post("/chat", json={})).status_code == 200
    assert provider.vouchers == [10, 10, 300]


async def test_a_burst_beyond_the_servers_rate_is_waited_for(
    agent: Agent, provider: Provider
) -> None:
    """VCH-09."""
    await agent.client.get("/joke")
    answers = iter([True, True, False])

    def limit(_: Seen) -> httpx.Response | None:
        if not next(answers):
            return None
        refusal = provider.refuse("rate-limited", 429)
        refusal.headers["Retry-After"] = "1"
        return refusal

    provider.override = limit
    assert (await agent.client.get("/joke")).status_code == 200
    assert agent.waited == [1.0, 1.0]


async def test_vouchers_rise_by_what_the_offer_asks(agent: Agent, provider: Provider) -> None:
    provider.offer = {"min_voucher_delta": 15}
    for _ in range(3):
        assert (await agent.client.get("/joke")).status_code == 200
    assert provider.vouchers == [10, 10, 25, 40]


async def test_a_rise_that_is_too_small_is_raised_once(agent: Agent, provider: Provider) -> None:
    """A server whose books are ahead of ours, within one step."""
    await agent.client.get("/joke")
    refusals = iter(
        [provider.refuse("session/delta-too-small", acceptedCumulative=20, minVoucherDelta=10)]
    )
    provider.override = lambda _: next(refusals, None)
    assert (await agent.client.get("/joke")).status_code == 200
    assert provider.vouchers[-2:] == [20, 30]


# -- bodies


async def test_a_body_is_sent_again_after_the_402(agent: Agent, provider: Provider) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first "
        yield b"second"

    await agent.client.post("/joke", content=chunks())
    assert [seen.body for seen in provider.seen] == [b"first second", b"", b"first second"]


async def test_a_body_too_long_to_keep_says_so(
    agent: Agent, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channel.client.bodies.REQUEST_BYTES_MAX", 10)
    provider.override = lambda seen: (
        httpx.Response(200) if seen.credential and seen.method == "POST" else None
    )

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"chunk"

    with pytest.raises(BodyNotReplayableError, match="small request first"):
        await agent.client.post("/joke", content=chunks())
    await agent.client.get("/joke")
    agent.payer._remembered["POST", f"{BASE}/joke"] = agent.payer._remembered[  # noqa: SLF001
        "GET", f"{BASE}/joke"
    ]
    assert (await agent.client.post("/joke", content=chunks())).status_code == 200
    assert provider.seen[-1].body == b"chunk" * 5
    assert "Idempotency-Key" not in provider.seen[-1].headers


async def test_a_body_in_memory_is_never_too_long(
    agent: Agent, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channel.client.bodies.REQUEST_BYTES_MAX", 10)
    await agent.client.post("/joke", content=b"more than ten bytes")
    assert provider.seen[-1].body == b"more than ten bytes"


async def test_a_synchronous_body_is_a_mistake(agent: Agent) -> None:
    request = httpx.Request("POST", f"{BASE}/joke", stream=SyncOnly())
    with pytest.raises(TypeError, match="asynchronous"):
        await agent.client._transport.handle_async_request(request)  # noqa: SLF001


class SyncOnly(httpx.SyncByteStream):
    pass


async def test_a_problem_that_is_handed_on_can_be_read(agent: Agent, provider: Provider) -> None:
    body = gzip.compress(json.dumps({"type": "about:blank", "detail": "gone"}).encode())
    headers = {"Content-Type": "application/problem+json", "Content-Encoding": "gzip"}
    provider.override = lambda _: httpx.Response(
        410, headers=headers, stream=httpx.ByteStream(body)
    )
    assert (await agent.client.get("/joke")).json()["detail"] == "gone"


async def test_a_problem_of_any_length_is_handed_on_whole(agent: Agent, provider: Provider) -> None:
    """A body that nobody may hold in memory is still the caller's."""
    body = json.dumps({"type": "about:blank", "detail": "x" * 300_000}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    headers = {"Content-Type": "application/problem+json"}
    provider.override = lambda _: httpx.Response(410, headers=headers, stream=Events(pieces()))
    assert (await agent.client.get("/joke")).content == body


async def test_a_problem_in_a_broken_coding_is_handed_on(agent: Agent, provider: Provider) -> None:
    headers = {"Content-Type": "application/problem+json", "Content-Encoding": "gzip"}
    provider.override = lambda _: httpx.Response(
        410, headers=headers, stream=httpx.ByteStream(b"no gzip")
    )
    with pytest.raises(httpx.DecodingError):
        await agent.client.get("/joke")


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
    """CLIENT-07: the next voucher is there before the last one is used up."""
    sell_stream(provider, 400)
    provider.offer["suggested_deposit"] = 5_000
    needs: list[dict[str, Any]] = []
    provider.change_need = lambda fields: needs.append(fields) or fields  # type: ignore[func-returns-value]
    honest = provider.events

    async def unhurried(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        async for event in honest(seen, books):
            await asyncio.sleep(0.001)
            yield event
            for _ in range(30_000):  # a busy disk may be late with it, but it comes unasked
                if books.accepted - books.spent >= PRICE:
                    break
                await asyncio.sleep(0.001)

    provider.speak = unhurried
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


def only_voucher(seen: Seen) -> bool:
    return seen.credential is not None and isinstance(seen.credential.payload, VoucherPayload)


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
    assert len(chain.deposited) == 3
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
    await agent.purse.update(account.key, lambda current: replace(current, signed=120))
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


# -- refusals, loops, silence


@pytest.mark.parametrize(
    "kind", ["payment-required", "session/challenge-not-found", "session/invalid-signature"]
)
async def test_a_server_that_refuses_for_ever_is_left(
    agent: Agent, provider: Provider, chain: PaperChain, kind: str
) -> None:
    """F-97: no loop of 402s."""
    await agent.client.get("/joke")
    provider.seen.clear()
    provider.override = lambda _: provider.refuse(kind)
    with pytest.raises(PaymentRefusedError, match=kind):
        await agent.client.get("/joke")
    assert len(provider.seen) <= 3
    assert len(chain.deposited) == 1


async def test_a_server_that_is_never_satisfied_is_left_within_one_step(
    agent: Agent, provider: Provider
) -> None:
    """F-94, F-97: each demand a little higher."""
    await agent.client.get("/joke")
    demands = iter(range(20, 10**6, 5))
    provider.override = lambda _: provider.refuse(
        "session/insufficient-balance", requiredCumulative=next(demands)
    )
    with pytest.raises((PaymentRefusedError, OverclaimError)):
        await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert account.signed <= 10 + 10 + 10  # received, first cost, one step


async def test_an_opening_that_is_refused_is_left(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    provider.override = lambda seen: httpx.Response(402) if seen.method == "HEAD" else None
    with pytest.raises(PaymentRefusedError, match="402 a HEAD with action open"):
        await agent.client.get("/joke")
    provider.override = lambda _: None
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 1


async def test_an_opening_is_presented_until_the_server_sees_it(
    agent: Agent, provider: Provider
) -> None:
    """F-72, CORE-15."""
    late = iter([True, True, False])

    def wait(seen: Seen) -> httpx.Response | None:
        if seen.method != "HEAD" or not next(late):
            return None
        refusal = provider.refuse("verification-failed")
        refusal.headers["Retry-After"] = "2"
        return refusal

    provider.override = wait
    assert (await agent.client.get("/joke")).status_code == 200
    assert agent.waited == [2.0, 2.0]


async def test_a_503_is_asked_again_with_the_same_credential_and_then_handed_on(
    agent: Agent, provider: Provider
) -> None:
    """CLIENT-08: on 5xx after a credential nothing more is signed."""
    await agent.client.get("/joke")
    provider.seen.clear()

    def down(_: Seen) -> httpx.Response:
        refusal = provider.refuse("internal-payment-error", 503)
        refusal.headers["Retry-After"] = "5"
        return refusal

    provider.override = down
    assert (await agent.client.get("/joke")).status_code == 503
    assert len({seen.headers["Authorization"] for seen in provider.seen}) == 1
    assert agent.waited == [5.0] * 6
    (account,) = await agent.payments.channels()
    assert account.signed == 20


@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [("86400", 10.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), ("-5", 1.0), ("9" * 50, 1.0)],
)
async def test_a_wait_is_bounded_whatever_is_asked(
    agent: Agent, provider: Provider, retry_after: str, waited: float
) -> None:
    await agent.client.get("/joke")

    def down(_: Seen) -> httpx.Response:
        refusal = provider.refuse("internal-payment-error", 503)
        refusal.headers["Retry-After"] = retry_after
        return refusal

    provider.override = down
    await agent.client.get("/joke")
    assert set(agent.waited) == {waited}


async def test_an_outcome_nobody_knows_is_said(agent: Agent, provider: Provider) -> None:
    await agent.client.get("/joke")
    provider.override = lambda _: provider.refuse("outcome-unknown", 409)
    with pytest.raises(PaymentOutcomeUnknownError) as caught:
        await agent.client.get("/joke")
    assert caught.value.idempotency_key == provider.seen[-1].headers["Idempotency-Key"]


async def test_a_lost_answer_is_asked_for_again_and_charged_once(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-26: same key, same credential."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [httpx.ReadError("gone")]
    assert (await agent.client.get("/joke")).status_code == 200
    (books,) = provider.books.values()
    assert books.spent == 10


async def test_an_answer_lost_twice_is_an_unknown_outcome(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-26, CLIENT-08: told with the key under which it is safe to ask again."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [httpx.ReadError("gone"), httpx.ReadTimeout("slow")]
    with pytest.raises(PaymentOutcomeUnknownError) as caught:
        await agent.client.get("/joke")
    headers = {"Idempotency-Key": caught.value.idempotency_key}
    assert (await agent.client.get("/joke", headers=headers)).status_code == 200
    (books,) = provider.books.values()
    assert books.spent == 10


async def test_a_body_too_long_for_a_key_is_not_paid_for_twice(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-26: without a key the same request is another one, and would be charged again."""
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    await agent.client.post("/joke")
    broken.failures = [httpx.ReadError("gone")]
    with pytest.raises(PaymentOutcomeUnknownError, match="too long"):
        await agent.client.post("/joke", content=b"x" * (IDEMPOTENT_REQUEST_BYTES_MAX + 1))
    (books,) = provider.books.values()
    assert books.spent == 20


class Slow(httpx.AsyncBaseTransport):
    """Serves, charges, and keeps the answer back while it is told to."""

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        self.is_slow = False
        self.has_served = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        if self.is_slow and response.is_success and request.method != "HEAD":
            self.has_served.set()
            await asyncio.Event().wait()
        return response


async def give_up(agent: Agent, slow: Slow, *, is_stream: bool = False) -> None:
    """Ask, and wait no longer once it was served; or be refused before."""
    slow.is_slow = True
    slow.has_served.clear()
    asking = asyncio.create_task(agent.client.post("/joke", json={"stream": is_stream}))
    served = asyncio.create_task(slow.has_served.wait())
    await asyncio.wait({asking, served}, return_when=asyncio.FIRST_COMPLETED)
    for task in (asking, served):
        task.cancel()
    await asyncio.gather(asking, served, return_exceptions=True)
    slow.is_slow = False


@pytest.mark.parametrize("tokens", [0, 40])
async def test_a_caller_that_waits_no_longer_can_go_on_paying(
    open_agent: OpenAgent, provider: Provider, tokens: int
) -> None:
    """CLIENT-06: what was served to nobody is granted, within the bound for lost answers."""
    if tokens:
        sell_stream(provider, tokens)
    slow = Slow(provider)
    agent = await open_agent(transport=slow)
    for _ in range(5):
        await give_up(agent, slow, is_stream=bool(tokens))
        (books,) = provider.books.values()
        if tokens:
            books.spent = min(books.accepted, books.spent + tokens * PRICE)
        response = await agent.client.post("/joke", json={"stream": bool(tokens)})
        assert response.status_code == 200
    (account,) = await agent.payments.channels()
    assert account.spent == books.spent
    assert account.lost <= agent.payer.policy.lost_units_max * PRICE


async def test_a_cancelled_request_stays_cancelled_though_the_store_is_gone(
    open_agent: OpenAgent, provider: Provider
) -> None:
    slow = Slow(provider)
    agent = await open_agent(transport=slow)
    await agent.client.post("/joke")
    slow.is_slow = True
    asking = asyncio.create_task(agent.client.post("/joke"))
    await slow.has_served.wait()
    await agent.purse.close()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_server_gains_nothing_by_letting_callers_wait(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-94: an answer that never comes is granted as often as the bound allows."""
    slow = Slow(provider)
    agent = await open_agent(policy_of(lost_units_max=3), transport=slow)
    for _ in range(10):
        await give_up(agent, slow)
    (account,) = await agent.payments.channels()
    assert account.lost == 3 * PRICE
    assert account.signed <= account.lost + 2 * PRICE


async def test_what_was_never_sent_is_the_callers_to_retry(
    open_agent: OpenAgent, provider: Provider
) -> None:
    broken = Broken(provider)
    agent = await open_agent(transport=broken)
    broken.failures = [httpx.ConnectError("no route")]
    with pytest.raises(httpx.ConnectError):
        await agent.client.get("/joke")


async def test_a_connection_that_fails_before_payment_is_the_callers(
    open_agent: OpenAgent,
) -> None:
    class Dead(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ReadError("dead", request=request)

    agent = await open_agent(transport=Dead())
    with pytest.raises(httpx.ReadError):
        await agent.client.get("/joke")


async def test_a_head_that_breaks_is_sent_again(open_agent: OpenAgent, provider: Provider) -> None:
    class Flaky(httpx.AsyncBaseTransport):
        failures = 2

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await provider.handle_async_request(request)
            if request.method == "HEAD" and self.failures:
                self.failures -= 1
                raise httpx.ReadError("gone")
            return response

    flaky = Flaky()
    agent = await open_agent(transport=flaky)
    assert (await agent.client.get("/joke")).status_code == 200
    flaky.failures = 3
    agent = await open_agent(transport=flaky, file="another.db")
    with pytest.raises(httpx.ReadError):
        await agent.client.get("/joke")


# -- channels that end


async def test_a_channel_the_server_forgot_is_presented_again_not_paid_again(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-97: its deposit is on chain; nothing new is deposited."""
    await agent.client.get("/joke")
    provider.books.clear()
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 1
    actions = [type(seen.credential.payload) for seen in provider.paid if seen.credential]
    assert actions.count(OpenHash) == 2


async def test_a_channel_that_ended_is_replaced_once(agent: Agent, chain: PaperChain) -> None:
    """F-97, CLIENT-08."""
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, is_finalized=True, settled=10)
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 2
    first, second = await agent.payments.channels()
    assert (first.state, first.settled, second.state) == ("closed", 10, "open")


async def test_a_server_that_ends_every_channel_gets_one_deposit_more_and_no_third(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-97: the loop guard."""
    await agent.client.get("/joke")
    provider.override = lambda seen: (
        provider.refuse("session/channel-finalized", 410)
        if seen.credential and seen.method != "HEAD"
        else None
    )
    with pytest.raises(PaymentRefusedError, match="channel-finalized"):
        await agent.client.get("/joke")
    assert len(chain.deposited) == 2


async def test_deposits_at_one_origin_are_bounded_over_many_requests(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-97, F-96: also a patient server collects no deposits without end."""
    agent = await open_agent(policy_of(channels_per_origin_max=3))
    await agent.client.get("/joke")
    provider.override = lambda seen: (
        provider.refuse("session/channel-finalized", 410)
        if seen.credential and seen.method != "HEAD"
        else None
    )
    for _ in range(10):
        with pytest.raises((PaymentRefusedError, BudgetExceededError)):
            await agent.client.get("/joke")
    assert len(chain.deposited) == 3


async def test_a_changed_key_opens_a_channel_of_its_own(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """F-22, CLIENT-11: and another key than the account's is the authorized signer."""
    agent = await open_agent()
    await agent.client.get("/joke")
    other = LocalSigner(keccak(b"a session key"))
    agent = await open_agent(signer=other)
    assert (await agent.client.get("/joke")).status_code == 200
    assert [fact.terms.signer for fact in chain.facts.values()] == [PAYER, other.address]


# -- restarts


async def test_clients_that_share_a_store_have_channels_of_their_own(open_agent: OpenAgent) -> None:
    """F-41: each knows what it has in flight, and nothing of the other's; the budget is common."""
    policy = policy_of({"budget": 500})
    first = await open_agent(policy)
    second = await open_agent(policy, beside=True)
    answers = await asyncio.gather(
        *(agent.client.get("/joke") for agent in (first, second) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {200}
    accounts = await first.payments.channels()
    assert [account.spent for account in accounts] == [200, 200]
    assert [account.lost for account in accounts] == [0, 0]
    are_firsts = [await first.purse.claim(account.key) for account in accounts]
    assert sorted(are_firsts) == [False, True]
    for account, is_firsts in zip(accounts, are_firsts, strict=True):
        with pytest.raises(ChannelUnusableError, match="Another client"):
            await (second if is_firsts else first).payments.close(account.key.channel_id)
    for _ in range(10):
        await first.client.get("/joke")
    with pytest.raises(BudgetExceededError):
        await second.client.get("/joke")
    await first.purse.close()
    third = await open_agent(policy_of(), beside=True)
    await third.client.get("/joke")
    assert len(await third.payments.channels()) == 2


async def test_a_restart_goes_on_where_it_was(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-05."""
    agent = await open_agent()
    await agent.client.get("/joke")
    agent = await open_agent()
    await agent.client.get("/joke")
    assert provider.vouchers == [10, 10, 20]
    assert len(chain.deposited) == 1


async def test_an_opening_that_was_interrupted_is_found_again(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """CLIENT-05, CLIENT-12: the deposit is made once, wherever the agent stopped."""
    agent = await open_agent()

    def crash(what: str) -> None:
        raise RuntimeError(what)

    chain.before_answer = crash
    with pytest.raises(RuntimeError):
        await agent.client.get("/joke")
    chain.before_answer = lambda _: None
    agent = await open_agent()
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 1


async def test_an_opening_that_never_left_is_made_with_the_same_salt(
    open_agent: OpenAgent, chain: PaperChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIENT-12: the escrow refuses a second channel of the same id, so it cannot be paid twice."""
    agent = await open_agent()

    async def unavailable(**_: object) -> None:
        raise RuntimeError("before it was sent")

    with monkeypatch.context() as patch:
        patch.setattr(chain, "open_channel", unavailable)
        with pytest.raises(RuntimeError):
            await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert account.state == "opening"
    agent = await open_agent()
    await agent.client.get("/joke")
    assert list(chain.facts) == [account.key.channel_id]


async def test_a_channel_that_is_closing_on_chain_is_not_used_after_a_restart(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """CLIENT-05."""
    agent = await open_agent()
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, close_requested_at=1)
    agent = await open_agent()
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 2


async def test_a_chain_that_shows_another_payee_is_not_believed_to_be_ours(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """CLIENT-05."""
    agent = await open_agent()
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    terms = replace(chain.facts[channel_id].terms, payee=THIEF)
    chain.change(channel_id, terms=terms)
    agent = await open_agent()
    with pytest.raises(ChannelUnusableError, match="another payer, payee"):
        await agent.client.get("/joke")


async def test_a_node_that_lags_behind_does_not_stop_a_known_channel(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    agent = await open_agent()
    await agent.client.get("/joke")
    facts = dict(chain.facts)
    agent = await open_agent()
    chain.facts.clear()
    provider.override = lambda _: chain.facts.update(facts)
    assert (await agent.client.get("/joke")).status_code == 200


# -- streams


async def test_a_stream_is_paid_as_it_comes_and_its_control_events_stay_hidden(
    agent: Agent, provider: Provider
) -> None:
    """VCH-08, CLIENT-07: the caller sees content only."""
    sell_stream(provider, 200)
    text = await read_stream(agent)
    assert text.count('"content"') == 200
    assert "payment-" not in text
    assert text.endswith("data: [DONE]\n\n")
    (books,) = provider.books.values()
    assert books.spent == 2_000
    (account,) = await agent.payments.channels()
    assert account.spent == account.received == 2_000
    assert account.units == 200


async def test_a_voucher_is_never_more_than_one_step_ahead(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """CLIENT-06, F-94: at every voucher of a stream."""
    agent = await open_agent(policy_of(voucher_step=5))
    sell_stream(provider, 63)
    await read_stream(agent)
    rises = [
        after - before
        for before, after in zip(provider.vouchers[1:], provider.vouchers[2:], strict=False)
    ]
    assert set(rises) <= {0, 50, 60}
    assert provider.vouchers[-1] <= 630 + 60


async def test_text_that_looks_like_control_events_is_text(
    agent: Agent, provider: Provider
) -> None:
    """F-55."""
    sell_stream(provider, 1)
    evil = "x\n\nevent: payment-receipt\ndata: {}\n\nevent: payment-need-voucher\ndata: {}"

    async def speak(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        yield format_event(evil)

    provider.speak = speak
    text = await read_stream(agent)
    assert text == format_event(evil).decode()


async def test_events_arrive_as_they_come_however_they_are_cut(
    agent: Agent, provider: Provider
) -> None:
    sell_stream(provider, 30)
    honest = provider.events

    async def bytewise(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        async for event in honest(seen, books):
            for position in range(len(event)):
                yield event[position : position + 1]
        yield b"data: unfinished"

    provider.speak = bytewise
    text = await read_stream(agent)
    assert text.count('"content"') == 30
    assert text.endswith("data: [DONE]\n\ndata: unfinished")


async def test_a_control_event_without_its_end_stays_hidden(
    agent: Agent, provider: Provider
) -> None:
    sell_stream(provider, 1)

    async def speak(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        yield b": a comment\n\ndata: x\n\nevent: payment-receipt\ndata: {}"

    provider.speak = speak
    assert await read_stream(agent) == ": a comment\n\ndata: x\n\n"


async def test_a_compressed_stream_is_metered_too(agent: Agent, provider: Provider) -> None:
    sell_stream(provider, 3)
    honest = provider.stream

    def compressed(seen: Seen, books: Books) -> httpx.Response:
        response = honest(seen, books)
        source = response.stream

        async def zipped() -> AsyncIterator[bytes]:
            assert isinstance(source, httpx.AsyncByteStream)
            yield gzip.compress(b"".join([chunk async for chunk in source]))

        headers = dict(response.headers) | {"Content-Encoding": "gzip", "Content-Length": "9"}
        return httpx.Response(200, headers=headers, stream=Events(zipped()))

    provider.stream = compressed  # type: ignore[method-assign]
    text = await read_stream(agent)
    assert text.count('"content"') == 3
    assert "payment-" not in text


async def test_an_event_without_end_is_not_held_in_memory(agent: Agent, provider: Provider) -> None:
    sell_stream(provider, 1)

    async def endless(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * 100_000 + b"\n"

    provider.speak = endless
    with pytest.raises(PaymentRefusedError, match="cannot be metered"):
        await read_stream(agent)


async def test_a_stream_that_the_caller_leaves_can_be_followed_by_others(
    agent: Agent, provider: Provider
) -> None:
    """F-56: what was under way was delivered; the channel stays good, time after time."""
    sell_stream(provider, 200)
    for _ in range(10):
        async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
            async for _line in response.aiter_lines():
                break
    provider.tokens = 3
    assert (await read_stream(agent)).count("content") == 3
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 10 * 10 + 30


@pytest.mark.parametrize("is_one_packet", [False, True])
async def test_a_caller_that_stops_at_done_leaves_no_receipt_behind(
    agent: Agent, provider: Provider, *, is_one_packet: bool
) -> None:
    """SSE-04: as the openai client does, whatever comes after, and in whatever packets."""
    sell_stream(provider, 3)
    honest = provider.events

    async def receipt_last(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        events = [event async for event in honest(seen, books)]
        events = [*events[:-2], events[-1], events[-2]]
        for event in [b"".join(events)] if is_one_packet else events:
            yield event

    provider.speak = receipt_last
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 30


async def test_a_caller_that_drains_in_haste_leaves_no_receipt_behind(
    agent: Agent, provider: Provider
) -> None:
    """SSE-04: the openai client reads on for a tenth of a second, and then cancels the reading."""
    sell_stream(provider, 3)
    honest = provider.events
    is_given_up = asyncio.Event()

    async def receipt_late(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        events = [event async for event in honest(seen, books)]
        for event in [*events[:-2], events[-1]]:
            yield event
        await is_given_up.wait()
        yield events[-2]

    provider.speak = receipt_late
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                anext(aiter(cast("AsyncIterator[bytes]", response.stream))), 0.05
            )
        is_given_up.set()
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 30


async def test_a_caller_that_drains_gets_to_the_end(agent: Agent, provider: Provider) -> None:
    """The connection can be used again, and the receipt is taken on the way."""
    sell_stream(provider, 3)
    honest = provider.events

    async def receipt_last(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        events = [event async for event in honest(seen, books)]
        for event in [*events[:-2], events[-1], events[-2], b"data: whatever\n\n"]:
            yield event

    provider.speak = receipt_last
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
        rest = [piece async for piece in cast("AsyncIterator[bytes]", response.stream)]
    assert rest == []
    (account,) = await agent.payments.channels()
    assert account.spent == account.counted == 30


async def test_a_stream_that_ends_without_a_receipt_is_granted_within_a_bound(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-94: whoever stops at `[DONE]`, as the openai client does, left nothing unread."""
    agent = await open_agent(policy_of(lost_units_max=100))
    sell_stream(provider, 200)

    async def ends(_seen: Seen, books: Books) -> AsyncIterator[bytes]:
        books.spent = books.accepted
        yield format_event("one") + format_event("[DONE]")

    provider.speak = ends
    for _ in range(20):
        async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    break
    (account,) = await agent.payments.channels()
    assert account.received <= 20 * PRICE
    assert account.lost <= 100 * PRICE
    assert account.signed <= account.received + account.lost + 65 * PRICE


async def test_a_stream_that_breaks_is_granted_within_a_bound(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """F-94: a server gains nothing by breaking streams again and again."""
    agent = await open_agent(policy_of(lost_units_max=100))
    sell_stream(provider, 200)

    async def breaks(_seen: Seen, books: Books) -> AsyncIterator[bytes]:
        books.spent = books.accepted
        yield format_event("one")
        raise httpx.ReadError("gone")

    provider.speak = breaks
    for _ in range(20):
        with pytest.raises(httpx.ReadError):
            await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert account.lost <= 100 * PRICE
    assert account.signed <= account.received + account.lost + 65 * PRICE


async def test_a_second_stream_waits_for_the_first(agent: Agent, provider: Provider) -> None:
    """ACC-06: one channel, one stream."""
    sell_stream(provider, 3)
    texts = await asyncio.gather(*(read_stream(agent) for _ in range(5)))
    assert [text.count("content") for text in texts] == [3] * 5
    assert len(provider.books) == 1


async def test_streams_side_by_side_have_channels_of_their_own(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """ACC-06."""
    agent = await open_agent(policy_of(parallel_streams_max=2))
    sell_stream(provider, 3)
    async with (
        agent.client.stream("POST", "/chat", json={"stream": True}) as first,
        agent.client.stream("POST", "/chat", json={"stream": True}) as second,
    ):
        await first.aread()
        await second.aread()
    assert len(chain.deposited) == 2
    await asyncio.gather(*(read_stream(agent) for _ in range(6)))
    assert len(chain.deposited) == 2


async def test_a_stream_that_finds_no_channel_in_time_says_so(
    agent: Agent, provider: Provider
) -> None:
    """A stream inside a stream must not wait for itself for ever."""
    agent.payer.lanes._stream_wait_s = 0.01  # noqa: SLF001
    sell_stream(provider, 3)
    async with agent.client.stream("POST", "/chat", json={"stream": True}):
        with pytest.raises(ChannelBusyError, match="parallel_streams_max"):
            await read_stream(agent)
    assert (await read_stream(agent)).count("content") == 3


async def test_a_route_of_its_own_scope_has_a_channel_of_its_own(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """A challenge for other terms while a request is under way changes the channel, once."""
    await agent.client.get("/joke")
    changes = iter([True])

    def moved(_: Seen) -> httpx.Response | None:
        if not next(changes, False):
            return None
        provider.offer = {"recipient": THIEF}
        return provider.refuse("session/challenge-not-found")

    provider.override = moved
    assert (await agent.client.get("/joke")).status_code == 200
    assert [fact.terms.payee for fact in chain.facts.values()] == [PAYEE, THIEF]


# -- the corners


async def test_a_409_about_payment_before_any_payment_is_refused(
    agent: Agent, provider: Provider
) -> None:
    provider.override = lambda _: provider.refuse("session/transaction-reverted", 409)
    with pytest.raises(PaymentRefusedError, match="transaction-reverted"):
        await agent.client.get("/joke")


async def test_a_reverted_transaction_is_looked_up_on_chain(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-08: on 409 the chain decides."""
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, is_finalized=True, settled=10)
    answers = iter([provider.refuse("session/transaction-reverted", 409)])
    provider.override = lambda _: next(answers, None)
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 2


async def test_a_free_stream_passes_untouched(agent: Agent, provider: Provider) -> None:
    text = format_event("x", "payment-receipt")
    headers = {"Content-Type": "text/event-stream"}
    provider.override = lambda _: httpx.Response(200, headers=headers, content=text)
    assert (await agent.client.get("/joke")).content == text


async def test_a_server_without_end_is_left(agent: Agent, provider: Provider) -> None:
    """F-97: a server that mixes its refusals so that none repeats too often."""
    await agent.client.get("/joke")
    provider.seen.clear()
    kinds = ["session/challenge-not-found", "session/insufficient-balance", "rate-limited"]

    def refuse(_: Seen) -> httpx.Response:
        kind = kinds[len(provider.seen) % 3]
        return provider.refuse(kind, 429 if kind == "rate-limited" else 402, requiredCumulative=20)

    provider.override = refuse
    with pytest.raises(PaymentRefusedError):
        await agent.client.get("/joke")
    assert len(provider.seen) < 40


async def test_a_server_that_is_always_busy_is_left(agent: Agent, provider: Provider) -> None:
    await agent.client.get("/joke")
    provider.seen.clear()
    provider.override = lambda _: provider.refuse("rate-limited", 429)
    assert (await agent.client.get("/joke")).status_code == 429
    assert len(provider.seen) == 31


async def test_parallel_requests_part_with_an_ended_channel_once(
    agent: Agent, chain: PaperChain
) -> None:
    """F-97, F-41: five refusals of one channel are one new channel."""
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, is_finalized=True, settled=10)
    answers = await asyncio.gather(*(agent.client.get("/joke") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(chain.deposited) == 2


async def test_few_routes_are_remembered_of_many(
    agent: Agent, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-100: memory does not grow with the addresses a server invents."""
    monkeypatch.setattr("channel.client.payer.REMEMBERED_MAX", 3)
    for number in range(6):
        await agent.client.get(f"/joke/{number}")
    assert len(agent.payer._remembered) == 3  # noqa: SLF001
    provider.seen.clear()
    await agent.client.get("/joke/5")
    assert len(provider.seen) == 1


async def test_a_query_is_not_stored_with_the_channel(agent: Agent) -> None:
    """F-103: it may hold a secret."""
    await agent.client.get("https://name:password@api.example/joke?key=secret")
    (account,) = await agent.payments.channels()
    assert account.url == f"{BASE}/joke"


async def test_a_head_that_is_refused_without_a_price_is_refused(
    agent: Agent, provider: Provider
) -> None:
    provider.override = lambda seen: (
        httpx.Response(402, headers={"WWW-Authenticate": "Bearer realm=x"})
        if seen.method == "HEAD"
        else None
    )
    with pytest.raises(PaymentRefusedError, match="nothing is asked"):
        await agent.client.get("/joke")


async def test_a_channel_that_closes_while_it_opens_is_not_used(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    agent = await open_agent()

    def crash(what: str) -> None:
        raise RuntimeError(what)

    chain.before_answer = crash
    with pytest.raises(RuntimeError):
        await agent.client.get("/joke")
    chain.before_answer = lambda _: None
    (channel_id,) = chain.facts
    chain.change(channel_id, is_finalized=True)
    assert (await agent.client.get("/joke")).status_code == 200
    first, second = await agent.payments.channels()
    assert (first.state, second.state) == ("closed", "open")


async def test_an_opening_that_nobody_can_name_is_said(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """CLIENT-05: a node without logs."""
    agent = await open_agent()

    def crash(what: str) -> None:
        raise RuntimeError(what)

    chain.before_answer = crash
    with pytest.raises(RuntimeError):
        await agent.client.get("/joke")
    chain.openings.clear()
    with pytest.raises(ChannelUnusableError, match="not its opening"):
        await agent.client.get("/joke")


async def test_a_closing_channel_is_not_topped_up(open_agent: OpenAgent, chain: PaperChain) -> None:
    """F-62: a top-up would cancel the payer's own exit."""
    agent = await open_agent(policy_of(expected_units=2))
    await agent.client.get("/joke")
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, close_requested_at=1)
    with pytest.raises(ChannelUnusableError, match="closing; it is not topped up"):
        await agent.client.get("/joke")
    assert chain.deposited == [20]


async def test_a_caller_that_stops_at_done_waits_for_no_receipt_that_never_comes(
    agent: Agent, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channel.client.events.RECEIPT_WAIT_S", 0.05)
    sell_stream(provider, 3)

    async def hangs(_seen: Seen, _books: Books) -> AsyncIterator[bytes]:
        yield format_event("one") + format_event("[DONE]")
        await asyncio.sleep(60)

    provider.speak = hangs
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
    (account,) = await agent.payments.channels()
    assert account.units == 1


async def test_a_fast_stream_stays_below_the_servers_rate_of_vouchers(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """VCH-09, F-94: larger steps, never larger than what was delivered, and none too many."""
    clock, began = [NOW], time.monotonic()

    def now() -> float:
        return clock[0] + time.monotonic() - began  # what a busy disk takes is time, too

    agent = await open_agent(
        policy_of({"deposit_max": 10**6, "budget": 10**6}, expected_units=10**4), now=now
    )
    sell_stream(provider, 5_000)
    provider.offer["suggested_deposit"] = 10**5
    honest, ahead = provider.events, []
    limiter = RateLimiter(VOUCHERS_PER_SECOND_MAX, now)

    async def fast(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        async for event in honest(seen, books):
            clock[0] += 0.0005  # 2,000 a second
            await asyncio.sleep(0)
            ahead.append(books.accepted / max(64 * PRICE, books.spent))
            yield event

    def limit(seen: Seen) -> httpx.Response | None:
        if seen.method == "HEAD":
            limiter.require(b"the channel")  # raises, as no server would: nothing is refused
        return None

    provider.speak, provider.override = fast, limit
    await read_stream(agent)
    assert max(ahead) <= 2
    (account,) = await agent.payments.channels()
    assert account.units == 5_000


async def test_an_answer_is_closed_once(agent: Agent, provider: Provider) -> None:
    sell_stream(provider, 3)
    request = agent.client.build_request("POST", "/chat", json={"stream": True})
    response = await agent.client.send(request, stream=True)
    assert isinstance(response.stream, httpx.AsyncByteStream)
    await response.stream.aclose()
    await response.stream.aclose()
    await response.aclose()
    (account,) = await agent.payments.channels()
    assert account.received == 640
