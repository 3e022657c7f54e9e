"""Each acknowledgement follows a sync of what it acknowledges, as the kernel saw it."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.faults.tracer import Event, read_events, trace

CHANNELS = 9
VOUCHERS = 25

# One process stores vouchers, first one at a time, then eight at a time. On a socket it says
# when it asks for one to be stored, and when that was acknowledged.
PROGRAM = """
import asyncio, socket, sys
from channel.ledger.sqlite import SqliteLedger
from tests.channel.books import accepting, key_of, opening

async def main(path, sync, channels, vouchers):
    ours, theirs = socket.socketpair()
    ledger = await SqliteLedger.open(path, exclusive=True)
    await ledger._connection.run(lambda db: db.execute("PRAGMA synchronous = " + sync))
    def say(what):
        ours.send(what)
        theirs.recv(len(what))
    async def pay(number):
        key = key_of(number)
        await ledger.apply(key, [opening(0, key)])
        for amount in range(1, vouchers + 1):
            say(b"asked %d %d" % (number, amount))
            await ledger.apply(key, [accepting(amount, key)])
            say(b"acknowledged %d %d" % (number, amount))
    await pay(0)
    await asyncio.gather(*[pay(number) for number in range(1, channels)])
    await ledger.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def early_acknowledgements(events: Iterable[Event], log: str) -> tuple[list[bytes], int]:
    """Return whose acknowledgement left with no write and sync of `log` since it was asked for.

    Also how many acknowledgements there were. A batch's acknowledgements follow one sync, and
    what the next batch is writing meanwhile is not acknowledged yet.
    """
    early = []
    written = synced = acknowledged = 0
    asked: dict[bytes, int] = {}
    for event in events:
        if event.call == "recvfrom":
            continue  # the other end of the pair, which only takes what was said
        said, _, what = event.data.partition(b" ")
        if event.target == log and event.is_sync:
            synced = written
        elif event.target == log:
            written += 1
        elif said == b"asked":
            asked[what] = written
        elif said == b"acknowledged":
            acknowledged += 1
            if synced <= asked[what]:
                early.append(what)
    return early, acknowledged


def run_traced(folder: Path, sync: str) -> tuple[list[bytes], int]:
    database, recorded = folder / "ledger.db", folder / "events"
    numbers = [str(CHANNELS), str(VOUCHERS)]
    command = [sys.executable, "-c", PROGRAM, str(database), sync, *numbers]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with trace(command, recorded, env=environment) as run:
        assert run.wait(30) == 0
    return early_acknowledgements(read_events(recorded), f"{database}-wal")


def test_a_sync_stands_between_each_voucher_and_its_acknowledgement(tmp_path: Path) -> None:
    """ACC-04, F-51."""
    assert run_traced(tmp_path, "FULL") == ([], CHANNELS * VOUCHERS)


@pytest.mark.parametrize("sync", ["NORMAL", "OFF"])
def test_the_trace_shows_it_when_the_sync_is_left_out(tmp_path: Path, sync: str) -> None:
    early, acknowledged = run_traced(tmp_path, sync)
    assert acknowledged == CHANNELS * VOUCHERS
    assert len(early) > acknowledged // 2
