"""`kill -9` in the middle of streams, twenty times: the same channels go on, nothing is lost."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.ledger.url import open_ledger
from channel.state.channel_state import ChannelState
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from tests.e2e.customers import Customer
from tests.e2e.gateways import (
    PRICE,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.e2e.shopper import Shopper
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import ModelServer, model_server
from tests.waiting import PATIENCE_S, until

KILLS = int(os.environ.get("KILLS", "20"))
STEP_UNITS = 8
ANSWER_UNITS = 24
SHOPPERS = 4
KEY = {"idempotency-key": "one and the same"}
BODY: dict[str, Any] = {"model": "tiny", "stream": True, "messages": []}


async def stream_and_kill(
    client: PayingClient, url: str, gateway: GatewayProcess, *, after: int
) -> int:
    """Read a stream, kill the gateway after so many chunks, and return how many arrived."""
    received = 0
    with contextlib.suppress(httpx.TransportError):
        async with client.stream("POST", url, json=BODY) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                received += '"content"' in line
                if received == after:
                    assert await gateway.end(signal.SIGKILL) == -signal.SIGKILL
    return received


@contextlib.asynccontextmanager
async def settling(forge: Forge, variables: dict[str, str], log: Path) -> AsyncIterator[None]:
    """A settler beside the gateway, that outlives it."""
    process = forge.start(["settle"], variables, log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def list_books(url: str) -> list[ChannelState]:
    """All channels, as they are on disk."""
    books = await open_ledger(url, exclusive=False)
    try:
        return await books.list_channels()
    finally:
        await books.close()


async def read_books(ledger: Path) -> ChannelState:
    """The one channel, as it is on disk."""
    (state,) = await list_books(f"sqlite:///{ledger}")
    return state


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_killed_twenty_times_in_mid_stream_the_same_channel_goes_on(
    devnet: TestChain, tmp_path: Path, forge: Forge
) -> None:
    """SEC-01, ACC-04, F-28, F-42, F-51: what is on disk is what the agent's receipts say.

    Each time the agent is charged for every chunk it got, and for at most one reservation step
    of chunks it could not have got. At the end the chain pays exactly what was spent.
    """
    chance = random.Random(20261120)  # noqa: S311 -- the same twenty moments each time
    values, ledger = devnet.values, tmp_path / "ledger.db"
    async with model_server() as model:
        model.words, model.delay_s = [f"{number} " for number in range(400)], 0.002
        variables = gateway_variables(
            values, model.url, ledger, free_port(), step_units=STEP_UNITS, settles=False
        )
        gateway = GatewayProcess(
            gateway_command(), variables, tmp_path / "gateway.log", forge=forge
        )
        url = f"{gateway.url}/v1/chat/completions"
        async with (
            settling(forge, variables, tmp_path / "settler.log"),
            gateway.running(),
            open_client(
                rpc_url=values.rpc_url,
                private_key=values.accounts["payer"].private_key,
                policy=policy_for(values),
                store=tmp_path / "agent.db",
            ) as client,
        ):
            spent = 0
            for _ in range(KILLS):
                received = await stream_and_kill(client, url, gateway, after=chance.randint(1, 60))
                killed = await read_books(ledger)
                (account,) = await client.payments.channels()
                assert account.accepted <= killed.accepted <= account.signed
                assert account.spent <= killed.spent
                await gateway.start()
                state = await read_books(ledger)
                assert (state.accepted, state.reserved) == (killed.accepted, 0)
                charged_units, rest = divmod(state.spent - spent, PRICE)
                assert rest == 0
                assert received <= charged_units <= received + STEP_UNITS
                spent = state.spent
            (closed,) = await client.payments.close(gateway.url)
        assert closed.state == "closed"
        assert closed.settled == spent
        assert model.sent > 0
    async with devnet.connect() as chain:
        reader = EscrowReader(chain.rpc, values.escrow)
        fact = await reader.read_channel(closed.key.channel_id)
        assert fact is not None
        assert (fact.settled, fact.is_finalized) == (spent, True)


@pytest.fixture(params=["sqlite", "postgres"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, int]:
    """A ledger's URL, and how many gateways work on it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}", 1
    return str(request.getfixturevalue("postgres_url")), 2


class Crowd:
    """Gateways that die, shoppers who do not care, and the model behind them."""

    def __init__(
        self, model: ModelServer, gateways: Sequence[GatewayProcess], shoppers: Sequence[Shopper]
    ) -> None:
        self.model = model
        self.gateways = gateways
        self.shoppers = shoppers

    async def shop_and_kill(self, kills: int) -> None:
        """Let all shop while one gateway after the other is killed and started again.

        Each time something has been sold since the last, and in the end enough to say anything.
        """
        chance = random.Random(4)  # noqa: S311 -- repeatable, not secret
        stopping = asyncio.Event()
        shopping = [asyncio.create_task(shopper.run(stopping)) for shopper in self.shoppers]
        for _ in range(kills):
            sold = self.sold
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            await until(partial(self._has_sold_more_than, sold))
            gateway = chance.choice(self.gateways)
            assert await gateway.end(signal.SIGKILL) == -signal.SIGKILL
            await gateway.start()
        await until(partial(self._has_sold_more_than, kills * ANSWER_UNITS))
        stopping.set()
        await asyncio.wait_for(asyncio.gather(*shopping), PATIENCE_S)

    def _has_sold_more_than(self, units: int) -> bool:
        return self.sold > units

    @property
    def sold(self) -> int:
        """Units that have arrived."""
        return sum(shopper.received for shopper in self.shoppers)


