"""The page for people fetches nothing, runs nothing, and shows every text as text."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mpp_session.discovery.page import PAGE_POLICY, service_page
from tests.mpp_session.discovery.describing import describe, gate


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]


async def test_every_text_is_escaped(tmp_path: Path) -> None:
    """F-10: also what an operator wrote."""
    evil = "<script>alert(1)</script>"
    async with gate(tmp_path) as sold:
        page = service_page(
            describe(sold, title=evil, description=f'"{evil}', contact='"onclick="@x.example')
        )
    tags = Tags(page)
    assert "script" not in tags.tags
    assert "b" not in tags.tags
    assert page.count(html.escape(evil)) == 4
    assert "mailto:&quot;onclick=&quot;@x.example" in page


async def test_nothing_is_fetched_and_the_style_is_the_one_allowed(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        page = service_page(describe(sold))
    assert Tags(page).links == ["openapi.json", "llms.txt"]
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert PAGE_POLICY.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in PAGE_POLICY
    assert "url(" not in style
    assert "color-scheme:light dark" in style
    assert 'name="viewport" content="width=device-width' in page


async def test_prices_and_commands_are_on_the_page(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        page = html.unescape(service_page(describe(sold, url="https://a.example")))
    assert "0.40 USDC / 1M output tokens, 0.10 USDC / 1M input tokens" in page
    assert "mpp-session pay https://a.example/text" in page
    assert "curl -i" in page
    assert "GET /health" in page


@pytest.mark.parametrize("contact", ["https://a.example/help", "a@b.example"])
async def test_the_contact_is_a_link(tmp_path: Path, contact: str) -> None:
    async with gate(tmp_path) as sold:
        links = Tags(service_page(describe(sold, contact=contact))).links
    assert links[-1].removeprefix("mailto:") == contact
