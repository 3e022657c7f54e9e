"""O-82: a gateway and its settler whose output is not read go on, and are paid."""

import sys
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.responses import Response

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
from tests.e2e.test_gateway_process import until_finalized
from tests.mpp_session.model_server import model_server

pytestmark = pytest.mark.timeout(180)

BODY: dict[str, Any] = {"model": "tiny", "stream": True, "messages": []}
STALLED: Final = """
import fcntl, os, sys
reader, pipe = os.pipe()
fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
os.set_inheritable(reader, True)
for descriptor in (1, 2):
    os.dup2(pipe, descriptor)
os.write(pipe, b"x" * 4000)
os.execv(sys.executable, sys.argv[1:])
"""
"""Runs a program whose output goes into a pipe that is open, nearly full, and never read."""


async def test_a_payer_that_leaves_is_answered_though_the_log_is_not_read(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-82: every request fails with a line of log; then the payer leaves."""
    async with model_server() as model:
        variables = gateway_variables(
            devnet.values, model.url, tmp_path / "ledger.db", free_port(), step_units=8
        )
        variables["MPP_SESSION_SETTLEMENT_SWEEP_INTERVAL_S"] = "0.2"
        command = [sys.executable, "-c", STALLED, *gateway_command()]
        gateway = GatewayProcess(command, variables, tmp_path / "gateway.log")
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
            assert (await client.post(url, json=BODY)).status_code == 200
            model.answer = Response(status_code=401)
            for _ in range(60):
                assert (await client.post(url, json=BODY)).status_code == 502
            model.answer = None
            assert (await client.post(url, json=BODY)).status_code == 200
            (account,) = await client.payments.channels()
            await client.payments.request_close(account.key.channel_id)
            fact = await until_finalized(devnet, account.key.channel_id)
            assert fact.settled >= 6 * PRICE
            assert await gateway.end() == 0
