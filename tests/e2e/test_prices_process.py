"""Prices that change while a gateway serves: by SIGHUP, by a command, on every worker."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.methods.evm.method import EVM
from channel.wire.challenge import parse_challenges
from mpp_session.agent.client import open_client
from mpp_session.testing.chain import TestChain
from tests.e2e.gateways import (
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.mpp_session.model_server import ModelServer, model_server
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(240)

WORKERS = 2


def prices(amount: int, model: str = "tiny") -> str:
    return f'[[prices]]\nmodel = "{model}"\nper_unit = {amount}\n'


async def run(*arguments: str, variables: dict[str, str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mpp_session.cli", *arguments),
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def offered(url: str, model: str = "tiny") -> int | None:
    """The price of a token on a new connection, which any worker may answer; None: not sold."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(
            f"{url}/v1/chat/completions", json={"model": model, "messages": []}
        )
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    (challenge,) = parse_challenges(answer.headers.get_list("www-authenticate"))
    return EVM.parse_request(challenge.request).unit_price


@asynccontextmanager
async def priced_gateway(
    devnet: TestChain, model: ModelServer, folder: Path, **changes: str
) -> AsyncIterator[tuple[GatewayProcess, Path, dict[str, str]]]:
    file = folder / "prices.toml"
    file.write_text(prices(10))
    variables = gateway_variables(
        devnet.values, model.url, folder / "ledger.db", free_port(), step_units=8, settles=False
    )
    del variables["MPP_SESSION_PRICE_PER_UNIT"]
    variables |= {
        "MPP_SESSION_PRICES_FILE": str(file),
        "MPP_SESSION_LEDGER_STATE_DIR": str(folder / "state"),
        **{f"MPP_SESSION_{name}": value for name, value in changes.items()},
    }
    gateway = GatewayProcess(gateway_command(), variables, folder / "gateway.log")
    async with gateway.running():
        yield gateway, file, variables


async def test_prices_change_by_signal_and_by_command(devnet: TestChain, tmp_path: Path) -> None:
    """A running stream keeps its price; a bad file keeps the old prices and says why."""
    async with model_server() as model, priced_gateway(devnet, model, tmp_path) as running:
        gateway, file, variables = running
        url = f"{gateway.url}/v1/chat/completions"
        model.words, model.held = ["x"] * 60, {"held"}
        body: dict[str, Any] = {"model": "tiny", "stream": True, "messages": [], "user": "held"}
        assert await offered(gateway.url) == 10
        async with open_client(
            rpc_url=devnet.values.rpc_url,
            private_key=devnet.values.accounts["payer"].private_key,
            policy=policy_for(devnet.values),
            store=tmp_path / "agent.db",
        ) as client:
            async with client.stream("POST", url, json=body) as answer:
                lines = answer.aiter_lines()
                while '"content"' not in await anext(lines):
                    pass
                await asyncio.to_thread(file.write_text, prices(20))
                os.kill(gateway.pid, signal.SIGHUP)
                await until(lambda: is_offered(gateway.url, 20))
                model.held.clear()
                assert "data: [DONE]" in [line async for line in lines]
            (account,) = await client.payments.channels()
            assert account.spent == 60 * 10

        await asyncio.to_thread(file.write_text, prices(30) + prices(40, "large"))
        code, said = await run("prices", "reload", variables=variables)
        assert (code, said) == (
            0,
            "tiny: 30 dUSD / 1M llm tokens; large: 40 dUSD / 1M llm tokens\n",
        )
        assert [await offered(gateway.url, name) for name in ("tiny", "large")] == [30, 40]

        await asyncio.to_thread(file.write_text, prices(50) + prices(0, "large"))
        code, said = await run("prices", "reload", variables=variables)
        assert code == 2
        assert "`prices` row 2 (model large): `per_unit`: Expected `int` >= 1" in " ".join(
            said.split()
        )
        assert [await offered(gateway.url, name) for name in ("tiny", "large")] == [30, 40]
        assert "prices are not changed" in gateway.said()
        code, said = await run("prices", "check", variables=variables)
        assert code == 2
        assert await gateway.end() == 0
        code, said = await run("prices", "reload", variables=variables)
        assert code == 1
        assert "no gateway with these settings runs" in " ".join(said.split())


async def test_every_worker_takes_the_prices(
    devnet: TestChain, tmp_path: Path, postgres_url: str
) -> None:
    """Also one that is killed and started again; a refusal changes none."""
    async with (
        model_server() as model,
        priced_gateway(
            devnet, model, tmp_path, LISTEN_WORKERS=str(WORKERS), LEDGER_URL=postgres_url
        ) as running,
    ):
        gateway, file, variables = running
        await until(lambda: is_offered(gateway.url, 10))
        await asyncio.to_thread(file.write_text, prices(20))
        code, said = await run("prices", "reload", variables=variables)
        assert (code, said) == (0, "tiny: 20 dUSD / 1M llm tokens\n")
        assert {await offered(gateway.url) for _ in range(20)} == {20}
        await asyncio.to_thread(file.write_text, '[[prices]]\nmodel = "tiny"\noutput = "1 EUR"\n')
        code, said = await run("prices", "reload", variables=variables)
        assert code == 2
        assert "expected a price in dUSD" in " ".join(said.split())
        assert {await offered(gateway.url) for _ in range(20)} == {20}
        serving = [line for line in gateway.said().splitlines() if "serves as process" in line]
        os.kill(int(serving[0].rsplit(" ", 1)[1]), signal.SIGKILL)
        await until(lambda: gateway.said().count("serves as process") == WORKERS + 1)
        assert {await offered(gateway.url) for _ in range(20)} == {20}


async def is_offered(url: str, price: int) -> bool:
    return await offered(url) == price
