"""A voucher from its header to its receipt's header: in memory, on SQLite, on PostgreSQL."""

import asyncio
import gc
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from bench_samples import Row, Run, raw_us
from bench_world import MemoryLedger, World, headers_of, key_of, random_keys
from channel.ledger.interface import Ledger
from channel.ledger.sqlite import SqliteLedger
from channel.ledger.url import open_ledger
from channel.types import ChannelKey

__all__ = ["bare_commit_us", "channel_rows", "memory_rows", "postgres_rows", "sqlite_rows"]

IN_FLIGHT: Final = {1: 60, 8: 60, 64: 60, 512: 12}
"""Channels in flight, each with one voucher at a time: vouchers a channel and sample."""
OPENING_AT_ONCE: Final = 512


class Flight(msgspec.Struct, frozen=True):
    """One sample: many channels concurrently."""

    us: float
    p50_ms: float
    p99_ms: float


async def fly(
    world: World, columns: Sequence[Sequence[str]], *, is_turn_each: bool = False
) -> Flight:
    """Send each column's vouchers one after the other, all columns concurrently.

    `is_turn_each` yields to the event loop before each voucher, as a request from a socket does.
    With a disk, the wait for it yields anyway.
    """
    latencies: list[float] = []

    async def run(column: Sequence[str]) -> None:
        for header in column:
            if is_turn_each:
                await asyncio.sleep(0)
            began = time.perf_counter()
            await world.voucher(header)
            latencies.append(time.perf_counter() - began)

    gc.collect()
    began = time.perf_counter()
    await asyncio.gather(*map(run, columns))
    elapsed = time.perf_counter() - began
    ordered = sorted(latencies)
    return Flight(
        us=elapsed / len(ordered) * 1e6,
        p50_ms=statistics.median(ordered) * 1e3,
        p99_ms=ordered[int(len(ordered) * 0.99)] * 1e3,
    )


async def memory_rows(run: Run) -> AsyncIterator[Row]:
    """Measure the whole path with the rules and no disk: one by one, and many together."""
    world = World(MemoryLedger())
    keys = [key_of(number) for number in range(64)]
    await world.open(keys)
    singly, together = [], []
    for sample in range(run.repeats):
        columns = headers_of(world.challenge, keys, 20, start=20 * sample)
        # The best of short runs, as raw verification is measured.
        best = min([await _one_by_one_us(world, columns[i : i + 4]) for i in range(0, 32, 4)])
        singly.append((best, raw_us()))
        together.append(((await fly(world, columns[32:], is_turn_each=True)).us, raw_us()))
    await world.engine.aclose()
    for name, taken, goal in (
        ("header in, receipt out, in memory", singly, 1.7),
        ("the same, 32 in flight, all cores", together, None),
    ):
        yield Row.paired(name, taken, goal=goal)


async def _one_by_one_us(world: World, columns: Sequence[Sequence[str]]) -> float:
    headers = [header for column in columns for header in column]
    began = time.perf_counter()
    for header in headers:
        await world.voucher(header)
    return (time.perf_counter() - began) / len(headers) * 1e6


async def sqlite_rows(run: Run) -> AsyncIterator[Row]:
    """Measure it durable on SQLite, synchronous=FULL."""
    bare = [bare_commit_us(run.folder) for _ in range(run.repeats)]
    yield Row(name="one bare commit, SQLite FULL", unit="us", samples=bare)
    for in_flight, rises in IN_FLIGHT.items():
        ledger = await SqliteLedger.open(run.folder / f"{in_flight}.db", exclusive=True)
        async for row in _durable_rows(run, ledger, "SQLite FULL", in_flight, rises):
            yield row
    yield await _alone(run)


async def _alone(run: Run) -> Row:
    """Measure one voucher alone against one bare commit, taken in turns."""
    ledger = await SqliteLedger.open(run.folder / "alone.db", exclusive=True)
    world = World(ledger)
    await world.open([key_of(0)])
    taken = []
    for sample in range(run.repeats):
        (column,) = headers_of(world.challenge, [key_of(0)], 40, start=40 * sample)
        before = bare_commit_us(run.folder)
        flight = await fly(world, [column])
        after = bare_commit_us(run.folder)
        taken.append((flight.p50_ms * 1e3, (before + after) / 2))
    await world.engine.aclose()
    await ledger.close()
    return Row.paired("one voucher alone / one bare commit", taken, goal=2.0)


def bare_commit_us(folder: Path) -> float:
    """Return the median of bare commits to a SQLite file of one table."""
    with sqlite3.connect(folder / "bare.db", isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, row BLOB)")
        times = []
        for _ in range(40):
            row = os.urandom(300)
            began = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT OR REPLACE INTO t VALUES (1, ?)", (row,))
            connection.execute("COMMIT")
            times.append((time.perf_counter() - began) * 1e6)
    connection.close()
    return statistics.median(times)


