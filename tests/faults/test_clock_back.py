"""O-85: a lease of a dead process ends after the clock is set back: each kind, both databases."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from channel.engine.lease_renewer import LeaseRenewer
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger, sqlite_path
from channel.types import Address
from settlement.tx.journal.url import open_journal
from settlement.tx.lease import LeaseLimits, wait_for_lease
from tests.channel.books import KEY, opening, reserving, streaming
from tests.waiting import PATIENCE_S, put_ahead

HOUR = 3600
LEASE_S = 60
ACCOUNT = Address(b"\x05" * 20)

SetBack = Callable[[float], Awaitable[None]]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def set_back(url: str) -> SetBack:
    """Let the settler's lease be what it was before the database's clock went back."""

    async def shift(seconds: float) -> None:
        change = f"UPDATE settler_lease SET expires_at = expires_at + {seconds}"  # noqa: S608
        if url.startswith("sqlite:"):
            with closing(sqlite3.connect(sqlite_path(url))) as database:
                database.execute(change + ", has_lock = 0")
                database.commit()
            return
        connection = await asyncpg.connect(url)
        await connection.execute(change)
        await connection.close()

    return shift


@pytest.mark.parametrize("by_s", [HOUR, 10, 365 * 24 * HOUR])
async def test_a_dead_settlers_lease_is_void(url: str, set_back: SetBack, by_s: int) -> None:
    """An hour, a little more than the lease, and a battery that is empty."""
    limits = LeaseLimits(ttl_s=6.0, poll_s=0.01)
    dead = await open_journal(url, chain_id=1, account=ACCOUNT)
    assert await dead.take_lease("dead", ttl_s=limits.ttl_s) == 1
    await dead.close()
    await set_back(by_s)
    standby = await open_journal(url, chain_id=1, account=ACCOUNT)
    if by_s >= HOUR:
        assert await standby.lease_holder() is None
    async with asyncio.timeout(PATIENCE_S):
        assert await wait_for_lease(standby, "standby", limits=limits) == 2
    assert await standby.lease_holder() == "standby"
    await standby.close()


async def test_a_lease_that_runs_is_left_alone(url: str) -> None:
    one, other = [await open_journal(url, chain_id=1, account=ACCOUNT) for _ in range(2)]
    assert await one.take_lease("one", ttl_s=60) == 1
    assert await other.take_lease("other", ttl_s=60) is None
    for journal in (one, other):
        await journal.close()


@pytest.fixture
async def books(url: str) -> AsyncIterator[Ledger]:
    ledger = await open_ledger(url, exclusive=False)
    yield ledger
    await ledger.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_what_a_dead_worker_held_ends(books: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's as spent, a request's released, within two leases; what lives is renewed."""
    clock = Clock()
    renewer = LeaseRenewer(ledger=books, now=clock, lease_s=LEASE_S)
    lease = int(clock.now) + LEASE_S
    await books.apply(
        KEY,
        [
            opening(100),
            streaming(b"dead stream", 5, lease=lease),
            reserving(b"dead request", 7, lease=lease),
            reserving(b"alive", 11, lease=lease),
        ],
    )
    renewer.keep(KEY, b"alive", lease)
    clock.now -= HOUR
    for _ in range(9):  # a sweep each quarter of a lease
        await renewer.sweep()
        clock.now += LEASE_S / 4
        put_ahead((clock.now - 1_800_000_000 + HOUR) * 1.0, monkeypatch)
    state = await books.load(KEY)
    assert state is not None
    assert [held.reservation_id for held in state.reservations] == [b"alive"]
    assert (state.spent, state.reserved) == (5, 11)
    assert state.reservations[0].lease_expires_at < clock.now + 2 * LEASE_S
    await renewer.close()


async def test_what_another_worker_renews_is_left_alone(
    books: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    owner, other = [LeaseRenewer(ledger=books, now=clock, lease_s=LEASE_S) for _ in range(2)]
    lease = int(clock.now) + LEASE_S
    await books.apply(KEY, [opening(100), streaming(b"alive", 5, lease=lease)])
    owner.keep(KEY, b"alive", lease)
    clock.now -= LEASE_S / 2  # less than a lease: it looks young for longer
    for step in range(20):
        await other.sweep()
        await owner.sweep()
        clock.now += LEASE_S / 4
        put_ahead(step * LEASE_S / 4, monkeypatch)
    state = await books.load(KEY)
    assert state is not None
    assert (state.spent, state.reserved) == (0, 5)
    for renewer in (owner, other):
        await renewer.close()
