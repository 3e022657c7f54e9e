"""The forms that a seller submits: each keeps to its registry's rules."""

import re
from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.http import Price, Route
from mpp_session.discovery.listings import mcp_server, mpp_entry, pay_skill
from tests.mpp_session.discovery.describing import ROUTES, describe, gate

URL = "https://llm.example.com"
MCP = Route(method="POST", path="/v1/mcp", price=Price(rates={"call": "0.01 / 1"}))


async def test_server_json_keeps_to_the_schema_of_the_mcp_registry(tmp_path: Path) -> None:
    """Schema 2025-12-11: a name in reverse DNS, 100 characters of description, a remote."""
    async with gate(tmp_path, [*ROUTES, MCP]) as sold:
        server = mcp_server(describe(sold, url=URL, title="Ex. Models", description="word " * 40))
    assert server["name"] == "com.example.llm/ex-models"
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", server["name"])
    assert 1 <= len(server["description"]) <= 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", server["version"])
    assert server["remotes"] == [{"type": "streamable-http", "url": f"{URL}/v1/mcp"}]
    (meta,) = server["_meta"].items()
    assert meta[0] == "io.modelcontextprotocol.registry/publisher-provided"
    assert "0.01 USDC" in meta[1]["price"]


async def test_a_service_without_mcp_is_not_put_into_the_mcp_registry(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        service = describe(sold, url=URL)
    with pytest.raises(ConfigError, match="ends with /mcp"):
        mcp_server(service)


async def test_an_entry_of_mpp_dev_has_its_fields(tmp_path: Path) -> None:
    """`ServiceDef` of schemas/services.ts: base units, `:name` in paths, nothing for free ones."""
    async with gate(tmp_path) as sold:
        entry = mpp_entry(describe(sold, url=URL, title="A & B", categories=("compute", "other")))
    assert re.fullmatch("[a-z0-9-]+", entry["id"])
    assert entry["categories"] == ["compute"]
    assert entry["integration"] == "first-party"
    assert entry["intent"] == "session"
    assert entry["payments"][0]["method"] == "evm"
    assert entry["payments"][0]["decimals"] == 6
    routes = {one["route"]: one for one in entry["endpoints"]}
    assert "amount" not in routes["GET /health"]
    song = routes["GET /songs/:name/:rest"]
    assert (song["amount"], song["unitType"]) == ("10", "song")
    assert "dynamic" not in song
    assert routes["POST /text"]["dynamic"] is True
    assert "0.40 USDC" in routes["POST /text"]["amountHint"]
    assert "amount" not in routes["PUT /songs"]


@pytest.mark.parametrize("description", ["Short.", "word " * 150])
async def test_a_skill_keeps_to_the_lengths_of_its_registry(
    tmp_path: Path, description: str
) -> None:
    """Descriptions of 64 to 255 characters, cases of use of 32 to 255, one known category."""
    async with gate(tmp_path) as sold:
        service = describe(sold, url=URL, description=description, categories=("compute",))
    head, _, body = pay_skill(service).removeprefix("---\n").partition("\n---\n")
    fields = dict(re.findall(r'(?m)^(\w+): "(.*)"$', head))
    assert 64 <= len(fields["description"]) <= 255
    assert 32 <= len(fields["use_case"]) <= 255
    assert fields["category"] == "ai_ml"
    assert fields["service_url"] == URL
    assert "openapi:\n  path: openapi.json" in head
    assert "TODO" not in head
    assert "`POST /text`: 0.40 USDC / 1M output tokens" in body
