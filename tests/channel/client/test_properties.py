"""For any server, an agent signs no more than its count, one step and its policy allow.

The server's behaviour is drawn: each answer is honest or one of many lies, in any order, over
plain requests and streams. The test checks the payment store and every voucher that ever left.
"""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channel.client.funding.keys import OneKey
from channel.client.funding.signer import LocalSigner
from channel.client.http.transport import PayingTransport
from channel.client.payment.payer import Payer
from channel.client.policy.policy import Policy
from channel.client.store.sqlite import PaymentStore
from channel.errors import MppSessionError
from channel.types import ChannelId
from channel.wire.sse import NeedVoucher, format_event, format_need_voucher
from tests.channel.client.conftest import policy_of
from tests.channel.client.provider import (
    BASE,
    CHAIN_ID,
    NOW,
    PAYER_KEY,
    WITH_VOUCHER,
    Books,
    PaperChain,
    Provider,
    Seen,
)

PRICE = 10
STEP = 4
LOST = 6
BUDGETS = (120, 100_000)
DEPOSIT_MAX = 1_000
CHANNELS = 2

AMOUNTS = st.integers(0, 60).map(lambda units: units * PRICE) | st.integers(0, 2**128 - 1)

LIES = st.one_of(
    st.sampled_from(
        [
            "payment-required",
            "session/challenge-not-found",
            "session/invalid-signature",
            "session/amount-exceeds-deposit",
            "verification-failed",
        ]
    ).map(lambda kind: ("refuse", 402, kind, 0)),
    AMOUNTS.map(lambda amount: ("refuse", 402, "session/insufficient-balance", amount)),
    AMOUNTS.map(lambda amount: ("refuse", 402, "session/delta-too-small", amount)),
    st.sampled_from(["session/channel-finalized", "session/channel-not-found"]).map(
        lambda kind: ("refuse", 410, kind, 0)
    ),
    st.just(("refuse", 503, "internal-payment-error", 0)),
    AMOUNTS.map(lambda amount: ("receipt", 200, "spent", amount)),
    AMOUNTS.map(lambda amount: ("receipt", 200, "accepted", amount)),
    st.just(("drop", 0, "", 0)),
    st.just(("empty", 200, "", 0)),
)
HONEST = ("honest", 0, "", 0)
GREEDY = ("greedy", 200, "", 0)
GONE = ("refuse", 410, "session/channel-finalized", 0)
ANSWERS = st.integers(0, 9).flatmap(
    lambda draw: st.just((*[HONEST] * 4, *[GREEDY] * 2, GONE)[draw]) if draw < 7 else LIES
)
"""Honest or plausible more often than not: only a server that is paid gets to where lies cost."""
EVENTS = st.lists(
    st.integers(0, 9).flatmap(lambda draw: st.none() if draw < 7 else AMOUNTS),
    min_size=2,
    max_size=12,
)
PLANS = st.lists(st.tuples(st.booleans(), ANSWERS, ANSWERS, EVENTS), min_size=8, max_size=16)


class Hostile(Provider):
    """Plays a plan: for each of the agent's requests, what happens to it and to its HEADs."""

    plan: tuple[Any, Any, list[Any]] = (HONEST, HONEST, [])
    is_mended = True
    delivered: dict[ChannelId, int]
    """Units that were handed out, per channel: the test's own count."""

    def deliver(self, seen: Seen) -> None:
        assert seen.credential is not None
        channel_id = seen.credential.payload.channel_id
        self.delivered[channel_id] = self.delivered.get(channel_id, 0) + 1

    def sell(self, seen: Seen, books: Books) -> httpx.Response:
        response = super().sell(seen, books)
        if response.status_code == 200 and not self.tokens:
            self.deliver(seen)
        return response

    def behave(self, seen: Seen) -> httpx.Response | None:
        if seen.credential is None:
            return None
        if not self.is_mended:
            what, status, kind, amount = self.plan[1 if seen.method == "HEAD" else 0]
            if seen.method != "HEAD":
                self.is_mended = bool(len(self.seen) % 3)
            if what == "drop":
                raise httpx.ReadError("dropped")
            if what == "empty":
                if seen.method != "HEAD":
                    self.deliver(seen)
                return httpx.Response(200)
            if what == "refuse":
                return self.refuse(
                    kind,
                    status,
                    requiredCumulative=amount,
                    acceptedCumulative=amount,
                    minVoucherDelta=PRICE,
                )
            if what == "greedy":
                self.change_receipt = lambda fields: fields | {"spent": fields["accepted"]}
            if what == "receipt":
                self.change_receipt = lambda fields: fields | {kind: amount}
        return None

    async def events(self, seen: Seen, books: Books) -> AsyncIterator[bytes]:
        """Deliver and ask as planned, independently of what was paid."""
        assert seen.credential is not None
        channel_id = ChannelId(seen.credential.payload.channel_id)
        for event in self.plan[2]:
            if event is None:
                books.spent += PRICE
                self.deliver(seen)
                yield format_event("unit")
            else:
                yield format_need_voucher(
                    NeedVoucher(
                        channel_id=channel_id,
                        required_cumulative=event,
                        accepted=books.accepted,
                        deposit=books.deposit,
                    )
                )


