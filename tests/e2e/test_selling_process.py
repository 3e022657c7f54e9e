"""A user's application under a third party's server, which is stopped in mid-stream."""

import asyncio
import contextlib
import json
import re
import signal
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.types import Address
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.testing.chain import TestChain
from tests.e2e.gateways import PRICE, GatewayProcess, free_port, gateway_variables, policy_for
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

SHOP = """
import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI

from channel.http import PaidEventStream, Price, Route
from mpp_session import Hooks, SettleEvent, sell

api = FastAPI()
ROUTES = [
    Route(
        method="GET",
        path="/story",
        price=Price(unit_price=25, unit_type="llm_chunk"),
        metered=True,
    ),
    Route(method="GET", path="/joke", price=Price(unit_price=10_000, unit_type="joke")),
]


async def words() -> AsyncIterator[str]:
    while True:
        yield "and"
        await asyncio.sleep(0.005)


@api.get("/joke")
async def joke() -> str:
    return "A payer walks into a channel."


@api.get("/story")
async def story() -> PaidEventStream:
    return PaidEventStream(words())


class Payouts(Hooks):
    def on_settle(self, event: SettleEvent) -> None:
        print("paid out", event.amount, event.is_final, flush=True)


app = sell(api, ROUTES, hooks=Payouts())
"""


def build_shop(
    devnet: TestChain, tmp_path: Path, *, settles: bool, **settings: str
) -> GatewayProcess:
    (tmp_path / "shop.py").write_text(SHOP)
    ledger, port = tmp_path / "ledger.db", free_port()
    variables = gateway_variables(devnet.values, "", ledger, port, step_units=8, settles=settles)
    of_gateways = ("UPSTREAM_URL", "PRICE_PER_UNIT")
    for name in of_gateways:
        del variables[f"MPP_SESSION_{name}"]
    variables |= {f"MPP_SESSION_{name.upper()}": value for name, value in settings.items()}
    # uvicorn gets the port as a flag; the setting is a gateway's, and only the helper reads it.
    command = [
        "env",
        "-u",
        "MPP_SESSION_LISTEN_PORT",
        sys.executable,
        "-m",
        "uvicorn",
        "shop:app",
        "--app-dir",
        str(tmp_path),
    ]
    return GatewayProcess([*command, "--port", str(port)], variables, tmp_path / "shop.log")


def open_agent(
    devnet: TestChain, tmp_path: Path
) -> contextlib.AbstractAsyncContextManager[PayingClient]:
    return open_client(
        rpc_url=devnet.values.rpc_url,
        private_key=devnet.values.accounts["payer"].private_key,
        policy=policy_for(devnet.values),
        store=tmp_path / "agent.db",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_stream_without_end_ends_with_its_receipt_when_uvicorn_stops(
    devnet: TestChain, tmp_path: Path, number: signal.Signals
) -> None:
    """O-28, O-32: uvicorn waits for its streams for ever, and knows nothing of SIGHUP."""
    shop = build_shop(devnet, tmp_path, settles=False)
    async with (
        shop.running(),
        open_agent(devnet, tmp_path) as client,
    ):
        events, ending = 0, None
        async with client.stream("GET", f"{shop.url}/story") as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                events += line.startswith("data:")
                if events == 30 and ending is None:
                    ending = asyncio.create_task(shop.end(number))
        assert ending is not None
        await ending
        (account,) = await client.payments.channels()
        assert account.spent == account.received == events * PRICE
        assert events < 1000
        assert "Traceback" not in shop.said()


async def test_an_application_hears_of_its_payouts(devnet: TestChain, tmp_path: Path) -> None:
    """`on_settle` of `sell(..., hooks=...)`: what the settler pays out, another process."""
    shop = build_shop(devnet, tmp_path, settles=True)
    async with (
        shop.running(),
        open_agent(devnet, tmp_path) as client,
    ):
        async with client.stream("GET", f"{shop.url}/story") as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    break
        await client.payments.close()
        (account,) = await client.payments.channels()
        assert account.spent >= PRICE
        await until(lambda: f"paid out {account.spent} True" in shop.said())


async def test_single_payments_are_sent_by_the_settler_of_an_application(
    devnet: TestChain, tmp_path: Path
) -> None:
    """`rails.charge`: worker and settler are processes of their own, as users start them."""
    shop = build_shop(devnet, tmp_path, settles=True, rails_charge="true")
    values = devnet.values
    (limits,) = policy_for(values).limits
    limits = replace(limits, charge_max=10_000)
    async with shop.running(), devnet.connect() as chain:
        payee = chain.account("payee").address
        before = await chain.token_balance(payee)
        for paid, way in enumerate(("charge", "x402"), 1):
            async with open_client(
                rpc_url=values.rpc_url,
                private_key=values.accounts["payer"].private_key,
                policy=replace(policy_for(values), limits=(limits,), pays=(way,)),
                store=tmp_path / f"{way}.db",
            ) as client:
                answer = await client.get(f"{shop.url}/joke")
                assert answer.status_code == 200, answer.text
                assert answer.json() == "A payer walks into a channel."
                assert await client.payments.channels() == []
            assert await chain.token_balance(payee) == before + paid * 10_000
        await assert_exported(shop, payer=values.accounts["payer"].address)
    assert "Traceback" not in shop.said()


async def assert_exported(shop: GatewayProcess, *, payer: Address) -> None:
    """The books have both payments, each with its transaction, and their gas."""
    said = await ask(shop, "export", "--from", "2020-01", "--format", "jsonl")
    entries = [json.loads(line) for line in said.splitlines()]
    payments = [entry for entry in entries if entry["kind"] == "payment"]
    assert [(each["base_units"], each["outcome"], each["payer"]) for each in payments] == [
        ("10000", "served", f"0x{payer.hex()}")
    ] * 2
    gas = {each["transaction"] for each in entries if each["kind"] == "gas"}
    assert {each["transaction"] for each in payments} <= gas
    earned = await ask(shop, "earnings")
    assert re.search(r"(?m)^payments +2\W", earned), earned
    assert re.search(r"(?m)^paid +0\.020000 dUSD", earned), earned


async def ask(shop: GatewayProcess, *arguments: str) -> str:
    """Return what a command says about the application's books."""
    asking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mpp_session.cli", *arguments),
        env=shop.variables,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asking.communicate()
    assert asking.returncode == 0
    return said.decode()
