"""The pages in a real Chromium: what a provider sees, and how."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Page, expect

from tests.mpp_session.dashboard.browser import PHONE, open_page
from tests.mpp_session.dashboard.served import TOKEN, Served, channel_state, serve_dashboard
from tests.mpp_session.dashboard.telling import CHANNEL, challenge, receipt, refusal, spend


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


PATHS = ["/", "/channels", "/settlements", "/refusals", "/prices", "/cycles"]
ATTACK = "\"'><img src=x onerror=report('xss')><script>report('xss')</script>"
CHANNEL_PATH = f"/channels/0x{CHANNEL.hex()}"


async def fill(served: Served, text: str = "tiny") -> None:
    """One of everything; `text` stands in each field that a client decides."""
    feed = served.feed
    await served.add(channel_state(1, spent=1_234_567), channel_state(2))
    feed.on_challenge(challenge(0, 1, "a", variant=text))
    feed.on_receipt(
        receipt(1, 2, challenge_id="a", variant=text, usage={text: 65}, handled=101, first_sent=102)
    )
    feed.on_refusal(refusal(2, 3, variant=text, detail=text, problem_type=text))
    feed.on_spend(spend(3, 4, variant=text, usage={text: 32}))
    feed.on_spend(spend(3, 5, variant=text, channel_id=None, payer=None, route=text))


async def test_nothing_that_a_client_sends_becomes_markup(served: Served) -> None:
    """Model names, units and details come from clients: in the page, and in the live events."""
    await fill(served, ATTACK)
    async with open_page() as page:
        await log_in(page, served)
        for path in [*PATHS, CHANNEL_PATH, "/actions/settle", f"{CHANNEL_PATH}/close"]:
            await page.goto(f"{served.url}{path}?done={ATTACK}&state={ATTACK}")
            await expect(page.locator("[data-live]")).to_have_text("live")
            assert await page.locator("img, main script").count() == 0
        await page.goto(served.url)
        await expect(page.locator("#stream-rows tr").first).to_contain_text("onerror=")


async def test_a_live_event_s_texts_stay_texts(served: Served) -> None:
    async with open_page() as page:
        await log_in(page, served)
        await fill(served, ATTACK)
        await expect(page.locator("#stream-rows tr")).to_have_count(2)
        assert await page.locator("img, main script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_shows_every_page_without_scrolling_sideways(
    served: Served, scheme: Literal["light", "dark"]
) -> None:
    await fill(served, "a-model-with-a-name-" + 20 * "long")
    async with open_page(size=PHONE, scheme=scheme) as page:
        await log_in(page, served)
        for path in [*PATHS, CHANNEL_PATH, f"{CHANNEL_PATH}/close", "/actions/settle"]:
            await page.goto(served.url + path)
            over = await page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert over == 0, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_has_contrast(served: Served, scheme: Literal["light", "dark"]) -> None:
    """4.5 to 1, as WCAG 2.2 AA asks of body text (1.4.3)."""
    await fill(served)
    async with open_page(scheme=scheme) as page:
        await log_in(page, served)
        for path in [*PATHS, CHANNEL_PATH, f"{CHANNEL_PATH}/close"]:
            await page.goto(served.url + path)
            assert await page.evaluate(CONTRAST) == [], path
        await page.emulate_media(color_scheme=scheme)
        background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) is (scheme == "dark")


CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((value) => value / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
  };
  const faults = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !node.checkVisibility() || !node.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faults.push(`${node.tagName} ${node.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return faults;
}
"""


async def test_the_keyboard_alone_logs_in_pauses_sales_and_sells_again(served: Served) -> None:
    async with open_page() as page:
        await page.goto(f"{served.url}/login")
        # The browser moves the focus to the field when it first draws the page, after its load.
        await expect(page.get_by_label("Token of this gateway's dashboard")).to_be_focused()
        await page.keyboard.type(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        await tab_to(page, "Pause sales")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Pause sales?")).to_be_visible()
        await tab_to(page, "Pause sales")
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "3px"
        await page.keyboard.press("Space")
        await expect(page.get_by_text("Sales are paused.", exact=True)).to_be_visible()
        assert served.sales.paused_at is not None
        await tab_to(page, "Resume sales")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Resume sales?")).to_be_visible()
        await tab_to(page, "Resume sales")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Sales go on.")).to_be_visible()


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until the control with this name has the focus."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.textContent") == name:
            return
    raise AssertionError(name)


async def test_without_scripts_every_page_is_there(served: Served) -> None:
    await fill(served)
    async with open_page(scripts=False) as page:
        await page.goto(f"{served.url}/login")
        await page.get_by_label("Token of this gateway").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()
        for path in PATHS:
            await page.goto(served.url + path)
            await expect(page.locator("h1")).to_be_visible()
        await page.goto(served.url)
        await expect(page.locator("#stream-rows tr")).to_have_count(2)


async def test_empty_pages_say_what_will_be_there(served: Served) -> None:
    async with open_page() as page:
        await log_in(page, served)
        await expect(page.get_by_text("No stream is running.")).to_be_visible()
        for path in ("/channels", "/settlements", "/refusals", "/cycles"):
            await page.goto(served.url + path)
            await expect(page.locator(".empty")).to_be_visible()


async def test_amounts_stand_with_every_decimal_and_the_symbol(served: Served) -> None:
    await fill(served)
    async with open_page() as page:
        await log_in(page, served)
        await page.goto(served.url + CHANNEL_PATH)
        await expect(page.locator(".figure").first).to_contain_text("1.234567 USDC")
        await page.goto(served.url + "/actions/settle")
        await expect(page.locator(".figure").first).to_contain_text("1.234567 USDC")
