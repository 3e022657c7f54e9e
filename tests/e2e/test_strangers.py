"""A gateway as a process, and strangers who have paid for nothing."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mpp_session.agent.client import open_client
from mpp_session.testing.chain import TestChain
from tests.e2e.gateways import (
    PRICE,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.mpp_session.model_server import model_server
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

BODY: dict[str, Any] = {"model": "tiny", "stream": True, "messages": []}
HALF = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
STRANGERS = 300


async def test_half_heads_keep_no_client_out_where_few_files_may_be_open(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-26, O-92: `ulimit -n 128`, and more strangers than that; no key in a core file."""
    async with model_server() as model:
        port = free_port()
        variables = gateway_variables(
            devnet.values, model.url, tmp_path / "ledger.db", port, step_units=8
        )
        limited = ["bash", "-c", 'ulimit -n 128; exec "$0" "$@"', *gateway_command()]
        gateway = GatewayProcess(limited, variables, tmp_path / "gateway.log")
        async with (
            gateway.running(),
            open_client(
                rpc_url=devnet.values.rpc_url,
                private_key=devnet.values.accounts["payer"].private_key,
                policy=policy_for(devnet.values),
                store=tmp_path / "agent.db",
            ) as client,
        ):
            url = f"{gateway.url}/v1/chat/completions"
            strangers = []
            for number in range(STRANGERS):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(HALF)
                strangers.append(writer)
                if number % 100 == 99:
                    answer = await client.post(url, json=BODY)
                    assert answer.status_code == 200
            (account,) = await client.payments.channels()
            assert account.spent == 3 * 3 * PRICE
            await until(lambda: "32 clients can connect at a time" in gateway.said())
            said = gateway.said()
            assert "Traceback" not in said
            assert len(said) < 20_000
            if sys.platform == "linux":
                assert {core_limit(pid) for pid in family(gateway.pid)} == {"0"}
            for writer in strangers:
                writer.transport.abort()
            assert await gateway.end(signal.SIGTERM) == 0


def family(pid: int) -> list[int]:
    """Return a process and those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children  # the settler
    return [pid, *map(int, children)]


def core_limit(pid: int) -> str:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if line.startswith("Max core file size")
    ]
    return line.split()[5]
