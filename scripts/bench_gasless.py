"""Opening at the provider's gas, with Circle's USDC: time to the first paid byte, gas by type."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from bench_samples import Row, Run
from settlement import abi
from settlement.devnet import Devnet
from tests.e2e.selling import PRICE
from tests.e2e.sponsored import Sponsored, sponsor_deposits

__all__ = ["gasless_rows"]

KINDS: Final = ("authorization", "permit2")
CALLS: Final = {
    "open, authorization": abi.open_with_authorization,
    "open, permit2": abi.open_with_permit2,
    "top-up, authorization": abi.top_up_with_authorization,
    "top-up, permit2": abi.top_up_with_permit2,
}


async def gasless_rows(run: Run) -> AsyncIterator[Row]:
    """Measure what a payer waits, at blocks of a second, and what its provider pays."""
    folder = run.folder / "gasless"
    await asyncio.to_thread(folder.mkdir)
    async with (
        Devnet.start(token="usdc") as chain,  # noqa: S106 -- a token of value
        sponsor_deposits(chain, folder) as sponsored,
    ):
        await sponsored.payer.approve_permit2()
        await chain.rpc.command("evm_setAutomine", False)  # noqa: FBT003 -- the wire's own
        await chain.rpc.command("evm_setIntervalMining", 1)
        for kind in KINDS:
            samples = [await _first_byte(sponsored, kind, n) for n in range(2 + run.repeats)]
            yield Row(
                name=f"sponsored open to first paid byte, {kind}",
                unit="s",
                samples=samples,
                besides="1 s blocks, asked at any moment of one",
            )
        await chain.rpc.command("evm_setAutomine", True)  # noqa: FBT003
        for kind in KINDS:
            answer = await sponsored.provider.manage(await sponsored.payer.top_up(kind))
            answer.raise_for_status()
        used = await asyncio.to_thread(_gas, folder / "ledger.sqlite")
    for name, function in CALLS.items():
        samples = used[function.selector]
        yield Row(name=f"gas of a sponsored {name}", unit="gas", samples=samples, besides="USDC")


async def _first_byte(sponsored: Sponsored, kind: str, number: int) -> float:
    """Return how long a payer without a channel waits for what it buys."""
    payer, provider = sponsored.payer, sponsored.provider
    payer.next_channel()
    payload = await payer.opening(PRICE, kind)
    credential = await provider.credential(payload)
    await asyncio.sleep(0.37 * number)  # not always at the same moment of a block
    began = time.perf_counter()
    answer = await provider.send(credential)
    taken_s = time.perf_counter() - began
    answer.raise_for_status()
    return taken_s


def _gas(journal: Path) -> dict[bytes, list[float]]:
    """Return what each call used, by its selector."""
    connection = sqlite3.connect(journal)
    try:
        rows = connection.execute("SELECT calldata, gas_used FROM chain_transaction").fetchall()
    finally:
        connection.close()
    used: dict[bytes, list[float]] = {}
    for calldata, gas in rows:
        used.setdefault(calldata[:4], []).append(float(gas))
    return used
