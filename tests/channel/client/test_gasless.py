"""Deposits by signature, from the 402 to the books: one purpose, one nonce, one deposit."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from channel.client.funding.deposit import VALID_S
from channel.client.funding.keys import ChannelKeys
from channel.client.policy.decisions import DEPOSIT_WAIT_S_MAX
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    BudgetExceededError,
    CannotFundError,
    ChannelUnusableError,
    DepositPendingError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    TransactionRevertedError,
)
from channel.methods.evm.payload import (
    OpenAuthorization,
    TopUpAuthorization,
)
from channel.types import ZERO_ADDRESS, Address, TxHash
from channel.wire.funding import (
    Deposit,
    TransferAuthorization,
)
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.client.conftest import Agent, OpenAgent, policy_of
from tests.channel.client.exchanges import read_stream
from tests.channel.client.provider import NOW, Books, PaperChain, Provider, Seen, deposit_of
from tests.waiting import until

SPONSORED: dict[str, Any] = {
    "fee_payer": True,
    "credential_types": ("authorization", "permit2", "hash"),
}
NO_ETHER = {"can_pay_gas": False}
OTHER_PERMIT2 = Address(b"\x66" * 20)


@pytest.fixture(autouse=True)
def sponsor(provider: Provider, chain: PaperChain) -> None:
    """The server pays; the account has dollars and no ether."""
    provider.offer = dict(SPONSORED)
    chain.means = dict(NO_ETHER)


class Weak(httpx.AsyncBaseTransport):
    """Loses the answers to credentials with a deposit, or the credentials themselves."""

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        self.answers_lost = 0
        self.requests_lost = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.requests_lost and "Authorization" in request.headers:
            self.requests_lost -= 1
            raise httpx.ReadError("lost")
        response = await self.inner.handle_async_request(request)
        if self.answers_lost and deposit_of(self.inner.seen[-1]) is not None:
            self.answers_lost -= 1
            raise httpx.ReadError("lost")
        return response


def deposits(provider: Provider) -> list[Deposit]:
    return [deposit for seen in provider.seen if (deposit := deposit_of(seen)) is not None]


def methods(provider: Provider) -> list[str]:
    return [seen.method for seen in provider.seen]


# -- opening


async def test_an_agent_without_ether_opens_by_signing(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-02, OPEN-05: no transaction of its own, and no request more than a paid one takes."""
    assert (await agent.client.get("/joke")).status_code == 200
    assert methods(provider) == ["GET", "GET"]
    (opening,) = deposits(provider)
    assert (opening.action, opening.type, opening.amount) == ("open", "authorization", 1_000)
    assert chain.deposited == [1_000]
    (account,) = await agent.payments.channels()
    assert (account.state, account.deposit, account.open_tx) == ("open", 1_000, None)
    assert account.terms.authorized_signer == ZERO_ADDRESS


