"""The pictures of docs/guide/dashboard.md: a dashboard over books that are made for them."""

import random
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace
from playwright.async_api import Page, ViewportSize, expect

from channel.types import Address, ChannelId, ChannelKey
from mpp_session.dashboard.revenue import HOUR_S
from settlement.dev.devnet import DevnetValues
from tests.mpp_session.dashboard.browser import open_page
from tests.mpp_session.dashboard.served import TOKEN, Served, channel_state, serve_dashboard
from tests.mpp_session.dashboard.telling import challenge, receipt, refusal, spend

__all__ = ["take"]

WIDE = ViewportSize(width=1080, height=640)
WHOLE = ViewportSize(width=1080, height=1130)
PHONE = ViewportSize(width=390, height=760)
MODELS = ("qwen3-32b", "llama-4-scout", "mistral-small")


async def take(folder: Path, chain: DevnetValues) -> None:
    """Write one picture for each of the guide's; the chain is shown as healthy."""
    settings = {
        "CHAIN_RPC_URL": chain.rpc_url,
        "CHAIN_ID": str(chain.chain_id),
        "CHAIN_ESCROW": "0x" + chain.escrow.hex(),
        "CHAIN_TOKEN": "0x" + chain.token.hex(),
        "PAYEE_ADDRESS": "0x" + chain.accounts["payee"].address.hex(),
        "LEDGER_CHARGES": "false",
    }
    with tempfile.TemporaryDirectory() as books:
        async with serve_dashboard(Path(books), **settings) as served:
            await served.journal.take_lease("settler@gateway", ttl_s=600)
            channels = await _fill(served, chain)
            await _take(served, folder / "dashboard-overview.png", "/", size=WHOLE)
            await _take(served, folder / "dashboard-channels.png", "/channels")
            await _take(served, folder / "dashboard-cycles.png", "/cycles", scheme="dark")
            target = f"/channels/0x{channels[0].hex()}/close"
            await _take(served, folder / "dashboard-phone.png", target, size=PHONE, scheme="dark")


async def _take(
    served: Served,
    path: Path,
    target: str,
    *,
    size: ViewportSize = WIDE,
    scheme: Literal["light", "dark"] = "light",
) -> None:
    async with open_page(size=size, scheme=scheme) as page:
        await page.goto(f"{served.url}/login#{TOKEN}")
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await page.goto(served.url + target)
        await _settle_down(page)
        await page.screenshot(path=path)


async def _settle_down(page: Page) -> None:
    await expect(page.locator("[data-live]")).to_have_text("live")


async def _fill(served: Served, chain: DevnetValues) -> list[ChannelId]:
    """Make books and a day's sales, the same each time but for the date."""
    chance, now = random.Random(7), time.time()  # noqa: S311 - no secret
    states = []
    for _ in range(9):
        spent = chance.randrange(40_000, 8_000_000)
        state = channel_state(spent=spent, settled=spent * chance.randrange(10) // 12)
        payee = chain.accounts["payee"].address
        states.append(
            replace(
                state,
                key=ChannelKey(chain.chain_id, chain.escrow, ChannelId(chance.randbytes(32))),
                terms=replace(state.terms, payer=Address(chance.randbytes(20)), payee=payee),
                active_at=int(now) - chance.randrange(20_000),
            )
        )
    await served.add(*states)
    feed, hour = served.feed, int(now // HOUR_S)
    feed.started_at = now - 24 * HOUR_S
    for each in range(24):
        feed.earned[hour - each] = int(1_000_000 * (3 + chance.random() * 4 - abs(12 - each) / 5))
    for number, state in enumerate(states):
        about: dict[str, Any] = {
            "channel_id": state.key.channel_id,
            "payer": state.terms.payer,
            "variant": chance.choice(MODELS),
            "at": now,
        }
        tokens = chance.randrange(80, 2000)
        paid = {**about, "challenge_id": f"c{number}", "received": 100 + number + 0.031}
        feed.on_challenge(challenge(number + 0.002, 100 + number, f"c{number}", at=now))
        if number == 4:
            feed.on_refusal(
                refusal(number + 0.033, number, **paid, detail="The voucher does not cover it.")
            )
        elif number < 3:
            usage = {"input_token": tokens // 3, "output_token": tokens}
            feed.on_spend(spend(number + 0.5, number, amount=tokens * 4, usage=usage, **paid))
        else:
            moment = 100 + number
            feed.on_receipt(
                receipt(
                    number + 2.4,
                    number,
                    **paid,
                    usage={"input_token": tokens // 3, "output_token": tokens},
                    cost=tokens * 4,
                    handled=moment + 0.034,
                    first_sent=moment + 0.21,
                )
            )
    return [state.key.channel_id for state in states]
