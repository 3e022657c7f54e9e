"""A reload reads the prices whole, reports how it ended, and leaves the old ones if it failed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mpp_session.gateway.reloading import PriceReloads
from mpp_session.process.control_file import Running as ControlState
from mpp_session.process.control_file import find_running
from mpp_session.settings.price_rows import read_price_file
from mpp_session.testing.chain import TestChain
from tests.mpp_session.gateway.conftest import RunGateway, Running, build_config
from tests.waiting import until


def write(file: Path, amount: int, model: str = "m") -> None:
    file.write_text(f'[[prices]]\nmodel = "{model}"\nper_unit = {amount}\n')


@asynccontextmanager
async def reloads(
    run_gateway: RunGateway, devnet: TestChain, folder: Path
) -> AsyncIterator[tuple[Running, PriceReloads]]:
    file = folder / "prices.toml"
    await asyncio.to_thread(write, file, 1)
    settings = {
        "prices__rows": [{"model": "m", "per_unit": 1}],
        "ledger__state_dir": str(folder),
    }
    config = build_config(devnet, "http://127.0.0.1:9", folder, **settings)
    async with run_gateway(**settings) as gateway:
        found = PriceReloads(config, lambda: read_price_file(file))
        running = asyncio.create_task(found.run(gateway.gateway.change_prices))
        try:
            yield gateway, found
        finally:
            running.cancel()
            await asyncio.wait({running})


async def reload(reloading: PriceReloads, folder: Path, number: int) -> ControlState:
    """Request a reload, and return how the given one ended."""
    url = f"sqlite:///{folder / 'gateway.db'}"

    async def ended() -> list[ControlState]:
        found = await asyncio.to_thread(find_running, folder, url)
        return [one for one in found if one.reloads >= number]

    async def has_ended() -> bool:
        return bool(await ended())

    reloading.request()
    await until(has_ended)
    (state,) = await ended()
    return state


async def test_it_reports_the_prices_or_what_is_wrong(
    run_gateway: RunGateway, devnet: TestChain, tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    async with reloads(run_gateway, devnet, tmp_path) as (gateway, reloading):
        await asyncio.to_thread(write, file, 2)
        good = await reload(reloading, tmp_path, 1)
        assert (good.problem, good.prices) == (None, "m: 2 dUSD / 1M llm tokens")
        await asyncio.to_thread(file.write_text, "[[prices]]\n")
        bad = await reload(reloading, tmp_path, 2)
        assert "row 1 (model *): no price for output" in (bad.problem or "")
        assert gateway.gateway.prices.table.describe() == "m: 2 dUSD / 1M llm tokens"


async def test_a_reload_may_change_from_one_price_to_several_and_back(
    run_gateway: RunGateway, devnet: TestChain, tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    async with reloads(run_gateway, devnet, tmp_path) as (gateway, reloading):
        await asyncio.to_thread(write, file, 5, "*")
        assert (await reload(reloading, tmp_path, 1)).prices == "5 dUSD / 1M llm tokens"
        assert gateway.gateway.prices.table.only("chat.completions") is not None
        await asyncio.to_thread(write, file, 6)
        assert (await reload(reloading, tmp_path, 2)).prices == "m: 6 dUSD / 1M llm tokens"
