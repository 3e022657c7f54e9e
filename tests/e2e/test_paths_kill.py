"""`kill -9` while a gateway passes on answers of another server: what arrived is charged."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mpp_session.agent.client import PayingClient, open_client
from mpp_session.testing.chain import TestChain
from tests.e2e.gateways import (
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.e2e.test_gateway_kill import read_books
from tests.e2e.warm import Forge
from tests.mpp_session.serving import serve

STEP_UNITS = 8
PIECE = b"x" * 100
EVENT = b"data: " + PIECE + b"\n\n"
PRICES = """
[[prices]]
method = "GET"
path = "/file"
rates = { byte = 1 }
maximum = "0.05"

[[prices]]
method = "GET"
path = "/events"
rates = { byte = 1 }
"""


class Paced:
    """A server that sends the next piece of an answer when its reader asks for it."""

    def __init__(self) -> None:
        self.may_send = asyncio.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        answers = {"/file": (PIECE, "text/plain"), "/events": (EVENT, "text/event-stream")}
        found = answers.get(request.url.path)
        answer = Response(status_code=404)
        if found is not None:
            answer = StreamingResponse(self._send(found[0]), media_type=found[1])
        await answer(scope, receive, send)

    async def _send(self, piece: bytes) -> AsyncIterator[bytes]:
        for _ in range(1000):
            await self.may_send.acquire()
            yield piece


async def read_and_kill(
    client: PayingClient, url: str, gateway: GatewayProcess, server: Paced, *, after: int
) -> int:
    """Read so many pieces, kill the gateway, and return how many arrived."""
    received = 0
    accept = "text/event-stream" if url.endswith("/events") else "*/*"
    server.may_send.release()
    with contextlib.suppress(httpx.TransportError):
        async with client.stream("GET", url, headers={"accept": accept}) as response:
            assert response.status_code == 200, await response.aread()
            async for piece in response.aiter_bytes():
                received += piece.count(b"x") // len(PIECE)
                if received == after:
                    assert await gateway.end(signal.SIGKILL) == -signal.SIGKILL
                else:
                    server.may_send.release()
    return received


@pytest.mark.parametrize(("path", "lost_max"), [("/file", 0), ("/events", len(PIECE))])
async def test_what_arrived_before_a_kill_is_charged_and_at_most_an_event_more(
    devnet: TestChain, tmp_path: Path, forge: Forge, path: str, lost_max: int
) -> None:
    """ACC-04, F-42: a piece is on disk before it is sent; a stream reserves no more than a step."""
    values, ledger = devnet.values, tmp_path / "ledger.db"
    (tmp_path / "prices.toml").write_text(PRICES)
    server = Paced()
    async with serve(server) as upstream:
        variables = gateway_variables(
            values, upstream, ledger, free_port(), step_units=STEP_UNITS, settles=False
        )
        del variables["MPP_SESSION_PRICE_PER_UNIT"]
        variables["MPP_SESSION_PRICES_FILE"] = str(tmp_path / "prices.toml")
        gateway = GatewayProcess(
            gateway_command(), variables, tmp_path / "gateway.log", forge=forge
        )
        policy = policy_for(values, voucher_step=20 * len(PIECE))
        limits = replace(policy.limits[0], unit_price_max={"byte": 1})
        async with (
            gateway.running(),
            open_client(
                rpc_url=values.rpc_url,
                private_key=values.accounts["payer"].private_key,
                policy=replace(policy, limits=(limits,), request_units_max=10**6),
                store=tmp_path / "agent.db",
            ) as client,
        ):
            spent = 0
            for after in (1, 7, 3):
                url = f"{gateway.url}{path}"
                received = await read_and_kill(client, url, gateway, server, after=after)
                assert received == after
                await gateway.start()
                state = await read_books(ledger)
                assert state.reserved == 0
                charged, spent = state.spent - spent, state.spent
                assert after * len(PIECE) <= charged <= after * len(PIECE) + lost_max
