"""docs/guide/selling.md is true: its application runs as printed and charges what the page says."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from channel.http import PaymentGate
from channel.wire.encoding import decode_base64url
from channel.wire.sse import EventSplitter, parse_event
from settlement.dev.devnet import Devnet
from tests.e2e.selling import Provider, provide

MANUAL = Path(__file__).parents[2] / "docs" / "guide" / "selling.md"


@pytest.fixture
def page() -> dict[str, Any]:
    code = MANUAL.read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"__name__": "provider"}
    exec(code, names)  # noqa: S102 -- our own manual
    return names


def spent(receipt: str) -> int:
    return int(msgspec.json.decode(decode_base64url(receipt))["spent"])


async def test_the_pages_application_charges_what_the_page_says(
    chain: Devnet, tmp_path: Path, page: dict[str, Any]
) -> None:
    """ACC-05, SSE-04: a fixed price, a counted answer, and a stream, on one channel."""

    def build(provider: Provider) -> PaymentGate:
        return PaymentGate(page["api"], engine=provider.engine, routes=page["ROUTES"])

    async with provide(chain, tmp_path, build=build) as seller:
        await seller.payer.open(100_000)
        opening = await seller.credential(seller.payer.opening(2_000), path="/weather/paris")
        fixed = await seller.send(opening, path="/weather/paris")
        assert fixed.json() == {"paris": "sunny"}
        assert spent(fixed.headers["payment-receipt"]) == 250

        voucher = seller.payer.voucher(4_000)
        challenge = await seller.challenge("/summary", "POST")
        counted = await seller.send(
            await seller.credential(voucher, challenge=challenge),
            method="POST",
            path="/summary",
            content=b"{}",
        )
        assert counted.json() == {"summary": "All is well."}
        assert spent(counted.headers["payment-receipt"]) == 250 + 3 * 25

        streamed = await seller.send(voucher, path="/story")
        found = [parse_event(block) for block in EventSplitter().feed(streamed.content)]
        texts = [event[1] for event in found if event and event[0] == "message"]
        assert texts == ["Once", "upon", "a", "time", "[DONE]"]
        books = await seller.books()
        assert books is not None
        assert (books.spent, books.reserved) == (250 + 7 * 25, 0)
