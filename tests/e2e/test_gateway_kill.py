"""`kill -9` in the middle of a stream, twenty times: the same channel goes on, nothing is lost."""

import contextlib
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.ledger.url import open_ledger
from channel.state.channel_state import ChannelState
from service.client import PayingClient, open_client
from service.testing.chain import TestChain
from settlement.escrow import EscrowReader
from tests.e2e.gateways import (
    PRICE,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.e2e.warm import Forge
from tests.service.model_server import model_server

KILLS = 20
STEP_UNITS = 8
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


async def read_books(ledger: Path) -> ChannelState:
    """The one channel, as it is on disk."""
    books = await open_ledger(f"sqlite:///{ledger}", exclusive=False)
    try:
        (state,) = await books.list_channels()
    finally:
        await books.close()
    return state


@pytest.mark.timeout(300)
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
        variables = gateway_variables(values, model.url, ledger, free_port(), step_units=STEP_UNITS)
        gateway = GatewayProcess(
            gateway_command(), variables, tmp_path / "gateway.log", forge=forge
        )
        url = f"{gateway.url}/v1/chat/completions"
        async with (
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
