"""On a full or failing disk the ledger acknowledges and loses nothing, and recovers (F-51)."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from channel.errors import LedgerUnavailableError
from channel.ledger.sqlite import SqliteLedger
from tests.channel.books import KEY, accepting, key_of, opening

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


OPEN = """
import asyncio, os, signal, sys
from channel.ledger.sqlite import SqliteLedger
from tests.channel.books import KEY, opening

async def main(path):
    ledger = await SqliteLedger.open(path, exclusive=True)
    await ledger.apply(KEY, [opening(0)])
    os._exit(0)  # the log is left behind

asyncio.run(main(sys.argv[1]))
"""

# One connection's sync fails, while the disk takes those of the others: if the ledger went on, it
# would acknowledge writes that are lost. At the end the test kills it, and its log stays behind.
FAILED_SYNC = """
import asyncio, os, signal, sqlite3, sys
from channel.errors import StorageFailedError
from channel.ledger.sqlite import SqliteLedger
from channel.ledger.sqlite_connection import connect
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.sponsor.orders.sqlite import SqliteOrders
from pathlib import Path
from tests.channel.books import ESCROW, KEY, accepting, opening
from tests.faults.failing_syncs import fail_syncs
from tests.settlement.sponsor.orders.test_interface import order

async def main(path, who):
    ledger = await SqliteLedger.open(path, exclusive=True)
    journal = await SqliteJournal.open(path, chain_id=1, account=ESCROW)
    orders = await SqliteOrders.open(path, chain_id=1, escrow=ESCROW)
    changes = {
        "voucher": lambda amount: ledger.apply(KEY, [opening(0), accepting(amount)]),
        "lease": lambda _: journal.renew_lease(ttl_s=60),
        "order": lambda number: orders.adopt(order(number)),
    }
    owners = {"voucher": ledger, "lease": journal, "order": orders}
    await journal.take_lease("a holder", ttl_s=60)
    for change in changes.values():
        await change(50)
    await owners[who]._connection.run(lambda db: fail_syncs())
    changes["pruning"] = lambda _: ledger.prune(0)
    changes["reading"] = lambda _: ledger.list_channels()
    changes["opening"] = lambda _: connect(path)
    for name in (who, *changes):
        try:
            await changes[name](60)
        except StorageFailedError:
            continue
        print(f"after {who} failed, {name} went on", flush=True)
        os._exit(1)
    disk = sqlite3.connect(path)
    disk.execute("PRAGMA synchronous = FULL")
    disk.execute("CREATE TABLE it_takes_syncs (again)")
    disk.commit()
    print("stopped", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )


@pytest.mark.parametrize("who", ["voucher", "lease", "order"])
async def test_after_one_failed_sync_nothing_of_the_process_relies_on_the_file(
    tmp_path: Path, who: str
) -> None:
    """F-51: ledger, journal and orders; the next process begins with all of the log on disk."""
    path = tmp_path / "ledger.db"
    log = path.with_name("ledger.db-wal")
    done = await asyncio.to_thread(run_program, FAILED_SYNC, str(path), who)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "stopped\n"), done.stderr
    assert log.stat().st_size > 0
    again = await SqliteLedger.open(path, exclusive=True)
    assert log.stat().st_size == 0
    applied = await again.apply(KEY, [accepting(70)])
    assert (applied.require().accepted, await again.faults()) == (70, [])
    await again.close()


def test_a_ledger_that_cannot_be_synced_does_not_open(tmp_path: Path) -> None:
    """F-51, decision 15."""
    path = tmp_path / "ledger.db"
    assert run_program(OPEN, str(path)).returncode == 0
    refused = run_program(
        f"from tests.faults.failing_syncs import fail_syncs; fail_syncs()\n{OPEN}", str(path)
    )
    assert "StorageFailedError" in refused.stderr


def test_writes_the_disk_refuses_are_not_acknowledged_and_later_ones_are(tmp_path: Path) -> None:
    done = run_program(PROGRAM, str(tmp_path / "ledger.db"))
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