@pytest.fixture
async def crowd(
    devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge, books: tuple[str, int]
) -> AsyncIterator[Crowd]:
    url, count = books
    alone = httpx.Limits(max_keepalive_connections=0)
    async with contextlib.AsyncExitStack() as open_:
        model = await open_.enter_async_context(model_server())
        model.words, model.delay_s = ["x"] * ANSWER_UNITS, 0.002
        gateways = []
        for number in range(count):
            variables = gateway_variables(
                devnet.values,
                model.url,
                tmp_path / "unused",
                free_port(),
                step_units=STEP_UNITS,
                settles=False,
            )
            ours = {"LEDGER_URL": url, "PAYMENT_RESERVATION_LEASE_S": "5"}
            variables |= {f"MPP_SESSION_{name}": value for name, value in ours.items()}
            log = tmp_path / f"gateway-{number}.log"
            gateways.append(GatewayProcess(gateway_command(), variables, log, forge=forge))
            await open_.enter_async_context(gateways[-1].running())
        urls = [gateway.url for gateway in gateways]
        client = await open_.enter_async_context(
            httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, limits=alone)
        )
        shoppers = []
        for number in range(SHOPPERS):
            customer = Customer(chain, client)
            customer.payer.salt = (number << 128).to_bytes(32)
            await customer.open(urls[0], 10**9)
            name = f"shopper {number}"
            shoppers.append(
                Shopper(customer, name, urls, units=ANSWER_UNITS, step_units=STEP_UNITS)
            )
        yield Crowd(model, gateways, shoppers)


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_killed_twenty_times_under_load_every_unit_is_accounted_for(
    crowd: Crowd, books: tuple[str, int]
) -> None:
    """SEC-01, ACC-02, ACC-04, IDEM-05, F-24, F-26, F-36, F-42, F-48, F-51, F-109.

    Several shoppers, streams and answers in one piece, one gateway on SQLite or two on
    PostgreSQL. Ledger, receipts, and what left the model are compared: no unit arrived that was
    not charged; per stream that broke off at most one step was charged and did not arrive; an
    answer in one piece is charged once or not at all, however often it was asked for.
    """
    await crowd.shop_and_kill(KILLS)
    for gateway in crowd.gateways:
        assert await gateway.end(signal.SIGTERM) == 0, gateway.said()
    ledger = await open_ledger(books[0], exclusive=True)
    await ledger.end_all_reservations()  # as when their leases have run out
    assert await ledger.faults() == []  # each channel's charges add up to its spent
    states = {state.key: state for state in await ledger.list_channels()}
    await ledger.close()
    for shopper in crowd.shoppers:
        state = states[shopper.customer.payer.key]
        charged, rest = divmod(state.spent, PRICE)
        assert (rest, state.reserved) == (0, 0)
        assert shopper.received <= charged <= shopper.received + shopper.broken * STEP_UNITS
        emitted = crowd.model.emitted[shopper.name]
        assert shopper.received <= emitted
        assert charged <= emitted + shopper.broken * STEP_UNITS
        assert state.accepted >= shopper.acknowledged
    assert sum(shopper.broken for shopper in crowd.shoppers) >= KILLS / 4
    assert sum(shopper.received for shopper in crowd.shoppers) > KILLS * ANSWER_UNITS


async def test_what_became_of_a_request_that_died_with_its_gateway_is_unknown_and_free(
    devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge
) -> None:
    """IDEM-03, F-28, F-48: its key says so for good; the payer is not charged, and may ask anew."""
    ledger = tmp_path / "ledger.db"
    async with (
        model_server() as model,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        variables = gateway_variables(
            devnet.values, model.url, ledger, free_port(), step_units=STEP_UNITS, settles=False
        )
        gateway = GatewayProcess(
            gateway_command(), variables, tmp_path / "gateway.log", forge=forge
        )
        customer = Customer(chain, client)
        async with gateway.running():
            await customer.open(gateway.url, 10**6)
            model.may_answer.clear()
            asking = asyncio.create_task(customer.buy(gateway.url, 8 * PRICE, headers=KEY))
            await until(lambda: bool(model.seen))
            assert await gateway.end(signal.SIGKILL) == -signal.SIGKILL
            with pytest.raises(httpx.TransportError):
                await asking
            model.may_answer.set()
            await gateway.start()
            for amount in (8 * PRICE, 16 * PRICE):
                again = await customer.buy(gateway.url, amount, headers=KEY)
                assert again.status_code == 409
                assert again.json()["type"].endswith("/outcome-unknown")
            anew = await customer.buy(gateway.url, 16 * PRICE, headers={"idempotency-key": "new"})
            assert anew.status_code == 200
        state = await read_books(ledger)
        assert (state.spent, state.reserved) == (len(model.words) * PRICE, 0)
        assert len(model.seen) == 2
