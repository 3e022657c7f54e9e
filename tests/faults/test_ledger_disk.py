"""A full or failing disk acknowledges nothing, loses nothing, and is no end (F-51)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from channel.errors import LedgerUnavailableError
from channel.ledger.sqlite import SqliteLedger
from tests.channel.books import key_of, opening

# A limit on the size of files makes the kernel refuse writes as a failing disk does (EFBIG).
PROGRAM = """
import asyncio, resource, signal, sys
from channel.errors import LedgerUnavailableError
from channel.ledger.sqlite import SqliteLedger
from tests.channel.books import accepting, key_of, opening

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main(path):
    ledger = await SqliteLedger.open(path, exclusive=True)
    acknowledged = {}
    async def pay(number):
        key = key_of(number)
        for amount in range(1, 400):
            command = accepting(amount, key) if number in acknowledged else opening(amount, key)
            await ledger.apply(key, [command])
            acknowledged[number] = amount
    limit(300_000)
    failed = await asyncio.gather(*[pay(number) for number in range(40)], return_exceptions=True)
    assert all(isinstance(one, LedgerUnavailableError) for one in failed), failed
    for number, amount in acknowledged.items():
        state = await ledger.load(key_of(number))
        assert state.accepted == amount, (number, amount, state.accepted)
    limit(resource.RLIM_INFINITY)
    await asyncio.gather(*[pay(number) for number in range(40)])
    await ledger.close()
    again = await SqliteLedger.open(path, exclusive=True)
    assert [state.accepted for state in await again.list_channels()] == [399] * 40
    await again.close()
    print("acknowledged before the fault:", sum(acknowledged.values()))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
asyncio.run(main(sys.argv[1]))
"""


def test_writes_the_disk_refuses_are_not_acknowledged_and_later_ones_are(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", PROGRAM, str(tmp_path / "ledger.db")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("acknowledged before the fault:")


async def test_a_full_database_refuses_new_channels_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)

    async def limit(pages: int) -> None:
        await ledger._connection.run(  # noqa: SLF001 - the fault
            lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        )

    async def fill() -> None:
        for number in range(1000):
            await ledger.apply(key_of(number), [opening(1, key_of(number))])

    await limit(30)
    with pytest.raises(LedgerUnavailableError, match="full"):
        await fill()
    opened = len(await ledger.list_channels())
    assert opened > 20
    assert await ledger.load(key_of(opened)) is None
    applied = await ledger.apply(key_of(0), [])
    assert applied.state.accepted == 1
    await limit(1_000_000)
    await ledger.apply(key_of(opened), [opening(1, key_of(opened))])
    assert len(await ledger.list_channels()) == opened + 1
    await ledger.close()
