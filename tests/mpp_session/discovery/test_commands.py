"""The commands can be pasted: a shell reads every word of them as it was meant."""

import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.http import Price, Route
from mpp_session.discovery.commands import commands
from tests.mpp_session.discovery.describing import ROUTES, describe, gate

ON_DEVNET = ["--devnet", "devnet.json"]
PRICE = Price(unit_price=1, unit_type="request")


async def test_a_body_is_quoted_for_the_shell(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        (_, curl), (_, pay) = commands(describe(sold, url="https://a.example"))
    body = '{"q":"it\'s <b>"}'
    url = "https://a.example/text"
    assert shlex.split(curl) == [
        "curl",
        "-i",
        "-H",
        "content-type: application/json",
        "-d",
        body,
        url,
    ]
    assert shlex.split(pay)[:5] == ["mpp-session", "pay", url, "--json-body", body]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_the_method_is_the_routes(tmp_path: Path, method: str) -> None:
    async with gate(tmp_path, [Route(method=method, path="/a b", price=PRICE)]) as sold:
        (_, curl), (_, pay) = commands(describe(sold, url="https://a.example"))
    named = [] if method == "GET" else ["-X", method]
    assert shlex.split(curl) == ["curl", "-i", *named, "https://a.example/a b"]
    assert shlex.split(pay) == ["mpp-session", "pay", "https://a.example/a b", *named, *ON_DEVNET]


async def test_on_a_real_chain_the_payer_names_it(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        service = replace(describe(sold), chain_id=8453)
    (_, pay) = [command for _, command in commands(service)]
    words = shlex.split(pay)
    assert words[words.index("--chain-id") + 1] == "8453"
    assert words[words.index("--token") + 1].lower() == f"0x{service.token.hex()}"


async def test_a_service_without_an_address_leaves_the_host_open(tmp_path: Path) -> None:
    async with gate(tmp_path, ROUTES) as sold:
        assert all("https://HOST/text" in command for _, command in commands(describe(sold)))
