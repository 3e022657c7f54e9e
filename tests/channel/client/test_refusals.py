"""A refusal, a silence or an ended channel costs a bounded number of tries, and nothing twice."""

import asyncio

import httpx
import pytest
from msgspec.structs import replace

from channel.client.funding.signer import LocalSigner
from channel.errors import (
    BudgetExceededError,
    ChannelUnusableError,
    OverclaimError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
)
from channel.limits import IDEMPOTENT_REQUEST_BYTES_MAX
from channel.methods.evm.payload import (
    OpenHash,
)
from channel.types import Address
from channel.verify.typed_data import keccak
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import Broken, sell_stream
from tests.channel.client.provider import (
    PAYER,
    PaperChain,
    Provider,
    Seen,
)

THIEF = Address(b"\x66" * 20)
PRICE = 10


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
async def test_a_wait_is_bounded_for_any_retry_after(
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


async def test_an_unknown_outcome_is_an_error(agent: Agent, provider: Provider) -> None:
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
    """F-26, CLIENT-08: the error has the key under which it is safe to ask again."""
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
    """Serves, charges, and keeps the answer back while the test says so."""

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
    """CLIENT-06: the client grants answers that no caller got, within the bound for lost ones."""
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
    await agent.store.close()
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
    are_firsts = [await first.store.claim(account.key) for account in accounts]
    assert sorted(are_firsts) == [False, True]
    for account, is_firsts in zip(accounts, are_firsts, strict=True):
        with pytest.raises(ChannelUnusableError, match="Another client"):
            await (second if is_firsts else first).payments.close(account.key.channel_id)
    for _ in range(10):
        await first.client.get("/joke")
    with pytest.raises(BudgetExceededError):
        await second.client.get("/joke")
    await first.store.close()
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
