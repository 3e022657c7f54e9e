"""The chain side on a local chain: gas and time of a close, calls to a node, the settler's CPU."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from bench_samples import Row, Run
from channel.types import ChannelId, TxHash
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.watch.watcher import WatchLimits
from tests.faults.chain_world import World, chain_world, fill_books

__all__ = ["chain_rows"]

HOUR_S: Final = 3600
CHANNELS: Final = 10_000
BATCHES: Final = (1, 10, 100)


async def chain_rows(run: Run) -> AsyncIterator[Row]:
    """Measure a provider's costs (gas, calls, CPU), and the time from an exit to the close."""
    for size in BATCHES:
        gas, per_cpu_s = [], []
        for number in range(1 if run.is_quick else 3):
            async with _world(run.folder / f"batch-{size}-{number}") as (chain, world):
                used, cpu_s = await _defend(chain, world, size)
                gas.append(used / size)
                per_cpu_s.append(size / cpu_s)
        besides = "defended in one go, payers' exits in one block"
        yield Row(name=f"gas a channel, {size} closed", unit="gas", samples=gas, besides=besides)
        yield Row(name=f"channels closed a second of CPU, {size}", unit="1/s", samples=per_cpu_s)
    yield await _exit_row(run)
    async for row in _idle_rows(run):
        yield row


@asynccontextmanager
async def _world(
    folder: Path, *, block_time_s: int | None = None
) -> AsyncIterator[tuple[Devnet, World]]:
    await asyncio.to_thread(folder.mkdir)
    async with AsyncExitStack() as open_:
        chain = await open_.enter_async_context(Devnet.start(block_time_s=block_time_s))
        yield chain, await open_.enter_async_context(chain_world(chain, folder))


async def _defend(chain: Devnet, world: World, size: int) -> tuple[int, float]:
    """Return the gas of closing so many channels, and this process's CPU time for it."""
    approve = abi.approve.encode(chain.values.escrow, 2**128)
    await chain.sender("payer").send(chain.values.token, approve)
    opened = [await world.books.open(accepted=100, spent=100) for _ in range(size)]
    payer = chain.sender("payer")
    async with chain.mining_paused():
        for channel_id in opened:
            await payer.broadcast(chain.values.escrow, abi.request_close.encode(channel_id))
        await chain.mine()
    watcher = world.watcher(limits=WatchLimits())
    began = time.process_time()
    await watcher.sweep()
    cpu_s = time.process_time() - began
    return await _gas(chain, world, opened), cpu_s


async def _gas(chain: Devnet, world: World, closed: Sequence[ChannelId]) -> int:
    hashes = {(await world.books.state(channel_id)).close_tx for channel_id in closed}
    receipts = [await chain.rpc.receipt(TxHash(tx_hash)) for tx_hash in hashes]
    return sum(receipt.gas_used for receipt in receipts if receipt is not None)


async def _exit_row(run: Run) -> Row:
    """Measure from the block of a payer's exit to the block of the payee's close."""
    samples = []
    async with (
        _world(run.folder / "exits", block_time_s=1) as (_, world),
        world.watching(limits=WatchLimits()),
    ):
        for _ in range(run.repeats):
            channel_id = await world.books.open(accepted=100, spent=100)
            await world.leave(channel_id)  # returns once mined
            began = time.monotonic()
            await world.until(channel_id, is_finalized=True, within_s=60)
            samples.append(time.monotonic() - began)
    besides = "1 s blocks, polling each 2 s"
    return Row(name="an exit to our close mined", unit="s", samples=samples, besides=besides)


async def _idle_rows(run: Run) -> AsyncIterator[Row]:
    """Count calls to a node for so many open channels without activity."""
    async with _world(run.folder / "idle") as (chain, world):
        await fill_books(world, CHANNELS)
        limits = WatchLimits()
        watcher = world.watcher(limits=limits)
        world.node.calls = 0
        began = time.monotonic()
        await watcher.sweep()
        sweep_s, sweep_calls = time.monotonic() - began, world.node.calls
        idle = world.watcher(limits=replace(limits, interval_s=HOUR_S))
        await idle.look()
        world.node.calls = 0
        await idle.look()
        look_calls = world.node.calls
        await chain.mine()
        world.node.calls = 0
        await idle.look()
        block_calls = world.node.calls
    a_look = (look_calls + block_calls) / 2  # as if every other look found a block
    an_hour = HOUR_S / limits.poll_interval_s * a_look + HOUR_S / limits.interval_s * sweep_calls
    yield Row(name=f"calls a sweep of {CHANNELS:,}", unit="calls", samples=[sweep_calls])
    yield Row(name=f"a sweep of {CHANNELS:,}", unit="s", samples=[sweep_s])
    yield Row(
        name="calls a channel and hour",
        unit="calls",
        samples=[an_hour / CHANNELS],
        besides=f"{CHANNELS:,} channels, a block at every other look",
    )
