"""What a caller of httpx sees."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from channel.engine.rate_limit import RateLimiter
from channel.errors import (
    BodyNotReplayableError,
    ChannelUnusableError,
    PaymentRefusedError,
)
from channel.limits import VOUCHERS_PER_SECOND_MAX
from channel.wire.sse import format_event
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import read_stream, sell_stream
from tests.channel.client.provider import (
    BASE,
    NOW,
    Books,
    Events,
    PaperChain,
    Provider,
    Seen,
)

PRICE = 10


# -- the ordinary way


async def test_a_paid_request_looks_like_any_other(agent: Agent, provider: Provider) -> None:
    response = await agent.client.get("/joke")
    assert response.json() == {"text": "because"}
    assert [seen.method for seen in provider.seen] == ["GET", "HEAD", "GET"]
    assert provider.seen[0].headers["Accept-Payment"] == "evm/session"


async def test_a_known_route_is_paid_with_its_first_request(
    agent: Agent, provider: Provider
) -> None:
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
    """The server's books are ahead of the client's, within one step."""
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
    monkeypatch.setattr("channel.client.http.bodies.KEPT_BODY_BYTES_MAX", 10)
    provider.override = lambda seen: (
        httpx.Response(200) if seen.credential and seen.method == "POST" else None
    )

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"chunk"

    with pytest.raises(BodyNotReplayableError, match="small request first"):
        await agent.client.post("/joke", content=chunks())
    await agent.client.get("/joke")
    agent.payer._remembered["POST", f"{BASE}/joke", ""] = agent.payer._remembered[  # noqa: SLF001
        "GET", f"{BASE}/joke", ""
    ]
    assert (await agent.client.post("/joke", content=chunks())).status_code == 200
    assert provider.seen[-1].body == b"chunk" * 5
    assert "Idempotency-Key" not in provider.seen[-1].headers


async def test_a_body_in_memory_is_never_too_long(
    agent: Agent, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channel.client.http.bodies.KEPT_BODY_BYTES_MAX", 10)
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
    """The client hands on a body that is too large to hold in memory."""
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
    monkeypatch.setattr("channel.client.payment.payer.REMEMBERED_MAX", 3)
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
    with pytest.raises(PaymentRefusedError, match="without naming what it asks"):
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


async def test_an_opening_that_no_node_shows_is_reported(
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
    with pytest.raises(ChannelUnusableError, match="no node shows its opening"):
        await agent.client.get("/joke")


async def test_a_closing_channel_is_not_topped_up(open_agent: OpenAgent, chain: PaperChain) -> None:
    """F-62: a top-up would cancel the payer's own exit."""
    agent = await open_agent(policy_of(expected_units=2))
    await agent.client.get("/joke")
    await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, close_requested_at=1)
    with pytest.raises(ChannelUnusableError, match="found one that is closing"):
        await agent.client.get("/joke")
    assert chain.deposited == [20]


async def test_a_caller_that_stops_at_done_waits_for_no_receipt_that_never_comes(
    agent: Agent, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channel.client.http.events.RECEIPT_WAIT_S_MAX", 0.05)
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