async def postgres_rows(run: Run) -> AsyncIterator[Row]:
    """Measure it durable on PostgreSQL, synchronous_commit on."""
    with postgres() as url:
        for in_flight, rises in IN_FLIGHT.items():
            ledger = await open_ledger(url, exclusive=True)
            async for row in _durable_rows(run, ledger, "PostgreSQL", in_flight, rises):
                yield row


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL, or use the one DATABASE_URL names; gives its URL."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    import pgserver.postgres_server  # noqa: PLC0415 - no wheel for every Python

    folder = Path(tempfile.mkdtemp(prefix="mpp-session-bench-"))  # its own user must reach it
    folder.chmod(0o755)
    server = pgserver.postgres_server.get_server(folder / "data")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


async def _durable_rows(
    run: Run, ledger: Ledger, where: str, in_flight: int, rises: int
) -> AsyncIterator[Row]:
    world = World(ledger)
    # Their own channels, where databases are shared between the numbers in flight.
    keys = [key_of(in_flight * 10**6 + number) for number in range(in_flight)]
    await open_many(world, keys)
    taken = []
    for sample in range(run.repeats):
        columns = headers_of(world.challenge, keys, rises, start=rises * sample)
        taken.append((await fly(world, columns), raw_us()))
    await world.engine.aclose()
    await ledger.close()
    p50 = statistics.median(flight.p50_ms for flight, _ in taken)
    p99 = statistics.median(flight.p99_ms for flight, _ in taken)
    rate = 1e6 / statistics.median(flight.us for flight, _ in taken)
    goals = {("SQLite FULL", 64): 2.0, ("PostgreSQL", 64): 2.7}
    yield Row.paired(
        f"durable on {where}, {in_flight} in flight",
        [(flight.us, raw) for flight, raw in taken],
        goal=goals.get((where, in_flight)),
        besides=f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {rate:,.0f} vouchers/s",
    )


async def open_many(world: World, keys: Sequence[ChannelKey]) -> None:
    """Open channels many at a time."""
    for start in range(0, len(keys), OPENING_AT_ONCE):
        await asyncio.gather(*(world.open([key]) for key in keys[start : start + OPENING_AT_ONCE]))


async def channel_rows(run: Run) -> AsyncIterator[Row]:
    """Measure the same vouchers among a thousand channels and among a million."""
    many = 100_000 if run.is_quick else 1_000_000
    few_file, many_file = run.folder / "few.db", run.folder / "many.db"
    few_ledger = await SqliteLedger.open(few_file, exclusive=True)
    # Two generations, of which either may hold them all.
    held = await SqliteLedger.open(many_file, exclusive=True, channels_cached_max=2 * many)
    before = _resident_kib()
    await _fill(World(few_ledger), 1_000)
    await _fill(World(held), many)
    grown = _resident_kib() - before
    in_memory = await _compare(run, few_ledger, held, many, start=0)
    await held.close()
    on_disk_ledger = await SqliteLedger.open(many_file, exclusive=True, channels_cached_max=2)
    on_disk = await _compare(run, few_ledger, on_disk_ledger, many, start=run.repeats)
    await on_disk_ledger.close()
    await few_ledger.close()
    for name, pairs, goal in (
        (f"a voucher among {many:,} channels / 1,000", in_memory, 1.2),
        ("the same, none of them in memory", on_disk, None),
    ):
        yield Row.paired(name, pairs, goal=goal)
    yield Row(
        name="memory per idle channel",
        unit="bytes",
        samples=[grown * 1024 / many],
        besides=f"{grown / 1024:.0f} MiB for {many:,}, all of them in memory",
    )


async def _compare(
    run: Run, few: Ledger, much: Ledger, many: int, *, start: int
) -> list[tuple[float, float]]:
    """Time vouchers of 512 channels picked at random, each paying once, on either ledger.

    What the chain says of them counts as just read: asking is not what is measured.
    """
    pairs = []
    for sample in range(start, start + run.repeats):
        taken = []
        for ledger, channels in ((few, 1_000), (much, many)):
            world = World(ledger)
            keys = random_keys(512, channels)
            for key in keys:
                world.engine._facts.mark_read(key)  # noqa: SLF001
            columns = _once(world, keys, sample)
            taken.append((await fly(world, columns)).us)
            await world.engine.aclose()
        pairs.append((taken[1], taken[0]))
    return pairs


async def _fill(world: World, channels: int) -> None:
    for start in range(0, channels, 10_000):
        await open_many(world, [key_of(n) for n in range(start, min(start + 10_000, channels))])


def _once(world: World, keys: Sequence[ChannelKey], sample: int) -> list[list[str]]:
    """Return one voucher a channel, shared by 64 senders."""
    headers = [column[0] for column in headers_of(world.challenge, keys, 1, start=sample)]
    return [headers[start::64] for start in range(64)]


def _resident_kib() -> int:
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
