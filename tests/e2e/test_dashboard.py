"""A provider at the dashboard of a running gateway, on a real chain, in a real Chromium."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from channel.ledger.url import open_ledger
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.testing.chain import TestChain
from settlement.escrow.reader import EscrowReader
from tests.e2e.gateways import (
    PRICE,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.e2e.warm import Forge
from tests.mpp_session.dashboard.browser import open_page
from tests.mpp_session.model_server import ModelServer, model_server
from tests.waiting import until

pytestmark = pytest.mark.timeout(240)

TOKEN = "the-log-in-token-of-this-test-0123"  # noqa: S105 - no secret
PRICES = '[[prices]]\nmodel = "tiny"\nper_unit = {}\n'
BODY: dict[str, Any] = {"model": "tiny", "stream": True, "messages": []}


class Shop:
    """A gateway, its dashboard and an agent that pays it."""

    def __init__(self, gateway: GatewayProcess, admin: str, client: PayingClient) -> None:
        self.gateway = gateway
        self.admin = admin
        self.client = client
        self.url = f"{gateway.url}/v1/chat/completions"

    async def log_in(self, page: Page) -> None:
        await page.goto(f"{self.admin}/login#{TOKEN}")
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()

    async def buy(self) -> None:
        """Buy three words, each with a voucher of its own: the last one is for all of them."""
        await read(self)


@asynccontextmanager
async def shop(
    devnet: TestChain, model: ModelServer, folder: Path, forge: Forge, prices: Path | None = None
) -> AsyncIterator[Shop]:
    admin = free_port()
    variables = gateway_variables(
        devnet.values, model.url, folder / "ledger.db", free_port(), step_units=8
    )
    variables |= {"MPP_SESSION_ADMIN_TOKEN": TOKEN, "MPP_SESSION_ADMIN_PORT": str(admin)}
    if prices is not None:
        del variables["MPP_SESSION_PRICE_PER_UNIT"]
        variables["MPP_SESSION_PRICES_FILE"] = str(prices)
    gateway = GatewayProcess(gateway_command(), variables, folder / "gateway.log", forge=forge)
    async with (
        gateway.running(),
        open_client(
            rpc_url=devnet.values.rpc_url,
            private_key=devnet.values.accounts["payer"].private_key,
            policy=policy_for(devnet.values, voucher_step=1),
            store=folder / "agent.db",
        ) as client,
    ):
        yield Shop(gateway, f"http://127.0.0.1:{admin}", client)


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with model_server() as running:
        yield running


async def test_the_meter_of_a_live_stream_grows_until_its_receipt(
    devnet: TestChain, model: ModelServer, tmp_path: Path, forge: Forge
) -> None:
    model.words, model.delay_s = ["x"] * 100_000, 0.01
    async with shop(devnet, model, tmp_path, forge) as running, open_page() as page:
        await running.log_in(page)
        await expect(page.get_by_text("No stream is running.")).to_be_visible()
        streaming = asyncio.create_task(read(running))
        row = page.locator("#stream-rows tr")
        await expect(row).to_contain_text("llm token")
        seen = [await charged(row)]
        while len(seen) < 4:
            await expect(row.locator("td").last).not_to_have_text(
                await row.locator("td").last.inner_text()
            )
            seen.append(await charged(row))
        assert seen == sorted(set(seen))
        assert all(amount % PRICE == 0 for amount in seen)
        streaming.cancel()
        await asyncio.wait({streaming})
        await expect(row).to_have_count(0)
        ledger = await open_ledger(
            f"sqlite:///{tmp_path / 'ledger.db'}", exclusive=False, read_only=True
        )
        (state,) = await ledger.list_channels()
        await ledger.close()
        revenue = page.locator("[data-figure=revenue]")
        await expect(revenue).to_contain_text(
            f"{state.spent / 10**6:.6f} {devnet.values.token_symbol}"
        )
        await page.get_by_role("link", name="Cycles").click()
        cycle = page.locator(".cycles > li").filter(has_text="First content")
        for name in ("Credential", "Decision", "First content", "Vouchers", "Receipt"):
            await expect(cycle.get_by_text(name, exact=True)).to_be_visible()


async def test_settle_now_pays_out_what_was_delivered(
    devnet: TestChain, model: ModelServer, tmp_path: Path, forge: Forge
) -> None:
    async with shop(devnet, model, tmp_path, forge) as running, open_page() as page:
        await running.buy()
        (account,) = await running.client.payments.channels()
        await running.log_in(page)
        await page.get_by_role("link", name="Settle now").first.click()
        await expect(page.locator(".figure").first).to_contain_text(f"{3 * PRICE / 10**6:.6f}")
        await page.get_by_role("button", name="Settle now").click()
        await expect(page.get_by_text("The order to settle is placed.")).to_be_visible()

        async def is_settled() -> bool:
            async with devnet.connect() as chain:
                reader = EscrowReader(chain.rpc, chain.values.escrow)
                fact = await reader.read_channel(account.key.channel_id)
            return fact is not None and fact.settled == 3 * PRICE

        await until(is_settled, every_s=0.2)

        async def is_shown() -> bool:
            await page.reload()
            return "1 settled" in await page.locator("main").inner_text()

        await until(is_shown, every_s=0.5)
        await expect(page.locator("tbody tr").first).to_contain_text(re.compile("mined|final"))


async def test_a_channel_is_closed_after_a_page_that_says_what_it_does(
    devnet: TestChain, model: ModelServer, tmp_path: Path, forge: Forge
) -> None:
    async with shop(devnet, model, tmp_path, forge) as running, open_page() as page:
        await running.buy()
        await running.log_in(page)
        await page.get_by_role("link", name="Channels").click()
        await page.locator("tbody a").first.click()
        await page.get_by_role("link", name="Close this channel").click()
        await expect(page.get_by_text("A close cannot be undone.")).to_be_visible()
        await page.get_by_role("button", name="Close this channel").click()

        async def is_ended() -> bool:
            await page.reload()
            return await page.locator(".badge", has_text="ended").count() > 0

        await until(is_ended, every_s=0.3)
        await expect(page.locator(".figure", has_text="paid out on chain")).to_contain_text(
            f"{3 * PRICE / 10**6:.6f}"
        )
        await expect(page.get_by_text("Close this channel")).to_have_count(0)


async def test_a_pause_of_sales_is_answered_503_and_outlives_a_restart(
    devnet: TestChain, model: ModelServer, tmp_path: Path, forge: Forge
) -> None:
    async with shop(devnet, model, tmp_path, forge) as running, open_page() as page:
        await running.log_in(page)
        await page.get_by_role("link", name="Pause sales").click()
        await page.get_by_role("button", name="Pause sales").click()
        await expect(page.get_by_text("Sales are paused: clients get 503")).to_be_visible()
        await require_paused(running.url)
        await page.goto("about:blank")  # else its events report the lost connection
        assert await running.gateway.end() == 0
        await running.gateway.start()
        await require_paused(running.url)
        await page.goto(running.admin)  # its session outlives the restart, too
        await page.get_by_role("link", name="Resume sales").first.click()
        await page.get_by_role("button", name="Resume sales").click()
        await expect(page.get_by_text("Sales go on.")).to_be_visible()
        await running.buy()


async def test_prices_are_read_again_all_or_none(
    devnet: TestChain, model: ModelServer, tmp_path: Path, forge: Forge
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES.format(25))
    async with shop(devnet, model, tmp_path, forge, prices) as running, open_page() as page:
        await running.log_in(page)
        await page.get_by_role("link", name="Prices", exact=True).click()
        await expect(page.locator("tbody")).to_contain_text("25 dUSD / 1M llm tokens")
        await asyncio.to_thread(prices.write_text, PRICES.format(30))
        await reload_prices(page)
        await expect(page.get_by_text("The prices are read again.")).to_be_visible()
        await expect(page.locator("tbody")).to_contain_text("30 dUSD / 1M llm tokens")
        await asyncio.to_thread(prices.write_text, PRICES.format(0))
        await page.get_by_role("link", name="Prices", exact=True).click()
        await reload_prices(page)
        await expect(page.get_by_text("The prices are as they were")).to_contain_text("row 1")
        await page.get_by_role("link", name="Prices", exact=True).click()
        await expect(page.locator("tbody")).to_contain_text("30 dUSD / 1M llm tokens")


async def reload_prices(page: Page) -> None:
    await page.get_by_role("link", name="Reload prices").click()
    await page.get_by_role("button", name="Reload prices").click()


async def read(running: Shop) -> None:
    async with running.client.stream("POST", running.url, json=BODY) as response:
        async for _ in response.aiter_lines():
            pass


async def charged(row: Locator) -> int:
    """Return the meter in base units."""
    text = await row.locator("td").last.inner_text()
    return round(float(text.split()[0]) * 10**6)


async def require_paused(url: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(url, json=BODY)
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("sales-paused")
    assert int(answer.headers["retry-after"]) > 0
    assert "www-authenticate" not in answer.headers
