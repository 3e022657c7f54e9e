"""The pages in a real Chromium: what a provider sees, and how."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.mpp_session.dashboard.browser import open_page
from tests.mpp_session.dashboard.served import TOKEN, Served, channel_state, serve_dashboard


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve_dashboard(tmp_path) as running:
        yield running


async def log_in(page: Page, served: Served) -> None:
    await page.goto(f"{served.url}/login#{TOKEN}")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()


async def test_the_link_that_is_printed_logs_in_and_leaves_no_token_in_the_address(
    served: Served,
) -> None:
    async with open_page() as page:
        await log_in(page, served)
        assert page.url == f"{served.url}/"
        await page.go_back()
        assert TOKEN not in page.url


async def test_the_channels_stand_by_value_at_risk_and_lead_to_their_page(served: Served) -> None:
    await served.add(
        channel_state(1, spent=1_000), channel_state(2, spent=2_500_000, settled=500_000)
    )
    async with open_page() as page:
        await log_in(page, served)
        await page.get_by_role("link", name="Channels").click()
        rows = page.locator("tbody tr")
        await expect(rows).to_have_count(2)
        await expect(rows.nth(0)).to_contain_text("2.000000 USDC")
        await expect(rows.nth(1)).to_contain_text("0.001000 USDC")
        await rows.nth(0).get_by_role("link").click()
        await expect(page.get_by_text("0x" + "0" * 63 + "2")).to_be_visible()
        await expect(page.locator(".figure", has_text="paid out on chain")).to_contain_text(
            "0.500000 USDC"
        )
