"""`kill -9` in the middle of paid websockets: what was delivered is spent, and a step at most."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from channel.wire.challenge import parse_challenges
from channel.wire.credential import Credential, format_credential
from tests.channel.chain_model import ChainModel
from tests.channel.http.servers import refused
from tests.channel.selling import PRICE, Payer
from tests.faults.test_tariff_kill import read_spent

KILLS = 3
STEP_UNITS = 32
STEP = STEP_UNITS * PRICE

# A provider in a process of its own. It prints where it serves.
PROGRAM = """
import asyncio, sys
from pathlib import Path
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from channel.http import PaymentGate, Price, Route
from tests.channel.selling import PRICE, ask, open_provider
from tests.mpp_session.serving import serve

async def count(socket):
    await socket.accept()
    number = 0
    while True:
        await socket.send_text(str(number))
        await asyncio.sleep(0.0005)
        number += 1

async def main(folder):
    async with open_provider(Path(folder), reservation_step_units=int(sys.argv[2])) as provider:
        price = Price(unit_price=PRICE, unit_type="message_out")
        route = Route(method="WEBSOCKET", path="/talk", price=price)
        app = Starlette(routes=[WebSocketRoute("/talk", count)])
        gate = PaymentGate(app, engine=provider.engine, routes=[route])
        challenge = (await ask(gate, "HEAD", "/talk")).challenge
        provider.payer.open_on_chain(10**9)
        opening = provider.payer.credential(challenge, provider.payer.opening())
        assert (await ask(gate, "HEAD", "/talk", opening)).status == 200
        async with serve(gate) as url:
            print(url, flush=True)
            await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


async def talk_and_kill(folder: Path, payer: Payer, paid: int, messages: int) -> int:
    """Read so many messages at least, kill the provider, and return how many came in all."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", PROGRAM, str(folder), str(STEP_UNITS)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    (challenge,) = parse_challenges((await refused(url, "/talk")).all("www-authenticate"))
    credential = Credential(challenge, payer.voucher(paid), (payer.key.chain_id, payer.address))
    headers = {"Authorization": format_credential(credential)}
    came = 0
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/talk", headers=headers) as socket,
    ):
        async for message in socket:
            came += '"mpp":"message"' in str(message.data)
            if came == messages:
                process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    return came


@pytest.mark.timeout(600)
async def test_a_killed_websocket_costs_what_it_delivered_and_a_step_at_most(
    tmp_path: Path,
) -> None:
    """WS-09, F-42, F-43: the lease of the dead owner turns its step into `spent`."""
    payer = Payer(ChainModel())
    payer.open_on_chain(10**9)
    chance = random.Random(9)  # noqa: S311 -- repeatable, not secret
    spent = 0
    for _ in range(KILLS):
        messages = chance.randrange(1, 200)
        came = await talk_and_kill(tmp_path, payer, spent + 10**6, messages)
        now = await read_spent(tmp_path)
        assert came * PRICE <= now - spent
        # What was sent and did not arrive before the kill is paid for, too: it is in the socket.
        assert now - spent <= (came + STEP_UNITS) * PRICE + STEP
        spent = now
