"""`kill -9` in the middle of streams under a tariff: a step of money is lost at most."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from channel.ledger.url import open_ledger
from channel.tariff import Rate, RunningCost, Tariff
from channel.types import TokenUnit

KILLS = 20
STEP_UNITS = 32
USDC = TokenUnit("USDC", 6)
RATES = {"output_token": "0.40 / 1M", "input_token": "0.15 / 1M", "reasoning_token": "0.07 / 1M"}
TARIFF = Tariff(
    (
        Rate("output_token", 400_000, 10**6),
        Rate("input_token", 150_000, 10**6),
        Rate("reasoning_token", 70_000, 10**6),
    )
)
STEP = 13
"""What 32 output tokens cost: 12.8."""

# A provider in a process of its own. It writes a line before each write of the stream, and one
# after it: everything that the stream has used by then.
PROGRAM = """
import asyncio, json, os, random, sys
from pathlib import Path
from channel.http import Event, PaidEventStream, Price, Route
from channel.wire.sse import EventSplitter, parse_event, parse_event_usage
from tests.channel.http.test_tariffs import buy, gate_of
from tests.channel.selling import ask, open_provider
from tests.faults.test_tariff_kill import RATES, STEP_UNITS

async def produce(chance):
    yield Event("prompt", usage={"input_token": chance.randrange(1, 900)})
    while True:
        await asyncio.sleep(chance.choice([0, 0, 0, 0.001]))
        yield "token"
        yield Event("tokens", usage={
            "output_token": chance.randrange(5), "reasoning_token": chance.randrange(40)})

def app(chance):
    total = {}
    def say(word):
        os.write(1, json.dumps([word, total]).encode() + b"\\n")
    async def stream(scope, receive, send):
        async def tell(message):
            for block in EventSplitter().feed(message.get("body", b"")):
                event = parse_event(block)
                if event is None or event[0] != "message":
                    continue
                used = parse_event_usage(block)
                if not isinstance(used, dict):
                    used = {"output_token": 1 if used is None else used}
                for kind, units in used.items():
                    total[kind] = total.get(kind, 0) + units
            say("sending")
            await send(message)
            say("sent")
        await PaidEventStream(produce(chance))(scope, receive, tell)
    return stream

async def main(folder, paid, seed):
    async with open_provider(Path(folder), reservation_step_units=STEP_UNITS) as provider:
        price = Price(rates=RATES)
        route = Route(method="GET", path="/stream", price=price, metered=True)
        gate = gate_of(provider, app(random.Random(seed)), route)
        challenge = (await ask(gate, "GET", "/stream")).challenge
        provider.payer.open_on_chain(10**9)
        credential = provider.payer.credential(challenge, provider.payer.opening(paid))
        assert (await ask(gate, "HEAD", "/stream", credential)).status == 200
        await (await buy(provider, gate, challenge, paid)).task

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""


def stream_and_kill(folder: Path, paid: int, seed: int, after_s: float) -> dict[str, int]:
    """Return the cost of what the stream had certainly sent, and of what it had begun to send."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(paid), str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:  # noqa: S603
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(4)]
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        lines = b"".join([*first, process.stdout.read()]).split(b"\n")[:-1]
    said = {"sent": 0, "sending": 0}
    for line in lines:
        word, used = json.loads(line)
        said[word] = TARIFF.cost(used)
    return said


async def read_spent(folder: Path) -> int:
    """Open the ledger as the next process does, which ends what the dead one held."""
    ledger = await open_ledger(f"sqlite:///{folder / 'ledger.sqlite'}", exclusive=True)
    (state,) = await ledger.list_channels()
    await ledger.close()
    assert state.reservations == ()
    return state.spent


@pytest.mark.timeout(600)
def test_a_killed_stream_costs_what_it_delivered_and_a_step_at_most(tmp_path: Path) -> None:
    """Decision 8, F-42, F-43: in money, under rates of parts of a base unit."""
    chance = random.Random(9)  # noqa: S311 - repeatable, not secret
    spent = 0
    for run in range(KILLS):
        said = stream_and_kill(tmp_path, spent + 10**6, run, chance.uniform(0, 0.2))
        now = asyncio.run(read_spent(tmp_path))
        assert said["sent"] <= now - spent <= said["sending"] + STEP
        assert said["sent"] > 0
        spent = now


def test_a_step_is_what_its_tokens_cost() -> None:
    assert RunningCost(TARIFF).add_main(STEP_UNITS) == STEP
