"""O-14: for any order of the steps of a channel's requests, an honest server is believed.

Eight callers share a paying client, three in ten give up, answers get lost and streams break. One
seed is one order of every step. Nothing is waited for but on paper.
"""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.client.funding.keys import OneKey
from channel.client.funding.signer import LocalSigner
from channel.client.http.transport import PayingTransport
from channel.client.payment.payer import Payer
from channel.client.payments import Payments
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    AgentError,
    InsufficientBalanceError,
    PaymentOutcomeUnknownError,
    ProblemError,
    UnsettledClaimError,
)
from channel.state.channel_state import ChannelState
from channel.state.commands import Command, Repair
from channel.state.transitions import required_cumulative
from channel.types import ChannelId
from tests.channel.client.conftest import policy_of
from tests.channel.client.interleaving import DrawnLoop, run_drawn
from tests.channel.client.paper_shop import JOKE_PRICE, NOTICE_S, TOKEN_PRICE, PaperShop
from tests.channel.client.provider import BASE, CHAIN_ID, NOW, PAYER_KEY, PaperChain

TOKENS = 150
CALLERS = 8
SEEDS = 20
THIEVES = 10
LOSSES = 5
LOST_UNITS = 40
STEP_UNITS = 64
OpenShop = Callable[[DrawnLoop, PaperChain, float], PaperShop]
LIMITS = {
    "unit_price_max": {"request": 100, "llm_chunk": 10},
    "deposit_max": 500_000,
    "budget": 1_000_000,
}


async def ask(
    client: httpx.AsyncClient, loop: DrawnLoop, *, is_hasty: bool, is_robbed: bool
) -> None:
    chance = loop.chance
    borne = (AgentError, AssertionError) if is_robbed else ()
    patience_s = chance.choice([0.005, 0.02, 0.1, 0.3]) if is_hasty else 600
    with contextlib.suppress(
        TimeoutError, httpx.TransportError, PaymentOutcomeUnknownError, *borne
    ):
        async with asyncio.timeout(patience_s):
            if chance.random() < 0.4:
                async with client.stream("POST", "/chat", json={"stream": True}) as response:
                    assert response.status_code == 200, response
                    if chance.random() < 0.1:
                        async for _line in response.aiter_lines():
                            return  # leaves after the first one
                    text = (await response.aread()).decode()
                    assert text.count('"content"') == TOKENS
            else:
                answer = await client.get("/joke")
                assert answer.status_code == 200, answer.text


def honest(loop: DrawnLoop, chain: PaperChain, loss: float) -> PaperShop:
    return PaperShop(loop, chain, tokens=TOKENS, loss=loss)


async def play(
    loop: DrawnLoop,
    path: Path,
    *,
    loss: float,
    streams_max: int,
    lost_max: int = 5_000,
    open_shop: OpenShop = honest,
) -> None:
    chain = PaperChain()
    shop = open_shop(loop, chain, loss)
    store = await PaymentStore.open(path)
    await store._run(lambda: store._connection.execute("PRAGMA synchronous = OFF"))  # noqa: SLF001
    payer = Payer(
        policy=policy_of(
            LIMITS,
            expected_units=30,
            voucher_step_max=STEP_UNITS,
            lost_units_max=lost_max,
            parallel_streams_max=streams_max,
            channels_per_origin_max=streams_max,
        ),
        keys=OneKey(LocalSigner(PAYER_KEY)),
        store=store,
        chains={CHAIN_ID: chain},
        now=lambda: NOW + loop.time(),
    )
    async with httpx.AsyncClient(
        transport=PayingTransport(payer, shop), base_url=BASE, timeout=600
    ) as client:
        for _ in range(3):
            await asyncio.gather(
                *(
                    ask(
                        client,
                        loop,
                        is_hasty=loop.chance.random() < 0.3,
                        is_robbed=isinstance(shop, Thief),
                    )
                    for _ in range(CALLERS)
                )
            )
        await asyncio.sleep(2 * NOTICE_S)
        for account in await Payments(payer, shop).close():
            assert account.settled == account.spent == shop.states[account.key.channel_id].spent
    await store.close()


def run(tmp_path: Path, seed: int, **changes: Any) -> None:
    choices = {"loss": 0.1 if seed % 2 else 0.0, "streams_max": 1 + seed % 3 // 2} | changes
    run_drawn(seed, lambda loop: play(loop, tmp_path / f"{seed}.db", **choices))


@pytest.mark.parametrize("start", range(0, SEEDS, 10))
def test_an_honest_server_is_never_called_an_overclaimer(tmp_path: Path, start: int) -> None:
    """O-14, F-41, F-94, CLIENT-06: and every caller that waits is served."""
    for seed in range(start, start + 10):
        run(tmp_path, seed)


def test_losses_beyond_the_policy_are_refused_without_calling_it_a_lie(tmp_path: Path) -> None:
    """O-14: what is beyond `lost_units_max` is refused, and not called an overclaim."""
    refused = 0
    for seed in range(1, 2 * LOSSES, 2):
        with contextlib.suppress(UnsettledClaimError):
            run(tmp_path, seed, loss=0.5, lost_max=8)
            refused -= 1
        refused += 1
    assert refused


class Thief(PaperShop):
    """Asks for more than it should get, most of all for a little more."""

    greed = 0.05

    def claim(self, state: ChannelState) -> int:
        chance = self.loop.chance
        more = chance.choice((0, 10, 100, 300, 640, 650, 700, 10_000))
        return required_cumulative(state, TOKEN_PRICE, 0) + more

    def refuse(
        self, request: httpx.Request, kind: str, status: int, error: ProblemError | None = None
    ) -> httpx.Response:
        if isinstance(error, InsufficientBalanceError):
            more = self.loop.chance.choice((0, 10, 100, 110, 640, 740, 750))
            error = InsufficientBalanceError(
                required_cumulative=error.required_cumulative + more,
                accepted=error.accepted,
                spent=error.spent,
                deposit=error.deposit,
            )
        return super().refuse(request, kind, status, error)

    def apply(self, channel_id: ChannelId, *commands: Command) -> ChannelState:
        """Keep no promise: now and then all that is there is spent on nothing."""
        state = super().apply(channel_id, *commands)
        if self.loop.chance.random() < self.greed and not state.reservations:
            return super().apply(channel_id, Repair(state.accepted, state.accepted))
        return state


def thieving(shops: list[PaperShop], loop: DrawnLoop, chain: PaperChain, loss: float) -> PaperShop:
    shops.append(Thief(loop, chain, tokens=TOKENS, loss=loss))
    return shops[-1]


@pytest.mark.parametrize("start", range(0, THIEVES, 10))
def test_no_thief_gets_more_in_any_order(tmp_path: Path, start: int) -> None:
    """O-14, O-95, F-94: at most what is counted, in flight, lost and one step."""
    for seed in range(start, start + 10):
        shops: list[PaperShop] = []
        with contextlib.suppress(AgentError):
            run(tmp_path, seed, lost_max=LOST_UNITS, open_shop=partial(thieving, shops))
        (shop,) = shops
        assert shop.signed
        for channel_id, signed in shop.signed.items():
            delivered = shop.delivered.get(channel_id, 0)
            in_flight = CALLERS * JOKE_PRICE
            step = STEP_UNITS * TOKEN_PRICE
            assert signed <= delivered + in_flight + LOST_UNITS * TOKEN_PRICE + step
