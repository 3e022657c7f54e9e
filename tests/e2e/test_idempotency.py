"""A retry with its key is answered and never charged again, wherever and whenever it comes.

Two gateways on one PostgreSQL, each with connections, memory and a socket of its own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.state.channel_state import ChannelState
from mpp_session.gateway.app import Gateway
from mpp_session.gateway.upstream import Upstream
from mpp_session.testing.chain import TestChain
from mpp_session.wiring import Parts, build_parts
from settlement.dev.devnet import Devnet
from tests.e2e.customers import Customer
from tests.mpp_session.gateway.conftest import PRICE, build_config
from tests.mpp_session.model_server import ModelServer, model_server
from tests.mpp_session.serving import serve
from tests.waiting import PATIENCE_S, until

KEY = {"idempotency-key": "one and the same"}
COST = 3 * PRICE
"""Of the model server's answer: three words."""


class Shop:
    """Gateways on one database, a customer, and the model behind them."""

    def __init__(
        self, devnet: TestChain, model: ModelServer, customer: Customer, folder: Path, url: str
    ) -> None:
        self.model = model
        self.customer = customer
        self._config = build_config(
            devnet, model.url, folder, ledger__url=url, payment__vouchers_per_second=1000
        )
        self._amount = 0

    @contextlib.asynccontextmanager
    async def gateway(self) -> AsyncIterator[tuple[str, Parts]]:
        async with (
            build_parts(self._config) as parts,
            Upstream.connect(self._config.upstream) as upstream,
        ):
            app = Gateway(self._config, parts.engine, upstream, stop=lambda: None)
            async with serve(app) as url:
                yield url, parts

    async def buy(self, url: str, key: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """Buy with a new voucher, which covers one answer more."""
        self._amount += 8 * PRICE
        return await self.customer.buy(url, self._amount, headers=key or KEY, **body)

    async def books(self, parts: Parts) -> ChannelState:
        return (await parts.ledger.apply(self.customer.payer.key, [])).state


@pytest.fixture
async def shop(
    devnet: TestChain, chain: Devnet, tmp_path: Path, postgres_url: str
) -> AsyncIterator[Shop]:
    async with (
        model_server() as model,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        yield Shop(devnet, model, Customer(chain, client), tmp_path, postgres_url)


async def test_a_retry_anywhere_gets_the_answer_and_is_not_charged(shop: Shop) -> None:
    """IDEM-01, IDEM-02, IDEM-03, F-26, F-27, F-28: immediately, under a new challenge, at another
    worker, and after a restart; only another body is refused."""
    customer = shop.customer
    async with shop.gateway() as (one, _):
        async with shop.gateway() as (other, parts):
            await customer.open(one, 10**6)
            first = await shop.buy(one)
            assert (first.status_code, len(shop.model.seen)) == (200, 1)
            again = [await shop.buy(one), await shop.buy(other)]
            await customer.challenge(other)
            again += [await shop.buy(one), await shop.buy(other)]
            for url in (one, other):
                conflict = await shop.buy(url, temperature=1)
                assert conflict.status_code == 422
                assert conflict.json()["type"].endswith("idempotency-conflict")
            assert (await shop.books(parts)).spent == COST
        async with shop.gateway() as (restarted, parts):
            again.append(await shop.buy(restarted))
            for answer in again:
                assert (answer.status_code, answer.content) == (200, first.content)
                assert answer.headers["payment-receipt"]
            assert len(shop.model.seen) == 1
            assert (await shop.books(parts)).spent == COST
            assert (await shop.buy(restarted, {"idempotency-key": "another"})).status_code == 200
            assert (await shop.books(parts)).spent == 2 * COST


async def test_a_key_that_is_being_served_is_refused_at_every_worker(shop: Shop) -> None:
    """IDEM-03, F-24: 409 with Retry-After, and nothing held for it."""
    shop.model.may_answer.clear()
    async with shop.gateway() as (one, _), shop.gateway() as (other, parts):
        await shop.customer.open(one, 10**6)
        running = asyncio.create_task(shop.buy(one))
        await until(lambda: bool(shop.model.seen))
        held = (await shop.books(parts)).reserved
        for url in (one, other):
            refused = await shop.buy(url)
            assert refused.status_code == 409
            assert refused.json()["type"].endswith("request-in-flight")
            assert int(refused.headers["retry-after"]) >= 1
        assert (await shop.books(parts)).reserved == held > 0
        shop.model.may_answer.set()
        answer = await running
        assert (await shop.buy(other)).content == answer.content
        assert (await shop.books(parts)).spent == COST
        assert len(shop.model.seen) == 1


async def test_a_stream_is_not_repeated_and_not_charged_again(shop: Shop) -> None:
    """IDEM-05: 409 at every worker, which says that it was paid for."""
    async with shop.gateway() as (one, _), shop.gateway() as (other, parts):
        await shop.customer.open(one, 10**6)
        first = await shop.buy(one, stream=True)
        assert first.text.count('"content"') == 3
        for url in (one, other):
            refused = await shop.buy(url, stream=True)
            assert refused.status_code == 409
            assert refused.json()["type"].endswith("outcome-unknown")
        assert (await shop.books(parts)).spent == COST
        assert len(shop.model.seen) == 1
