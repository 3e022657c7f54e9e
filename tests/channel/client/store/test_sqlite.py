"""The payment store: durable before it acknowledges, for one process or two, private to a user."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.client.payment.channel_pool import Tab
from channel.client.policy.budget import Budget, LockedBudget
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import SCHEMA_VERSION, PaymentStore
from channel.errors import BudgetExceededError, OverclaimError, StoreError
from channel.types import ChannelId, TxHash
from channel.wire.funding import (
    parse_deposit,
)
from tests.channel.client.provider import CHAIN_ID, NOW, PAYEE, PAYER, TOKEN
from tests.channel.client.store.test_record import KEY, account_of
from tests.channel.methods.evm.payloads import DEPOSITS as WIRE_DEPOSITS
from tests.waiting import PATIENCE_S

ORIGIN = account_of().origin
SCOPE = account_of().scope
BIG = 2**128 - 1
DEPOSITS = [parse_deposit(wire) for wire in WIRE_DEPOSITS.values()]

UNBOUND = LockedBudget(2**130, 2**130)


async def opened(path: Path, *accounts: ChannelRecord) -> PaymentStore:
    store = await PaymentStore.open(path)
    for account in accounts:
        await store.add(account, channels_max=100, locked=UNBOUND)
    return store


def charge_of(**changes: Any) -> ChargeRecord:
    fields: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "token": TOKEN,
        "payer": PAYER,
        "nonce": b"\x01" * 32,
        "purchase": b"\x09" * 32,
        "origin": ORIGIN,
        "url": "https://api.example/joke",
        "way": "charge",
        "payee": PAYEE,
        "amount": 30,
        "signed_at": int(NOW),
        "valid_before": int(NOW) + 60,
        "idempotency_key": "key",
        "is_key_given": False,
        "header": "Authorization",
    }
    return ChargeRecord(**(fields | changes))


def of(origin_max: int) -> Budget:
    return Budget(origin_max=origin_max, window_s=3_600)


async def signed(
    store: PaymentStore, amount: int, *, budget: int = 10**9, now: float = NOW
) -> ChannelRecord:
    return await store.sign_for(KEY, lambda _account, _left: amount, budget=of(budget), now=now)


async def signed_since(store: PaymentStore, since: float, *, now: float = NOW) -> int:
    """Return what counts against a budget whose window reaches back to `since`."""
    nothing = Budget(origin_max=0, window_s=int(now - since))
    with pytest.raises(BudgetExceededError) as caught:
        await store.require_budget(SCOPE, 1, budget=nothing, now=now)
    return caught.value.asked - 1


async def test_every_field_comes_back(tmp_path: Path) -> None:
    account = account_of(
        open_tx=TxHash(b"\x0a" * 32),
        end_tx=TxHash(b"\x0b" * 32),
        deposit=BIG,
        signed=2**64,
        vouchers=3,
        received=BIG - 1,
        units=7,
        lost=9,
        accepted=2**63,
        spent=2**65,
        receipt="text",
        settled=1,
        close_requested_at=5,
        state="closing",
    )
    store = await opened(tmp_path / "store.db", account)
    assert await store.load(KEY) == account
    assert await store.records() == [account]
    await store.close()
    store = await PaymentStore.open(tmp_path / "store.db")
    assert await store.load(KEY) == account
    await store.close()


async def test_signed_deposits_come_back_as_they_were_signed(tmp_path: Path) -> None:
    """F-75: of every kind, for what is presented again must be the same."""
    path = tmp_path / "store.db"
    for deposit in DEPOSITS:
        store = await opened(path, account_of(opening=deposit, top_up=deposit))
        await store.close()
        store = await PaymentStore.open(path)
        account = await store.get(KEY)
        assert account.opening == account.top_up == deposit
        await store.close()
        path.unlink()


async def test_a_deposit_that_was_tampered_with_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await opened(path, account_of(opening=DEPOSITS[0]))
    await store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE account SET opening = '{}'")
    store = await PaymentStore.open(path)
    with pytest.raises(StoreError, match="cannot be parsed"):
        await store.get(KEY)
    await store.close()


@pytest.mark.parametrize(
    ("version", "columns"),
    [
        (1, ("opening", "top_up", "waived", "goal", "agent")),
        (2, ("waived", "goal", "agent")),
        (3, ("agent",)),
        (4, ("agent",)),
    ],
)
async def test_a_store_of_an_older_version_is_migrated(
    tmp_path: Path, version: int, columns: tuple[str, ...]
) -> None:
    """Nothing that was signed is forgotten by an upgrade."""
    path = tmp_path / "store.db"
    store = await opened(path, account_of(signed=7))
    await store.add_charge(charge_of(), budget=of(100), now=NOW)
    await store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        for column in columns:
            connection.execute(f"ALTER TABLE account DROP COLUMN {column}")
        if version < 4:
            connection.execute("DROP TABLE charge")
        else:
            connection.execute("ALTER TABLE charge DROP COLUMN agent")
        connection.execute(f"PRAGMA user_version = {version}")
    store = await opened(path)
    account = await store.update(KEY, lambda found: replace(found, top_up=DEPOSITS[1]))
    assert (account.signed, account.opening) == (7, None)
    assert await store.charges() == ([charge_of()] if version == 4 else [])
    assert await store.for_agent("ann").records() == []
    await store.close()
    store = await PaymentStore.open(path)
    assert await store.get(KEY) == account
    await store.add_charge(charge_of(nonce=b"\x02" * 32), budget=of(100), now=NOW)
    await store.close()


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with (tmp_path / "store.db").open("xb"):
        (tmp_path / "store.db").chmod(0o644)
    store = await opened(tmp_path / "store.db", account_of())
    modes = {entry.name: entry.stat().st_mode & 0o777 for entry in os.scandir(tmp_path)}
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    await store.close()


async def test_commits_are_synchronous(tmp_path: Path) -> None:
    """CLIENT-06: what was acknowledged survives a power cut."""
    store = await opened(tmp_path / "store.db")
    assert store._connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # noqa: SLF001
    assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"  # noqa: SLF001
    await store.close()


async def test_signed_never_falls(tmp_path: Path) -> None:
    """CLIENT-06."""
    store = await opened(tmp_path / "store.db", account_of())
    assert (await signed(store, 100)).signed == 100
    assert (await signed(store, 40)).signed == 100
    assert (await signed(store, 100)).vouchers == 1
    await store.close()


async def test_what_change_raises_leaves_everything_as_it_was(tmp_path: Path) -> None:
    store = await opened(tmp_path / "store.db", account_of())

    def refuse(_account: ChannelRecord, _left: int) -> int:
        raise OverclaimError(asked=2, allowed=1, received=0)

    with pytest.raises(OverclaimError):
        await store.sign_for(KEY, refuse, budget=of(1), now=NOW)
    assert (await signed(store, 10)).signed == 10
    await store.close()


async def test_a_budget_is_kept_over_a_rolling_window(tmp_path: Path) -> None:
    """F-96: many small payments count together, and age out."""
    store = await opened(tmp_path / "store.db", account_of())
    await signed(store, 60, budget=100)
    await signed(store, 100, budget=100, now=NOW + 1_800)
    with pytest.raises(BudgetExceededError) as caught:
        await signed(store, 101, budget=100, now=NOW + 3_000)
    assert (caught.value.asked, caught.value.allowed) == (101, 100)
    assert (await signed(store, 160, budget=100, now=NOW + 3_700)).signed == 160
    await store.close()


async def test_the_budget_survives_a_restart(tmp_path: Path) -> None:
    """F-96."""
    store = await opened(tmp_path / "store.db", account_of())
    await signed(store, 100, budget=100)
    await store.close()
    store = await PaymentStore.open(tmp_path / "store.db")
    with pytest.raises(BudgetExceededError):
        await signed(store, 101, budget=100)
    assert await signed_since(store, NOW - 60) == 100
    assert await signed_since(store, NOW + 60, now=NOW + 120) == 0
    await store.close()


async def test_choosing_sees_what_is_left_of_the_budget(tmp_path: Path) -> None:
    store = await opened(tmp_path / "store.db", account_of())
    await signed(store, 70)
    seen = []

    def choose(account: ChannelRecord, left: int) -> int:
        seen.append((account.signed, left))
        return account.signed + left

    account = await store.sign_for(KEY, choose, budget=of(100), now=NOW)
    assert (seen, account.signed) == ([(70, 30)], 100)
    await store.close()


async def test_an_origin_has_so_many_channels_with_a_deposit(tmp_path: Path) -> None:
    """F-97: a server that ends every channel does not collect deposits without end."""
    store = await PaymentStore.open(tmp_path / "store.db")
    keys = [replace(KEY, channel_id=ChannelId(bytes([number]) * 32)) for number in range(4)]
    await store.add(account_of(key=keys[0]), channels_max=2, locked=UNBOUND)
    await store.add(account_of(key=keys[1], state="closed"), channels_max=2, locked=UNBOUND)
    await store.add(account_of(key=keys[2]), channels_max=2, locked=UNBOUND)
    with pytest.raises(BudgetExceededError, match="channels_per_origin_max"):
        await store.add(account_of(key=keys[3]), channels_max=2, locked=UNBOUND)
    await store.add(
        account_of(key=keys[3], origin="https://other:443"), channels_max=2, locked=UNBOUND
    )
    assert [account.key for account in await store.live_records(ORIGIN)] == [keys[0], keys[2]]
    await store.close()


async def test_a_cancelled_change_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """F-42."""
    store = await opened(tmp_path / "store.db", account_of())
    for amount in range(1, 30):
        task = asyncio.create_task(signed(store, amount))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    account = await signed(store, 1_000)
    assert await signed_since(store, NOW - 60) == account.signed == 1_000
    await store.close()


async def test_two_processes_share_a_store(tmp_path: Path) -> None:
    """Amounts of both are seen by both: neither signs below the other."""
    path = tmp_path / "store.db"
    first = await opened(path, account_of())
    second = await PaymentStore.open(path)
    await asyncio.gather(
        *(signed(first if amount % 2 else second, amount) for amount in range(1, 60))
    )
    assert (await signed(first, 0)).signed == (await signed(second, 0)).signed == 59
    await first.close()
    await second.close()


async def test_an_acknowledged_amount_survives_a_killed_process(tmp_path: Path) -> None:
    """CLIENT-06: between persist and send nothing is forgotten."""
    path = tmp_path / "store.db"
    store = await opened(path, account_of())
    await store.close()
    program = f"""
        import asyncio, os, signal
        from channel.client.policy.budget import Budget
        from channel.client.store.sqlite import PaymentStore
        from tests.channel.client.store.test_record import KEY

        async def main():
            store = await PaymentStore.open({str(path)!r})
            await store.sign_for(
                KEY, lambda account, left: 77, budget=Budget(origin_max=100, window_s=60), now={NOW}
            )
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    process = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(program)], check=False
    )
    assert process.returncode == -9
    store = await PaymentStore.open(path)
    account = await store.load(KEY)
    assert account is not None
    assert account.signed == 77
    await store.close()


