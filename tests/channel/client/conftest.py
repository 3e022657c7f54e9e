"""An agent with a payment store of its own, and a provider on a paper chain."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.client.funding.keys import OneKey, VoucherKeys
from channel.client.funding.signer import LocalSigner, Signer
from channel.client.http.transport import PayingTransport
from channel.client.payment.payer import Payer
from channel.client.payments import Payments
from channel.client.policy.policy import Policy, TokenLimits
from channel.client.store.sqlite import PaymentStore
from channel.errors import StoreError
from tests.channel.client.provider import (
    BASE,
    CHAIN_ID,
    NOW,
    PAYER_KEY,
    TOKEN,
    PaperChain,
    Provider,
)


def limits_of(**changes: Any) -> TokenLimits:
    values: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "token": TOKEN,
        "unit_price_max": {"request": 50, "llm_token": 50},
        "deposit_max": 5_000,
        "budget": 20_000,
    }
    return TokenLimits(**(values | changes))


def policy_of(limits: dict[str, Any] | None = None, **changes: Any) -> Policy:
    return Policy(limits=(limits_of(**(limits or {})),), **changes)


class Agent:
    """A payer, its client and its payments; `waited` is every pause it took."""

    def __init__(self, payer: Payer, client: httpx.AsyncClient, payments: Payments) -> None:
        self.payer = payer
        self.client = client
        self.payments = payments
        self.waited: list[float] = []

    @property
    def store(self) -> PaymentStore:
        return self.payer.store


OpenAgent = Callable[..., Any]


@pytest.fixture
def chain() -> PaperChain:
    return PaperChain()


@pytest.fixture
def provider(chain: PaperChain) -> Provider:
    return Provider(chain)


@pytest.fixture
async def open_agent(
    tmp_path: Path, chain: PaperChain, provider: Provider
) -> AsyncIterator[OpenAgent]:
    """Start an agent; a second one with the same file is the first one restarted.

    With `beside=True` it is another one that shares the file.
    """
    stores: dict[str, PaymentStore] = {}
    async with AsyncExitStack() as stack:

        async def start(
            policy: Policy | None = None,
            *,
            transport: httpx.AsyncBaseTransport = provider,
            signer: Signer | None = None,
            keys: VoucherKeys | None = None,
            file: str = "store.db",
            beside: bool = False,
            view: Callable[[PaymentStore], PaymentStore] = lambda store: store,
            now: Callable[[], float] = lambda: NOW,
            **options: Any,
        ) -> Agent:
            if file in stores and not beside:
                await stores[file].close()
            store = stores[file] = await PaymentStore.open(tmp_path / file)
            stack.push_async_callback(close, store)
            waited: list[float] = []

            async def sleep(seconds: float) -> None:
                waited.append(seconds)

            payer = Payer(
                policy=policy or policy_of(),
                keys=keys or OneKey(signer or LocalSigner(PAYER_KEY)),
                store=view(store),
                chains={CHAIN_ID: chain},
                now=now,
                sleep=sleep,
            )
            client = httpx.AsyncClient(
                transport=PayingTransport(payer, transport), base_url=BASE, **options
            )
            await stack.enter_async_context(client)
            agent = Agent(payer, client, Payments(payer, transport))
            agent.waited = waited
            return agent

        yield start


async def close(store: PaymentStore) -> None:
    with suppress(StoreError):  # it was closed before
        await store.close()


@pytest.fixture
async def agent(open_agent: OpenAgent) -> Agent:
    started: Agent = await open_agent()
    return started