def signed_by(provider: Provider) -> dict[ChannelId, int]:
    """Return the greatest amount that ever left, per channel."""
    greatest: dict[ChannelId, int] = {}
    for seen in provider.seen:
        payload = seen.credential.payload if seen.credential else None
        if isinstance(payload, WITH_VOUCHER):
            voucher = payload.voucher
            greatest[voucher.channel_id] = max(
                greatest.get(voucher.channel_id, 0), voucher.cumulative_amount
            )
    return greatest


def hostile_policy(budget: int) -> Policy:
    return policy_of(
        {"budget": budget, "deposit_max": DEPOSIT_MAX},
        voucher_step=STEP,
        lost_units_max=LOST,
        expected_units=10,
        request_units_max=1,
        channels_per_origin_max=CHANNELS,
    )


async def no_sleep(_seconds: float) -> None:
    return None


async def check_store(
    store: PaymentStore, provider: Hostile, chain: PaperChain, budget: int
) -> None:
    accounts = await store.records()
    left = signed_by(provider)
    for account in accounts:
        assert left.get(account.key.channel_id, 0) <= account.signed
        delivered = provider.delivered.get(account.key.channel_id, 0) * PRICE
        assert account.signed <= delivered + LOST * PRICE + (1 + STEP) * PRICE
        assert account.received <= delivered
        pending = 0 if account.top_up is None else account.top_up.amount
        assert account.signed <= account.deposit + pending
        assert account.deposit <= DEPOSIT_MAX
        assert account.lost <= LOST * PRICE
        assert account.spent <= account.accepted <= account.signed
    assert sum(account.signed for account in accounts) <= budget
    assert sum(account.state != "closed" for account in accounts) <= CHANNELS
    assert all(fact.deposit <= DEPOSIT_MAX for fact in chain.facts.values())
    assert sum(chain.deposited) <= CHANNELS * DEPOSIT_MAX


SPONSORED: dict[str, Any] = {"fee_payer": True, "credential_types": ("authorization", "hash")}


async def play(
    plans: list[Any], budget: int, *, is_sponsored: bool = False, keeps_deposits: bool = False
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = await PaymentStore.open(Path(folder) / "store.db")
        chain = PaperChain()
        provider = Hostile(chain)
        provider.delivered = {}
        chain.means = {"can_pay_gas": not is_sponsored}

        def behave(seen: Seen) -> httpx.Response | None:
            if keeps_deposits and seen.credential is not None:
                provider.fund(seen)  # takes the money before any answer
            return provider.behave(seen)

        provider.override = behave
        payer = Payer(
            policy=hostile_policy(budget),
            keys=OneKey(LocalSigner(PAYER_KEY)),
            store=store,
            chains={CHAIN_ID: chain},
            now=lambda: NOW,
            sleep=no_sleep,
        )
        transport = PayingTransport(payer, provider)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            for is_stream, content, head, events in plans:
                provider.tokens = len(events) if is_stream else 0
                provider.offer = {"unit_type": "llm_token" if is_stream else "request"}
                provider.offer |= SPONSORED if is_sponsored else {}
                provider.change_receipt = lambda fields: fields
                provider.plan = (content, head, events)
                provider.is_mended = False
                with contextlib.suppress(MppSessionError, httpx.TransportError):
                    await client.post("/x", json={"stream": is_stream})
                await check_store(store, provider, chain, budget)
        await store.close()


@pytest.mark.timeout(600)  # thousands of writes to a real disk
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(plans=PLANS, budget=st.sampled_from(BUDGETS))
async def test_no_server_gets_more_than_count_step_and_policy(
    plans: list[Any], budget: int
) -> None:
    """CLIENT-06, F-92, F-94, F-95, F-96."""
    await play(plans, budget)


@pytest.mark.timeout(600)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(plans=PLANS, budget=st.sampled_from(BUDGETS), keeps_deposits=st.booleans())
async def test_no_server_gets_more_by_paying_the_gas(
    plans: list[Any], budget: int, *, keeps_deposits: bool
) -> None:
    """CLIENT-06, F-75, F-92: nor a second deposit, by refusing, dropping or denying one."""
    await play(plans, budget, is_sponsored=True, keeps_deposits=keeps_deposits)
