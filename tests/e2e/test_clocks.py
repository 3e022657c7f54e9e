"""O-90: gateways as processes whose clock is wrong from the start, or is set while they run."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.e2e.customers import Customer
from tests.e2e.gateways import GatewayProcess, free_port, gateway_variables
from tests.mpp_session.gateway.conftest import PRICE
from tests.mpp_session.model_server import ModelServer, model_server
from tests.waiting import PATIENCE_S

DAY_S = 24 * 3600
SHIM: Final = """
import os, sys, time
real = time.time
time.time = lambda: real() + float(open(os.environ["CLOCK_SET_BY"]).read())
sys.argv[0] = "mpp-session"
from mpp_session.cli.app import main
main()
"""
"""The program, with a clock that is set by what a file says."""


class Shop:
    """A gateway behind a clock that is set by hand, and a customer."""

    def __init__(self, devnet: TestChain, model: ModelServer, customer: Customer, at: Path) -> None:
        self.model, self.customer = model, customer
        self._set_by = at / "set_by"
        self.log = at / "gateway.log"
        self.variables = gateway_variables(
            devnet.values, model.url, at / "ledger.db", free_port(), step_units=8, settles=False
        )
        self.variables["CLOCK_SET_BY"] = str(self._set_by)
        self._amount = 0
        self.set_clock(0)

    def set_clock(self, by_s: int) -> None:
        """Set it at one stroke: the gateway, which reads it at any moment, finds no empty file."""
        new = self._set_by.with_suffix(".new")
        new.write_text(str(by_s))
        new.replace(self._set_by)

    def gateway(self) -> GatewayProcess:
        command = [sys.executable, "-c", SHIM, "gateway"]
        return GatewayProcess(command, self.variables, self.log)

    async def buy(self, url: str, key: str) -> httpx.Response:
        self._amount += 8 * PRICE
        return await self.customer.buy(url, self._amount, headers={"idempotency-key": key})


@pytest.fixture
async def shop(devnet: TestChain, chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with (
        model_server() as model,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        yield Shop(devnet, model, Customer(chain, client), tmp_path)


async def test_a_clock_ahead_charges_no_key_again(shop: Shop) -> None:
    """O-90: the host boots 25 hours ahead; then, while it runs, falls ten minutes behind."""
    gateway = shop.gateway()
    async with gateway.running():
        await shop.customer.open(gateway.url, 10**6)
        first = await shop.buy(gateway.url, "one")
        assert first.status_code == 200
        assert await gateway.end() == 0
        shop.set_clock(DAY_S + 3600)
        await gateway.start()
        await shop.customer.challenge(gateway.url)
        again = await shop.buy(gateway.url, "one")
        assert (again.status_code, again.content) == (200, first.content)
        assert len(shop.model.seen) == 1, [(s.path, s.body, s.headers) for s in shop.model.seen]
        shop.set_clock(DAY_S + 3600 - 600)
        for key in ("one", "two", "two"):
            assert (await shop.buy(gateway.url, key)).status_code == 200
        assert len(shop.model.seen) == 2


async def test_a_clock_that_the_chain_contradicts_does_not_start(shop: Shop) -> None:
    """O-90: 40 days behind: one line, exit code 2, and the books are as they were."""
    await _refuses(shop, -40 * DAY_S, "s behind the chain's newest block")


async def test_a_clock_that_the_database_contradicts_does_not_start(
    shop: Shop, postgres_url: str
) -> None:
    """O-90, F-43: 25 hours ahead, which a chain that stands still cannot tell."""
    shop.variables["MPP_SESSION_LEDGER_URL"] = postgres_url
    await _refuses(shop, 25 * 3600, "s from PostgreSQL's")


async def _refuses(shop: Shop, by_s: int, said: str) -> None:
    shop.set_clock(by_s)
    gateway = shop.gateway()
    with pytest.raises(AssertionError):
        await gateway.start()
    assert said in gateway.said()
    assert await gateway.end() == 2
