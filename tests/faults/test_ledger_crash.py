"""A worker killed at any moment has lost nothing that it acknowledged (ACC-04, F-51)."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from channel.ledger.url import open_ledger
from tests.channel.books import key_of

KILLS = {"sqlite": 20, "postgres": 5}
CHANNELS = 16

# Eight tasks pay as fast as they can: accept, reserve, spend, release in one call. Each line is
# written after the acknowledgement it reports.
PROGRAM = """
import asyncio, os, sys
from channel.ledger.url import open_ledger
from channel.state.commands import Release, Spend
from tests.channel.books import accepting, fact, key_of, opening, reserving, streaming

async def main(url, channels):
    ledger = await open_ledger(url, exclusive=True)
    async def pay(number):
        key = key_of(number)
        state = (await ledger.apply(key, [opening(0, key, seen=fact(key, deposit=10**9))])).state
        amount = state.accepted
        while True:
            amount += 2
            held = reserving(b"r", 1, presented=amount)
            applied = await ledger.apply(
                key, [accepting(amount, key), held, Spend(b"r", 1), Release(b"r")]
            )
            os.write(1, b"%d %d %d\\n" % (number, amount, applied.require().spent))
    await asyncio.gather(*[pay(number) for number in range(channels)])

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def run_and_kill(url: str, after_s: float) -> dict[int, tuple[int, int]]:
    """Return the last acknowledged amount and spent of each channel."""
    command = [sys.executable, "-c", PROGRAM, url, str(CHANNELS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:  # noqa: S603
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        lines = (first + process.stdout.read()).split(b"\n")[:-1]
    acknowledged = {}
    for line in lines:
        number, amount, spent = map(int, line.split())
        acknowledged[number] = (amount, spent)
    return acknowledged


async def read_back(url: str) -> dict[int, tuple[int, int]]:
    ledger = await open_ledger(url, exclusive=True)
    states = await ledger.list_channels()
    assert await ledger.faults() == []  # each channel's charges add up to its spent
    await ledger.close()
    numbers = {key_of(number): number for number in range(CHANNELS)}
    assert all(state.reservations == () for state in states)
    return {numbers[state.key]: (state.accepted, state.spent) for state in states}


@pytest.fixture(params=["sqlite", "postgres"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, int]:
    """A ledger's URL, and how often its worker is killed."""
    kind = request.param
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}", KILLS[kind]
    return str(request.getfixturevalue("postgres_url")), KILLS[kind]


def test_all_that_was_acknowledged_is_there_after_every_kill(books: tuple[str, int]) -> None:
    """Nothing is lost, and at most the one change that each task was waiting for is more."""
    url, kills = books
    chance = random.Random(4)  # noqa: S311 - repeatable, not secret
    changes = 0
    for _ in range(kills):
        acknowledged = run_and_kill(url, chance.uniform(0, 0.12))
        kept = asyncio.run(read_back(url))
        for number, (amount, spent) in acknowledged.items():
            assert kept[number] in {(amount, spent), (amount + 2, spent + 1)}
        changes += len(acknowledged)
    assert changes > kills