async def test_the_window_is_the_chains_and_has_a_margin(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-111, OPEN-05: good from the beginning, for a quarter of an hour by the chain's clock."""
    chain.now = NOW + 10**6
    await agent.client.get("/joke")
    (opening,) = deposits(provider)
    funding: Any = opening.authorization
    assert (funding.valid_after, funding.valid_before) == (0, NOW + 10**6 + VALID_S)


async def test_what_is_signed_is_on_disk_before_it_is_sent(
    open_agent: OpenAgent, provider: Provider, tmp_path: Path
) -> None:
    """F-75: another process that opens the store at that moment finds the same deposit."""
    agent = await open_agent(policy_of(expected_units=2))
    for _ in range(5):
        stored: list[Deposit | None] = []
        provider.seen.clear()
        store = await PaymentStore.open(tmp_path / "store.db")
        handle = provider.handle_async_request

        async def look(request: httpx.Request) -> httpx.Response:
            for account in await store.records():  # noqa: B023
                stored.extend((account.opening, account.top_up))  # noqa: B023
            return await handle(request)  # noqa: B023

        provider.handle_async_request = look  # type: ignore[method-assign]
        await agent.client.get("/joke")
        provider.handle_async_request = handle  # type: ignore[method-assign]
        await store.close()
        assert all(deposit in stored for deposit in deposits(provider))


async def test_permit2_is_approved_once_by_an_account_that_may(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-90, OPEN-06: with ether for one approval; the deposits then cost a signature each."""
    provider.offer["credential_types"] = ("permit2",)
    agent = await open_agent(policy_of(expected_units=2))
    with pytest.raises(CannotFundError, match="approval of Permit2"):
        await agent.client.get("/joke")
    assert (await agent.payments.channels(), chain.approved) == ([], False)
    chain.means = {}
    await agent.client.get("/joke")
    chain.means = NO_ETHER
    for _ in range(4):
        await agent.client.get("/joke")
    assert [deposit.type for deposit in deposits(provider)] == ["permit2"] * 3
    assert len({deposit.authorization.nonce for deposit in deposits(provider)}) == 3
    assert chain.deposited == [20, 20, 20]


async def test_an_agent_that_can_do_nothing_the_server_takes_says_what_it_needs(
    agent: Agent, provider: Provider
) -> None:
    """CLIENT-02: and leaves nothing behind."""
    provider.offer = {}
    with pytest.raises(CannotFundError, match="hash: ether for gas"):
        await agent.client.get("/joke")
    assert await agent.payments.channels() == []
    assert not deposits(provider)


async def test_a_smaller_balance_makes_a_smaller_deposit(agent: Agent, chain: PaperChain) -> None:
    """F-92: the least of suggestion, expectation, cap, and what the account holds."""
    chain.means["balance"] = 70
    assert (await agent.client.get("/joke")).status_code == 200
    assert chain.deposited == [70]


async def test_a_deposit_too_small_for_the_servers_gas_is_enlarged_once(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """OPEN-12, F-92: to what the server names, under the same nonce, within the policy."""
    least = [600]

    def haggle(seen: Seen) -> httpx.Response | None:
        deposit = deposit_of(seen)
        if deposit is None or deposit.amount >= least[0]:
            return None
        return provider.refuse("deposit-too-small", depositMin=least[0])

    provider.override = haggle
    agent = await open_agent(policy_of(expected_units=50))
    assert (await agent.client.get("/joke")).status_code == 200
    assert [deposit.amount for deposit in deposits(provider)] == [500, 600]
    assert len({deposit.authorization.nonce for deposit in deposits(provider)}) == 1
    assert chain.deposited == [600]
    poor = await open_agent(policy_of({"deposit_max": 599}, expected_units=50), file="poor.db")
    with pytest.raises(BudgetExceededError, match="deposit_max to 600"):
        await poor.client.get("/joke")
    least[0] = 5_000
    greedy = await open_agent(policy_of(expected_units=50), file="greedy.db")
    provider.change_receipt = lambda fields: fields
    provider.override = lambda seen: (
        provider.refuse("deposit-too-small", depositMin=5_000) if deposit_of(seen) else None
    )
    with pytest.raises(PaymentRefusedError, match="deposit-too-small"):
        await greedy.client.get("/joke")
    assert chain.deposited == [600]


async def test_an_opening_that_landed_with_too_small_a_voucher_is_topped_up(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """VCH-07, F-97: the deposit is kept, and the channel goes on from there."""
    provider.offer["unit_type"], provider.reserve = "llm_token", 5
    agent = await open_agent(policy_of(expected_units=2))
    assert (await agent.client.post("/chat")).status_code == 200
    assert chain.deposited == [20, 30]
    (account,) = await agent.payments.channels()
    assert (account.state, account.deposit, account.signed) == ("open", 50, 50)


async def test_a_first_deposit_covers_the_first_of_concurrent_requests(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """F-41: the others wait for it, and top up once it is there."""
    agent = await open_agent(policy_of(expected_units=2))
    answers = await asyncio.gather(*(agent.client.get("/joke") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert sum(chain.deposited) >= 50
    assert [account.spent for account in await agent.payments.channels()] == [50]


# -- concurrent requests


async def test_where_others_wait_the_deposit_goes_ahead_by_itself(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-41, VCH-08: they need not wait for an answer that takes its time."""
    await asyncio.gather(*(agent.client.get("/joke") for _ in range(5)))
    by_head = [seen for seen in provider.paid if deposit_of(seen) is not None]
    assert [seen.method for seen in by_head] == ["HEAD"]
    assert chain.deposited == [1_000]
    (account,) = await agent.payments.channels()
    assert (account.state, account.signed) == ("open", 50)


async def test_a_refusal_without_words_is_asked_for_again_with_the_request(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-08: a HEAD's answer has no body; the request's says what is wrong, and is heard."""
    provider.override = lambda seen: (
        provider.refuse("deposit-too-small", depositMin=600)
        if (deposit := deposit_of(seen)) is not None and deposit.amount < 600
        else None
    )
    agent = await open_agent(policy_of(expected_units=50))
    answers = await asyncio.gather(*(agent.client.get("/joke") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert chain.deposited == [600]


async def test_a_server_that_pays_for_no_more_deposits_is_heard_not_waited_for(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-97: its own words reach the caller, and the deposit is shown again another time."""

    def enough(seen: Seen) -> httpx.Response | None:
        if deposit_of(seen) is None:
            return None
        refusal = provider.refuse("rate-limited", 429)
        refusal.headers["Retry-After"] = "600"
        return refusal

    provider.override = enough
    answers = await asyncio.gather(*(agent.client.get("/joke") for _ in range(3)))
    assert {answer.status_code for answer in answers} == {429}
    assert agent.waited == []
    provider.override = lambda _: None
    assert (await agent.client.get("/joke")).status_code == 200
    assert (len(set(deposits(provider))), chain.deposited) == (1, [1_000])


def no_gas(
    provider: Provider, kind: str, *, retry_after_s: int, times: int = 1_000
) -> Callable[[Seen], httpx.Response | None]:
    """Refuse signed deposits so often, as a server does that has paid enough gas."""
    left = [times]

    def refuse(seen: Seen) -> httpx.Response | None:
        if deposit_of(seen) is None or not left[0]:
            return None
        left[0] -= 1
        refusal = provider.refuse(kind, {"rate-limited": 429}.get(kind, 503))
        refusal.headers["Retry-After"] = str(retry_after_s)
        return refusal

    return refuse


@pytest.mark.parametrize("kind", ["sponsoring-paused", "rate-limited"])
@pytest.mark.parametrize("together", [1, 5])
async def test_where_no_gas_is_paid_an_account_with_ether_pays_its_own(
    agent: Agent, provider: Provider, chain: PaperChain, kind: str, together: int
) -> None:
    """F-98, OPEN-10: with the same salt, so that the signed deposit cannot be made besides."""
    chain.means = {"can_pay_gas": True}
    provider.override = no_gas(provider, kind, retry_after_s=600)
    answers = await asyncio.gather(*(agent.client.get("/joke") for _ in range(together)))
    assert {answer.status_code for answer in answers} == {200}
    assert chain.deposited == [1_000]
    (signed,) = set(deposits(provider))
    (account,) = await agent.payments.channels()
    assert (account.state, account.opening, account.salt) == ("open", None, signed.salt)
    with pytest.raises(TransactionRevertedError):
        chain.relay(account.key, signed)


async def test_who_was_faster_with_the_signed_deposit_has_opened_the_same_channel(
    agent: Agent, provider: Provider, chain: PaperChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMB-10: our own transaction is refused, and the channel is there."""
    chain.means = {"can_pay_gas": True}
    provider.override = no_gas(provider, "sponsoring-paused", retry_after_s=600)
    open_channel = chain.open_channel

    async def too_late(**terms: Any) -> TxHash:
        (account,) = await agent.payments.channels()
        chain.relay(account.key, deposits(provider)[0])
        return await open_channel(**terms)

    monkeypatch.setattr(chain, "open_channel", too_late)
    assert (await agent.client.get("/joke")).status_code == 200
    assert chain.deposited == [1_000]


async def test_an_account_without_ether_waits_for_gas_for_as_long_as_is_bearable(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-97, F-98: as often as the server asks, within bounds; then its words reach the caller."""
    provider.override = no_gas(provider, "sponsoring-paused", retry_after_s=9)
    assert (await agent.client.get("/joke")).status_code == 503
    assert (len(agent.waited), sum(agent.waited)) == (6, 54)
    provider.override = no_gas(provider, "sponsoring-paused", retry_after_s=9, times=2)
    assert (await agent.client.get("/joke")).status_code == 200
    assert (chain.deposited, len(set(deposits(provider)))) == ([1_000], 1)


async def test_a_signed_top_up_is_never_sent_besides(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-75: it has a nonce of its own, so that both could be made."""
    agent = await open_agent(policy_of(expected_units=2))
    await agent.client.get("/joke")
    await agent.client.get("/joke")
    chain.means = {"can_pay_gas": True}
    provider.override = no_gas(provider, "sponsoring-paused", retry_after_s=600)
    assert (await agent.client.get("/joke")).status_code == 503
    assert chain.deposited == [20]


@pytest.mark.parametrize("retry_after_s", [1, 1_000])
async def test_a_deposit_that_goes_ahead_is_waited_for_within_the_same_bounds(
    agent: Agent, provider: Provider, retry_after_s: int
) -> None:
    """F-75, F-97."""
    provider.override = lambda seen: (
        httpx.Response(503, headers={"Retry-After": str(retry_after_s)})
        if deposit_of(seen)
        else None
    )
    asked = [agent.client.get("/joke") for _ in range(3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {DepositPendingError}
    assert sum(agent.waited) <= 3 * DEPOSIT_WAIT_S_MAX
    assert len(set(deposits(provider))) == 1


# -- topping up


async def test_a_top_up_rides_on_the_voucher_that_needs_it(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """VCH-06: deposit and voucher in one round trip."""
    agent = await open_agent(policy_of(expected_units=2))
    await agent.client.get("/joke")
    await agent.client.get("/joke")
    provider.seen.clear()
    assert (await agent.client.get("/joke")).status_code == 200
    assert methods(provider) == ["GET"]
    payload: Any = provider.paid[0].credential and provider.paid[0].credential.payload
    assert isinstance(payload, VoucherPayload)
    assert isinstance(payload.deposit, Deposit)
    assert (payload.deposit.amount, payload.voucher.cumulative_amount) == (20, 30)
    assert chain.deposited == [20, 20]


async def test_a_stream_is_topped_up_before_it_stalls(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-07: beside the stream, so that the server never finds the deposit too small.

    The model is slower than a top-up: each token waits for what the agent does beside the stream.
    """
    agent = await open_agent(policy_of(expected_units=100))
    provider.tokens = 400
    provider.offer |= {"unit_type": "llm_token", "suggested_deposit": None}
    asked: list[int] = []

    def watch(fields: dict[str, Any]) -> dict[str, Any]:
        asked.append(fields["required_cumulative"] - fields["deposit"])
        return fields

    async def speak(seen: Seen, books: Books) -> AsyncIterator[bytes]:
        tasks = asyncio.all_tasks()
        async for event in provider.events(seen, books):
            yield event
            await until(lambda: asyncio.all_tasks() <= tasks)

    provider.change_need = watch
    provider.speak = speak
    async with agent.client.stream("POST", "/chat", json={"stream": True}) as response:
        assert (await response.aread()).count(b"content") == 400
    assert sum(chain.deposited) >= 4_000
    alone = [
        seen
        for seen in provider.paid
        if seen.credential and isinstance(seen.credential.payload, TopUpAuthorization)
    ]
    assert len(alone) >= 2
    assert max(asked, default=0) <= 0


async def test_a_short_answer_causes_no_top_up(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """A request that names its length is funded for that length and no more."""
    agent = await open_agent(policy_of(expected_units=100))
    provider.tokens = 40
    provider.offer |= {"unit_type": "llm_token", "suggested_deposit": None}
    body = {"stream": True, "max_tokens": 40}
    async with agent.client.stream("POST", "/chat", json=body) as response:
        await response.aread()
    assert chain.deposited == [1_000]


@pytest.mark.parametrize("purpose", ["open", "topUp"])
async def test_a_permit2_of_the_servers_own_cannot_make_a_deposit_forgotten(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, purpose: str
) -> None:
    """F-75, F-91: one that says of every nonce that it was used does not get a second deposit.

    A server that held back what was signed, and then named such a contract, had the agent sign
    again and again, each time for as much, and lose sight of what it had signed before.
    """
    chain.approved = True
    provider.offer["credential_types"] = ("permit2",)
    agent = await open_agent(policy_of(expected_units=2))
    for _ in range(2 if purpose == "topUp" else 0):
        await agent.client.get("/joke")
    provider.seen.clear()
    provider.override = lambda seen: (
        httpx.Response(503, headers={"Retry-After": "1"}) if deposit_of(seen) else None
    )
    with pytest.raises(DepositPendingError):
        await agent.client.get("/joke")
    (held,) = {deposit.authorization.nonce for deposit in deposits(provider)}
    (before,) = await agent.payments.channels()
    provider.offer["permit2"] = OTHER_PERMIT2
    restarted = await open_agent(policy_of(expected_units=2))
    with pytest.raises(DepositPendingError):
        await restarted.client.get("/joke")
    assert {deposit.authorization.nonce for deposit in deposits(provider)} == {held}
    (after,) = await restarted.payments.channels()
    assert (after.opening, after.top_up) == (before.opening, before.top_up)
    assert after.state == before.state


@pytest.mark.parametrize("purpose", ["open", "topUp"])
async def test_what_is_signed_again_is_held_against_the_policy_of_today(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, purpose: str
) -> None:
    """F-92: a deposit that was meant under a greater cap is not signed anew under a lower one."""
    agent = await open_agent(policy_of(expected_units=2))
    for _ in range(2 if purpose == "topUp" else 0):
        await agent.client.get("/joke")
    provider.seen.clear()
    provider.override = lambda seen: (
        httpx.Response(503, headers={"Retry-After": "1"}) if deposit_of(seen) else None
    )
    generous = await open_agent(policy_of(expected_units=100))
    with pytest.raises(DepositPendingError):
        await generous.client.get("/joke")
    signed = len(deposits(provider))
    assert deposits(provider)[-1].amount == 1_000
    careful = await open_agent(policy_of({"deposit_max": 500}))
    chain.now += VALID_S
    with pytest.raises(BudgetExceededError, match="deposit_max"):
        await careful.client.get("/joke")
    assert len(deposits(provider)) == signed
    chain.now += VALID_S  # it has expired: a smaller one is as good as the first
    with pytest.raises(BudgetExceededError if purpose == "open" else DepositPendingError):
        await careful.client.get("/joke")
    (account,) = await careful.payments.channels()
    assert purpose == "open" or account.deposit + deposits(provider)[-1].amount <= 500


async def test_a_top_up_that_was_signed_meanwhile_is_not_let_go_of(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-75: another call may change the store while the client asks the chain."""
    agent = await open_agent(policy_of(expected_units=2))
    for _ in range(4):
        await agent.client.get("/joke")  # the third is topped up for: that one is used
    (account,) = await agent.payments.channels()
    assert account.top_up is not None
    used = account.top_up.authorization
    assert isinstance(used, TransferAuthorization)
    fresh = replace(account.top_up, authorization=replace(used, nonce=b"\x01" * 32))
    find_use = chain.find_use

    async def overtaken(*, token: Address, authorization: bytes) -> int | None:
        await agent.store.update(account.key, lambda current: replace(current, top_up=fresh))
        return await find_use(token=token, authorization=authorization)

    chain.find_use = overtaken  # type: ignore[method-assign]
    provider.override = lambda seen: (
        httpx.Response(503, headers={"Retry-After": "1"}) if deposit_of(seen) else None
    )
    with pytest.raises(DepositPendingError):
        await agent.client.get("/joke")
    assert deposits(provider)[-1] == fresh
    assert (await agent.payments.channels())[0].top_up == fresh


# -- lost answers, restarts, slow chains


@pytest.mark.parametrize("lost", ["answers_lost", "requests_lost"])
async def test_a_lost_answer_is_asked_for_with_the_same_signature(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, lost: str
) -> None:
    """F-75: within a request, after it, and after a restart; one deposit in all."""
    weak = Weak(provider)
    agent = await open_agent(transport=weak)
    setattr(weak, lost, 2)
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    restarted = await open_agent(transport=weak)
    setattr(weak, lost, 1)
    assert (await restarted.client.get("/joke")).status_code == 200
    assert len(set(deposits(provider))) == 1
    assert chain.deposited == [1_000]
    (account,) = await restarted.payments.channels()
    assert account.state == "open"


@pytest.mark.parametrize("lost", ["answers_lost", "requests_lost"])
async def test_a_lost_top_up_is_not_made_twice(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, lost: str
) -> None:
    """F-75, CLIENT-05: the chain says whether it was made; if not, it is the same again."""
    policy, weak = policy_of(expected_units=2), Weak(provider)
    agent = await open_agent(policy, transport=weak)
    await agent.client.get("/joke")
    await agent.client.get("/joke")
    provider.seen.clear()
    setattr(weak, lost, 2)
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    restarted = await open_agent(policy, transport=weak)
    assert (await restarted.client.get("/joke")).status_code == 200
    assert len(set(deposits(provider))) == 1
    assert chain.deposited == [20, 20]
    (account,) = await restarted.payments.channels()
    assert account.deposit == 40


async def test_an_authorization_that_got_old_is_signed_again_with_its_nonce(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-75: of all its versions the token takes one."""
    weak = Weak(provider)
    agent = await open_agent(policy_of(expected_units=2), transport=weak)
    weak.requests_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    old = account.opening
    chain.now += VALID_S
    for _ in range(2):
        await agent.client.get("/joke")
    (opening,) = deposits(provider)
    assert old is not None
    assert opening.authorization != old.authorization
    assert opening.authorization.nonce == old.authorization.nonce
    weak.requests_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    old = account.top_up
    chain.now += VALID_S
    assert (await agent.client.get("/joke")).status_code == 200
    top_up = deposits(provider)[-1]
    assert old is not None
    assert top_up.authorization != old.authorization
    assert top_up.authorization.nonce == old.authorization.nonce
    assert chain.deposited == [20, 20]


async def test_an_opening_whose_payer_cancelled_it_gives_way_to_another(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-97: a nonce that was used for nothing never opens a channel, so it is not waited for."""
    weak = Weak(provider)
    agent = await open_agent(transport=weak)
    weak.requests_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    (cancelled,) = await agent.payments.channels()
    assert cancelled.opening is not None
    chain.used.add(cancelled.opening.authorization.nonce)
    assert (await agent.client.get("/joke")).status_code == 200
    first, second = await agent.payments.channels()
    assert (first.state, first.deposit, second.state) == ("closed", 0, "open")
    assert chain.deposited == [1_000]


async def test_an_opening_that_the_server_closed_unclaimed_gives_way_to_another(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-97: it went away before the answer came, and came back after its deposit was refunded."""
    weak = Weak(provider)
    agent = await open_agent(transport=weak)
    weak.answers_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    (channel_id,) = chain.facts
    chain.change(channel_id, is_finalized=True, settled=10)
    restarted = await open_agent(transport=weak)
    assert (await restarted.client.get("/joke")).status_code == 200
    first, second = await restarted.payments.channels()
    assert (first.state, first.refund, second.state) == ("closed", 990, "open")
    assert chain.deposited == [1_000, 1_000]


async def test_a_server_that_forgets_the_channel_is_shown_the_same_opening(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-97, OPEN-10."""
    provider.offer["credential_types"] = ("authorization",)
    await agent.client.get("/joke")
    provider.books.clear()
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(set(deposits(provider))) == 1
    assert len(deposits(provider)) == 2
    assert chain.deposited == [1_000]


async def test_a_deposit_that_is_being_mined_is_waited_for(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-75: 503 with Retry-After; the same credential each time."""
    busy = iter([2, 2, 7])

    def mine(seen: Seen) -> httpx.Response | None:
        if deposit_of(seen) is None or (wait_s := next(busy, None)) is None:
            return None
        return httpx.Response(503, headers={"Retry-After": str(wait_s)})

    provider.override = mine
    assert (await agent.client.get("/joke")).status_code == 200
    assert agent.waited == [2, 2, 7]
    assert len(set(deposits(provider))) == 1
    assert chain.deposited == [1_000]


@pytest.mark.parametrize("retry_after_s", [0, 1, 1_000])
async def test_waiting_for_a_deposit_has_an_end_and_nothing_is_lost(
    agent: Agent, provider: Provider, chain: PaperChain, retry_after_s: int
) -> None:
    """F-75, F-97: bounded in time and in number; the next request goes on with the same one."""
    headers = {"Retry-After": str(retry_after_s)}
    provider.override = lambda seen: (
        httpx.Response(503, headers=headers) if deposit_of(seen) else None
    )
    with pytest.raises(DepositPendingError, match="repeat the request later to resume it"):
        await agent.client.get("/joke")
    assert sum(agent.waited) <= DEPOSIT_WAIT_S_MAX
    assert len(agent.waited) <= 120
    provider.override = lambda _: None
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(set(deposits(provider))) == 1
    assert chain.deposited == [1_000]


async def test_a_signed_top_up_of_a_kind_that_is_not_taken_any_more_is_not_doubled(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-75: while it may still be made, no other one is."""
    weak = Weak(provider)
    policy = policy_of(expected_units=2)
    agent = await open_agent(policy, transport=weak)
    await agent.client.get("/joke")
    await agent.client.get("/joke")
    weak.requests_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    provider.offer = {}
    chain.means = {"now": int(chain.now) + 10 * VALID_S}  # by a clock that runs ahead (F-111)
    restarted = await open_agent(policy, transport=weak)
    with pytest.raises(ChannelUnusableError, match="may still be made"):
        await restarted.client.get("/joke")
    assert chain.deposited == [20]


async def test_a_deposit_is_not_shown_under_an_offer_that_does_not_take_it(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """CLIENT-02, F-75: nor doubled, until it has expired."""
    policy = policy_of(expected_units=2)
    agent = await open_agent(policy)
    await agent.client.get("/joke")
    await agent.client.get("/joke")

    def change(seen: Seen) -> httpx.Response | None:
        if deposit_of(seen) is None:
            return None
        provider.offer = {}
        return provider.refuse("session/challenge-not-found")

    provider.override = change
    chain.means = {}
    with pytest.raises(ChannelUnusableError, match="may still be made"):
        await agent.client.get("/joke")
    assert chain.deposited == [20]
    provider.override = lambda _: None
    chain.now += 2 * VALID_S
    restarted = await open_agent(policy)
    assert (await restarted.client.get("/joke")).status_code == 200
    assert chain.deposited == [20, 20]
    assert len(deposits(provider)) == 2  # the opening, and the top-up that was refused


async def test_a_channel_with_a_lost_opening_is_closed_as_any_other(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """CLOSE-06, OPEN-10: its opening is shown again first, for what the server delivered."""
    weak = Weak(provider)
    agent = await open_agent(transport=weak)
    weak.answers_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    (closed,) = await agent.payments.close()
    assert (closed.state, closed.settled, closed.refund) == ("closed", 10, 990)
    assert len(set(deposits(provider))) == 1


async def test_a_channel_that_was_never_deposited_for_ends_when_its_signature_does(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """F-75: not before, for a holder of the signature could still use it."""
    weak = Weak(provider)
    agent = await open_agent(transport=weak)
    weak.requests_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await agent.client.get("/joke")
    chain.means["now"] = int(chain.now) + 10 * VALID_S  # by a clock that runs ahead (F-111)
    with pytest.raises(ChannelUnusableError, match="may still be made"):
        await agent.payments.close()
    chain.now += 2 * VALID_S
    (closed,) = await agent.payments.close()
    assert (closed.state, closed.deposit, closed.refund) == ("closed", 0, 0)
    assert (chain.deposited, await agent.payments.close()) == ([], [])


async def test_a_channel_that_a_server_only_claims_to_have_opened_ends_likewise(
    agent: Agent, provider: Provider, chain: PaperChain
) -> None:
    """F-75, F-97: it took the signature, served, and never made the deposit."""
    provider.override = lambda seen: httpx.Response(200) if seen.credential else None
    assert (await agent.client.get("/joke")).status_code == 200
    (account,) = await agent.payments.channels()
    assert account.state == "open"
    with pytest.raises(ChannelUnusableError, match="may still be made"):
        await agent.payments.close()
    chain.now += 2 * VALID_S
    (closed,) = await agent.payments.close()
    assert (closed.state, closed.deposit) == ("closed", 0)
    assert chain.deposited == []


# -- a key for each channel


async def test_each_channel_has_a_voucher_key_that_moves_no_deposit(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """CLIENT-11, CLIENT-03: and it is there again after a restart (F-22)."""
    keys = ChannelKeys(b"\x05" * 32)
    agent = await open_agent(policy_of(parallel_streams_max=2), keys=keys)
    await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert account.terms.authorized_signer == keys.signer(account.salt).address
    restarted = await open_agent(keys=ChannelKeys(b"\x05" * 32))
    assert (await restarted.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 1
    (closed,) = await restarted.payments.close()
    assert (closed.state, closed.settled) == ("closed", 20)
    await restarted.client.get("/joke")
    _, second = await restarted.payments.channels()
    assert second.terms.authorized_signer != account.terms.authorized_signer


async def test_a_channel_of_another_key_is_not_used(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """F-22: the client has another key now, and could not sign for the channel."""
    first = await open_agent(keys=ChannelKeys(b"\x05" * 32))
    await first.client.get("/joke")
    second = await open_agent(keys=ChannelKeys(b"\x06" * 32))
    assert (await second.client.get("/joke")).status_code == 200
    assert len(chain.deposited) == 2


async def test_the_opening_matches_what_the_server_received(
    agent: Agent, provider: Provider
) -> None:
    """OPEN-08, CRED-02: with a first voucher, and the payer as the source."""
    await agent.client.get("/joke")
    (seen,) = provider.paid
    assert seen.credential is not None
    payload = seen.credential.payload
    assert isinstance(payload, OpenAuthorization)
    assert payload.voucher.cumulative_amount == 10
    assert seen.credential.source == (31337, payload.authorization.funder)


async def test_what_a_lost_opening_may_have_bought_is_granted_after_a_restart(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """CLIENT-05: its first voucher rode on it, and the stream went into the dead connection."""
    provider.tokens, provider.offer["unit_type"] = 5, "llm_token"
    policy, weak = policy_of(expected_units=100), Weak(provider)
    agent = await open_agent(policy, transport=weak)
    weak.answers_lost = 2
    with pytest.raises(PaymentOutcomeUnknownError):
        await read_stream(agent)
    (account,) = await agent.payments.channels()
    assert account.state == "opening"
    assert account.signed == account.counted == account.lost > 10  # more than its first cost
    await agent.store.update(account.key, lambda current: replace(current, lost=0))  # or killed
    (books,) = provider.books.values()
    books.spent = books.accepted = account.signed
    restarted = await open_agent(policy, transport=provider)
    assert (await read_stream(restarted)).count("content") == 5
    (account,) = await restarted.payments.channels()
    assert account.signed > account.lost > 0