async def test_a_channel_that_is_not_there_cannot_be_changed(tmp_path: Path) -> None:
    store = await PaymentStore.open(tmp_path / "store.db")
    assert await store.load(KEY) is None
    with pytest.raises(StoreError, match="not in the payment store"):
        await store.update(KEY, lambda account: account)
    await store.close()


async def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(
        StoreError, match=f"schema {SCHEMA_VERSION} or older, found {SCHEMA_VERSION + 1}"
    ):
        await PaymentStore.open(path)


async def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"no database, by far not, not even a page of one" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        await PaymentStore.open(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        await PaymentStore.open(tmp_path / "no folder" / "store.db")


async def test_a_closed_store_signs_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path / "store.db", account_of())
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await signed(store, 1)


async def test_a_disk_that_fails_signs_nothing(tmp_path: Path) -> None:
    """F-51: no amount is acknowledged that was not written."""
    store = await opened(tmp_path / "store.db", account_of())
    store._connection.execute("PRAGMA query_only = ON")  # noqa: SLF001
    with pytest.raises(StoreError, match="failed"):
        await signed(store, 5)
    await store.close()
    store = await PaymentStore.open(tmp_path / "store.db")
    assert (await signed(store, 0)).signed == 0
    await store.close()


async def test_clients_that_start_together_wait_for_each_other(tmp_path: Path) -> None:
    """F-41: also for the first look at a new file, for which SQLite would not wait."""
    path = tmp_path / "store.db"
    other = await asyncio.to_thread(sqlite3.connect, path, check_same_thread=False)
    await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
    opening = asyncio.create_task(PaymentStore.open(path))
    await asyncio.sleep(0.1)
    assert not opening.done()
    await asyncio.to_thread(other.rollback)
    await (await opening).close()
    other.close()


async def test_counts_of_a_write_that_is_cancelled_are_written_with_the_next(
    tmp_path: Path,
) -> None:
    """F-94, O-14: a stream that ends drops its voucher ahead while the disk is still busy."""
    store = await opened(tmp_path / "store.db", account_of())
    tab, may_go_on = Tab(account_of()), threading.Event()

    def occupy(account: ChannelRecord) -> ChannelRecord:
        may_go_on.wait(PATIENCE_S)
        return account

    busy = asyncio.create_task(store.update(KEY, occupy))
    tab.change(lambda counts: replace(counts, received=40, units=4))
    writing = asyncio.create_task(tab.store(store))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait({writing})
    assert writing.cancelled()
    may_go_on.set()
    await busy
    await tab.store(store)
    stored = await store.get(KEY)
    assert (stored.received, stored.units) == (40, 4)
    await store.close()
