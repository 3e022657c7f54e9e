"""A gateway that sells input and output, and an agent that counts what a model server tells."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.types import TokenUnit
from mpp_session.agent.client import open_client
from mpp_session.testing.chain import TestChain
from tests.e2e.gateways import (
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import chunk, model_server, sse

pytestmark = pytest.mark.timeout(180)

CAPS: dict[str, int | str] = {"output_token": "0.40 / 1M", "input_token": "0.10 / 1M"}
END = sse(json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
USAGE = sse(json.dumps({"choices": [], "usage": {"completion_tokens": 600, "prompt_tokens": 20}}))
DONE = sse("[DONE]")
LUMPS = [chunk(content="several tokens in one chunk here ")] * 100
ONE_LUMP = chunk(timings=600, content="word " * 600)


@pytest.mark.parametrize("wants_usage", [False, True])
@pytest.mark.parametrize(
    ("counts", "pieces"),
    [("usage", [*LUMPS, END, USAGE, DONE]), ("llama.cpp", [ONE_LUMP, END, USAGE, DONE])],
    ids=["counted by the usage record", "counted by one chunk"],
)
async def test_tokens_beyond_a_step_that_the_server_tells_are_paid(
    devnet: TestChain,
    tmp_path: Path,
    forge: Forge,
    counts: str,
    pieces: list[str],
    *,
    wants_usage: bool,
) -> None:
    """O-09: the agent counts them before the gateway asks to be paid for them."""
    async with model_server() as model:
        model.tokens, model.pieces = 20, pieces
        variables = gateway_variables(
            devnet.values, model.url, tmp_path / "ledger.db", free_port(), step_units=32
        )
        del variables["MPP_SESSION_PRICE_PER_UNIT"]
        variables |= {
            "MPP_SESSION_PRICE_OUTPUT": "0.40",
            "MPP_SESSION_PRICE_INPUT": "0.10",
            "MPP_SESSION_UPSTREAM_COUNTS": counts,
        }
        gateway = GatewayProcess(gateway_command(), variables, tmp_path / "log", forge=forge)
        policy = policy_for(devnet.values)
        limits = replace(policy.limits[0], unit_price_max=CAPS, unit=TokenUnit("dUSD", 6))
        body: dict[str, Any] = {"messages": [], "stream": True, "max_tokens": 1000}
        if wants_usage:
            body["stream_options"] = {"include_usage": True}
        async with (
            gateway.running(),
            open_client(
                rpc_url=devnet.values.rpc_url,
                private_key=devnet.values.accounts["payer"].private_key,
                policy=replace(policy, limits=(limits,), lost_units_max=256),
                store=tmp_path / "agent.db",
            ) as client,
        ):
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
            assert answer.status_code == 200
            (account,) = await client.payments.channels()
            assert account.spent == account.received == 242  # 600 x 0.40 + 20 x 0.10
