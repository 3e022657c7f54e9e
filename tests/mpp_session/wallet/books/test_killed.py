"""Two hundred agents ask for twice the budget, and their wallet is killed again and again.

The same happened to others with limits in memory, or with a check before the booking: LiteLLM#34732
and #26672, CDP SpendControls ($300 to $1,700 spent past a cap of $150 after restarts and with ten
replicas), vaduno v0.2.0 (two processes were two budgets), nodetool PR#5489 (children spent $2.00 of
$1.25).
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from channel.errors import StoreError
from mpp_session.wallet.audit.trail import Trail, open_trail, read_entries
from mpp_session.wallet.audit.verify import verify
from tests.mpp_session.wallet.books.small_policy import NOW, open_books
from tests.mpp_session.wallet.books.spender import AGENTS, BUDGET, POLICY, WANTED
from tests.waiting import PATIENCE_S

KILLS = int(os.environ.get("KILLS", "5"))


class Wallet:
    """The file, and what has left the processes that had it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "wallet.db"
        self.signed = folder / "signed"
        self.signed.touch()
        self.unsent = 0
        """Committed, and never signed."""

    def start(self, seed: int, *, stop_after: int = 0) -> subprocess.Popen[bytes]:
        module = "tests.mpp_session.wallet.books.spender"
        words = [str(self.path), str(self.signed), str(seed), str(stop_after)]
        return subprocess.Popen([sys.executable, "-m", module, *words])  # noqa: S603

    def kill_at(self, child: subprocess.Popen[bytes], lines: int) -> None:
        """Kill a wallet once so many more amounts have left it, or let it end before."""
        self.wait_for(child, lines)
        child.send_signal(signal.SIGKILL)
        assert child.wait(PATIENCE_S) in {0, -signal.SIGKILL}, "it failed by itself"

    def wait_for(self, child: subprocess.Popen[bytes], lines: int) -> None:
        """Wait until so many more amounts have left a wallet, or it has ended."""
        size, each = self.signed.stat().st_size, len(f"100 1 {child.pid}-100-0\n")
        while child.poll() is None and self.signed.stat().st_size < size + lines * each:
            time.sleep(0.001)

    def lines(self) -> list[str]:
        return self.signed.read_text().splitlines()

    async def check(self) -> int:
        """Check everything that must hold at any time, and return what is spent."""
        books = await open_books(self.path, POLICY, trail=Trail(), now=lambda: NOW)
        spent = {budget.envelope: budget.spent for budget in await books.budgets()}
        locked = {budget.envelope: budget.locked for budget in await books.budgets()}
        records = await books.store.records()
        counted = await books.store.transact(
            lambda db: [record[0] for record in db.execute("SELECT count(*) FROM envelope_entry")]
        )
        await books.close()
        assert spent["lab"] == spent["company"] == sum(record.signed for record in records)
        assert spent["lab"] <= BUDGET
        assert locked["lab"] == locked["company"] == len(records) * WANTED
        assert counted[0] <= 4 * AGENTS
        by_number: dict[int, list[int]] = {}
        works: set[str] = set()
        for line in self.lines():
            channel, amount, work = line.split()
            by_number.setdefault(int(channel), []).append(int(amount))
            assert work not in works
            works.add(work)
        signed = {int.from_bytes(record.key.channel_id): record.signed for record in records}
        for number, amounts in by_number.items():
            assert all(before < after for before, after in pairwise(amounts)), "signed twice"
            assert amounts[-1] <= signed[number], "signed and not durable"
        self.unsent = spent["lab"] - sum(amounts[-1] for amounts in by_number.values())
        return spent["lab"]


@pytest.mark.timeout(90 + 30 * KILLS)
async def test_killed_at_any_moment_a_budget_is_kept_to_the_base_unit(tmp_path: Path) -> None:
    """After each restart nothing is overspent or signed twice; in the end all is spent."""
    draw = random.Random(KILLS)  # noqa: S311
    wallet = Wallet(tmp_path)
    before = 0
    for seed in range(KILLS):
        child = wallet.start(seed)
        await asyncio.to_thread(wallet.kill_at, child, draw.randint(0, 400 // (KILLS + 1)))
        spent = await wallet.check()
        assert spent >= before
        before = spent
    child = wallet.start(KILLS)
    if KILLS < 10:
        await refuse_a_second_one(wallet, child)
    assert await asyncio.to_thread(child.wait, PATIENCE_S) == 0
    assert await wallet.check() == BUDGET
    await asyncio.to_thread(check_trail, wallet.path)


def check_trail(path: Path) -> None:
    """Every base unit is in the trail, and the trail is whole."""
    with closing(open_trail(path)) as db:
        vouchers = [each for each in read_entries(db) if each.kind == "voucher"]
        assert sum(int(each.fields["voucher"]["delta"]) for each in vouchers) == BUDGET
        assert verify(db, b"", None).is_good


async def refuse_a_second_one(wallet: Wallet, child: subprocess.Popen[bytes]) -> None:
    """A second process finds the file locked, for as long as the first one runs."""
    await asyncio.to_thread(wallet.wait_for, child, 1)
    if child.poll() is None:
        with pytest.raises(StoreError, match=f"another wallet process uses {wallet.path}"):
            await open_books(wallet.path, POLICY)


async def test_killed_between_commit_and_signature_costs_the_difference(tmp_path: Path) -> None:
    """What was committed and never signed is counted, and the next amount lies above it."""
    wallet = Wallet(tmp_path)
    child = wallet.start(1, stop_after=30)
    assert await asyncio.to_thread(child.wait, PATIENCE_S) == -signal.SIGKILL
    assert len(wallet.lines()) == 29
    spent = await wallet.check()
    assert 0 < wallet.unsent <= 2 * WANTED, "of the commit, and one whose task did not run yet"
    assert spent < BUDGET
