"""A gateway as a process: it ends without losing a receipt, and defends what it is owed."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from channel.types import ChannelFact, ChannelId
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.testing.chain import TestChain
from settlement.escrow.reader import EscrowReader
from tests.e2e.gateways import (
    PRICE,
    ROOT,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import ModelServer, model_server
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.timeout(180)

BODY: dict[str, Any] = {"model": "tiny", "stream": True, "messages": []}


@asynccontextmanager
async def paid_gateway(
    devnet: TestChain, model: ModelServer, folder: Path, forge: Forge, **changes: str
) -> AsyncIterator[tuple[GatewayProcess, PayingClient]]:
    """A gateway, and an agent that pays it."""
    variables = gateway_variables(
        devnet.values, model.url, folder / "ledger.db", free_port(), step_units=8
    )
    log = folder / "gateway.log"
    gateway = GatewayProcess(gateway_command(), variables | changes, log, forge=forge)
    async with (
        gateway.running(),
        open_client(
            rpc_url=devnet.values.rpc_url,
            private_key=devnet.values.accounts["payer"].private_key,
            policy=policy_for(devnet.values),
            store=folder / "agent.db",
        ) as client,
    ):
        yield gateway, client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_a_signal_in_mid_stream_ends_it_with_its_receipt_and_exit_code_0(
    devnet: TestChain, tmp_path: Path, forge: Forge, number: signal.Signals
) -> None:
    """SSE-04, O-28: the agent knows exactly what it paid; the next start goes on from there."""
    async with model_server() as model:
        model.words, model.delay_s = ["x"] * 10_000, 0.005
        async with paid_gateway(devnet, model, tmp_path, forge) as (gateway, client):
            url = f"{gateway.url}/v1/chat/completions"
            chunks, ending = 0, None
            async with client.stream("POST", url, json=BODY) as response:
                async for line in response.aiter_lines():
                    chunks += '"content"' in line
                    if chunks == 30 and ending is None:
                        ending = asyncio.create_task(gateway.end(number))
            assert ending is not None
            assert await ending == 0
            await asyncio.wait_for(model.cancelled.wait(), PATIENCE_S)
            (account,) = await client.payments.channels()
            assert account.spent == account.received == chunks * PRICE
            await gateway.start()
            (closed,) = await client.payments.close(gateway.url)
            assert closed.settled == chunks * PRICE


async def test_a_payer_that_leaves_by_itself_is_answered_inside_the_grace_period(
    devnet: TestChain, tmp_path: Path, forge: Forge
) -> None:
    """F-63, CLOSE-08: the sweep sees the request and closes with what was delivered."""
    sweep = {"MPP_SESSION_SETTLEMENT_SWEEP_INTERVAL_S": "0.2"}
    async with (
        model_server() as model,
        paid_gateway(devnet, model, tmp_path, forge, **sweep) as running,
    ):
        gateway, client = running
        before = await asyncio.to_thread(
            devnet.token_balance, devnet.values.accounts["payee"].address
        )
        url = f"{gateway.url}/v1/chat/completions"
        assert (await client.post(url, json=BODY)).status_code == 200
        (account,) = await client.payments.channels()
        await client.payments.request_close(account.key.channel_id)
        fact = await until_finalized(devnet, account.key.channel_id)
        assert fact.settled >= 3 * PRICE
        after = await asyncio.to_thread(
            devnet.token_balance, devnet.values.accounts["payee"].address
        )
        assert after - before == fact.settled


async def until_finalized(devnet: TestChain, channel_id: ChannelId) -> ChannelFact:
    async with devnet.connect() as chain, asyncio.timeout(PATIENCE_S):
        reader = EscrowReader(chain.rpc, devnet.values.escrow)
        while True:
            fact = await reader.read_channel(channel_id)
            if fact is not None and fact.is_finalized:
                return fact
            await asyncio.sleep(0.05)


async def test_the_container_s_health_check_passes_while_the_gateway_serves(
    devnet: TestChain, tmp_path: Path, forge: Forge
) -> None:
    """The very command of the container file, but for the port."""
    text = (ROOT / "docs/deploy/Containerfile").read_text()
    found = re.search(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", text)
    assert found is not None
    async with model_server() as model, paid_gateway(devnet, model, tmp_path, forge) as running:
        gateway, _ = running
        _, *arguments = json.loads(found.group(1).replace("http://127.0.0.1:8402", gateway.url))
        for is_healthy in (True, False):
            check = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stderr=asyncio.subprocess.DEVNULL
            )
            assert (await check.wait() == 0) is is_healthy
            await gateway.end()
