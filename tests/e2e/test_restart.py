"""A gateway that restarts, or dies, under fifty live streams: the books say what was delivered."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.e2e.customers import PATH, Customer
from tests.e2e.gateways import (
    PRICE,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
)
from tests.e2e.test_gateway_kill import list_books
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import ModelServer, model_server
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(300)

CUSTOMERS, STREAMS_EACH = 5, 10
STEP_UNITS = 8
DEPOSIT = 10**6
ACTIVATE = """
import os, sys
passed = int(sys.argv[1])
os.dup2(passed, 3)
os.close(passed)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "mpp_session.cli", "gateway"])
"""
"""What systemd does: the socket is descriptor 3 of the program, and two variables say so."""


class Audience:
    """Customers who read ten streams each, on one channel each."""

    def __init__(self, customers: list[Customer]) -> None:
        self.customers = customers
        self.received: dict[bytes, int] = {}
        """Chunks that have arrived, by channel."""
        self.reading = 0
        """Streams of which something has arrived."""
        self.receipts = 0
        """Streams that ended with one."""
        self._tasks: list[asyncio.Task[None]] = []

    async def sit_down(self, url: str) -> None:
        """Open the channels and the streams, and return when each stream has begun."""
        for number, customer in enumerate(self.customers):
            customer.payer.salt = (1000 * number).to_bytes(32)
            await customer.open(url, DEPOSIT)
            self.received[bytes(customer.payer.key.channel_id)] = 0
        self._tasks = [
            asyncio.create_task(self._read(customer, url))
            for customer in self.customers
            for _ in range(STREAMS_EACH)
        ]
        await until(lambda: self.reading == len(self._tasks))

    async def leave(self) -> None:
        """Wait for the end of every stream."""
        await asyncio.wait_for(asyncio.gather(*self._tasks), PATIENCE_S)

    async def _read(self, customer: Customer, url: str) -> None:
        channel_id, chunks = bytes(customer.payer.key.channel_id), 0
        with contextlib.suppress(httpx.TransportError):
            async with customer.events(url, DEPOSIT) as events:
                async for name, data in events:
                    if '"content"' in data:
                        self.received[channel_id] += 1
                        chunks += 1
                        self.reading += chunks == 1
                    self.receipts += name == "payment-receipt"


@contextlib.asynccontextmanager
async def audience(chain: Devnet) -> AsyncIterator[Audience]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=PATIENCE_S, trust_env=False) as client:
        yield Audience([Customer(chain, client) for _ in range(CUSTOMERS)])


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with model_server() as running:
        running.words, running.delay_s = ["x"] * 10_000, 0.1
        yield running


@pytest.fixture
def variables(devnet: TestChain, model: ModelServer, tmp_path: Path) -> dict[str, str]:
    given = gateway_variables(
        devnet.values,
        model.url,
        tmp_path / "ledger.db",
        free_port(),
        step_units=STEP_UNITS,
        settles=False,
    )
    return {
        **given,
        "MPP_SESSION_PAYMENT_STREAM_POLICY": "allow",
        "MPP_SESSION_EXPOSURE_TOTAL_MAX": str(10 * CUSTOMERS * DEPOSIT),
    }


async def test_a_restart_leaves_books_equal_to_deliveries(
    chain: Devnet, variables: dict[str, str], tmp_path: Path, forge: Forge
) -> None:
    """SSE-04: each of the streams ends with its receipt; what was not delivered is given back."""
    log = tmp_path / "gateway.log"
    gateway = GatewayProcess(gateway_command(), variables, log, forge=forge)
    async with audience(chain) as crowd, gateway.running():
        await crowd.sit_down(gateway.url)
        assert await gateway.end(signal.SIGTERM) == 0
        await crowd.leave()
        assert crowd.receipts == CUSTOMERS * STREAMS_EACH
        for state in await list_books(variables["MPP_SESSION_LEDGER_URL"]):
            assert state.spent == crowd.received[bytes(state.key.channel_id)] * PRICE
            assert state.reserved == 0
        await gateway.start()
        one = crowd.customers[0]
        async with one.events(gateway.url, DEPOSIT) as events:
            assert '"content"' in [data async for _, data in first(events)][-1]


async def test_a_reload_of_prices_drops_no_stream_and_reprices_none(
    chain: Devnet, variables: dict[str, str], tmp_path: Path
) -> None:
    """SIGHUP, as `systemctl reload` sends it: new offers have the new price, streams the old."""
    config = tmp_path / "gateway.toml"
    config.write_text(f"[price]\nper_unit = {PRICE}\n")
    del variables["MPP_SESSION_PRICE_PER_UNIT"]
    command = [*gateway_command(), "--config", str(config)]
    gateway = GatewayProcess(command, variables, tmp_path / "gateway.log")
    async with audience(chain) as crowd, gateway.running():
        await crowd.sit_down(gateway.url)
        config.write_text(f"[price]\nper_unit = {2 * PRICE}\n")
        os.kill(gateway.pid, signal.SIGHUP)
        client = crowd.customers[0].client

        async def asks_more() -> bool:
            offer = (await client.post(gateway.url + PATH, json={})).json()["price"][0]
            return bool(offer["amount"] == str(2 * PRICE))

        await until(asks_more, every_s=0.1)
        before = dict(crowd.received)
        more = 2 * STREAMS_EACH
        await until(lambda: all(crowd.received[each] > before[each] + more for each in before))
        assert await gateway.end(signal.SIGTERM) == 0
        await crowd.leave()
    assert crowd.receipts == CUSTOMERS * STREAMS_EACH
    for state in await list_books(variables["MPP_SESSION_LEDGER_URL"]):
        assert state.spent == crowd.received[bytes(state.key.channel_id)] * PRICE


async def first(events: AsyncIterator[tuple[str, str]]) -> AsyncIterator[tuple[str, str]]:
    """Yield events up to the first with content."""
    async for event in events:
        yield event
        if '"content"' in event[1]:
            return


async def test_a_kill_costs_each_stream_one_reservation_step_at_most(
    chain: Devnet, variables: dict[str, str], tmp_path: Path, forge: Forge
) -> None:
    """SEC-01, F-42: all that arrived is in the books, and little that did not."""
    log = tmp_path / "gateway.log"
    gateway = GatewayProcess(gateway_command(), variables, log, forge=forge)
    async with audience(chain) as crowd, gateway.running():
        await crowd.sit_down(gateway.url)
        assert await gateway.end(signal.SIGKILL) == -signal.SIGKILL
        await crowd.leave()
        await gateway.start()
        states = await list_books(variables["MPP_SESSION_LEDGER_URL"])
        assert len(states) == CUSTOMERS
        for state in states:
            units, rest = divmod(state.spent, PRICE)
            received = crowd.received[bytes(state.key.channel_id)]
            assert (rest, state.reserved) == (0, 0)
            assert received <= units <= received + STREAMS_EACH * STEP_UNITS


@contextlib.asynccontextmanager
async def activated(
    listener: socket.socket, variables: dict[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a gateway as systemd does for `mpp-session.socket`."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ACTIVATE, str(listener.fileno())),
            env=variables,
            pass_fds=(listener.fileno(),),
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_clients_that_come_during_a_restart_wait_and_are_served(
    chain: Devnet, variables: dict[str, str], tmp_path: Path
) -> None:
    """The socket unit of docs/deploy: not one connection is refused while no process serves."""
    log = tmp_path / "gateway.log"
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with audience(chain) as crowd:
            async with activated(listener, variables, log) as old:
                await crowd.sit_down(url)
                old.send_signal(signal.SIGTERM)
                await crowd.leave()
                assert await asyncio.wait_for(old.wait(), PATIENCE_S) == 0, log.read_text()
            async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client:
                waiting = [asyncio.create_task(client.post(url + PATH, json={})) for _ in range(20)]
                await asyncio.sleep(0.1)
                assert not any(each.done() for each in waiting)
                async with activated(listener, variables, log):
                    answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} == {402}
    assert crowd.receipts == CUSTOMERS * STREAMS_EACH
    for state in await list_books(variables["MPP_SESSION_LEDGER_URL"]):
        assert state.spent == crowd.received[bytes(state.key.channel_id)] * PRICE
