"""The forms of x402, checked by the x402 package's own validators."""

from pathlib import Path
from typing import Any

import pytest
from x402.extensions.bazaar import (
    validate_and_extract,
    validate_discovery_extension,
    validate_discovery_extension_spec,
)
from x402.extensions.bazaar.types import parse_discovery_extension

from mpp_session.discovery.service import Description
from mpp_session.discovery.x402 import bazaar_extension, bazaar_resource, x402_document
from mpp_session.gateway.descriptions import describe_endpoint
from mpp_session.gateway.endpoints import ENDPOINTS
from mpp_session.settings import Upstream
from tests.mpp_session.discovery.describing import describe, gate

URL = "https://llm.example.com"
DESCRIBED = {
    ("POST", "/text"): describe_endpoint(ENDPOINTS[0], Upstream(url="http://127.0.0.1:9")),
    ("GET", "/songs/{name}/{rest:path}"): Description(
        summary="A song",
        answers={"application/json": {"schema": {"type": "object"}, "example": {"a": 1}}},
    ),
}


async def test_the_well_known_document_lists_what_is_sold_and_nothing_else(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        document = x402_document(describe(sold, url=URL))
    paths = ["/text", "/songs/{name}/{rest}", "/songs"]
    assert document["resources"] == [f"{URL}{path}" for path in paths]
    assert document["version"] == 1


async def test_the_bazaar_takes_the_extension_of_every_operation(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        service = describe(sold, url=URL, descriptions=DESCRIBED)
    for operation in service.paid:
        extension: dict[str, Any] = bazaar_extension(operation)["bazaar"]
        assert validate_discovery_extension_spec(extension).errors in ([], None)
        checked = validate_discovery_extension(parse_discovery_extension(extension))
        assert checked.valid, (operation.path, checked.errors)
        found = validate_and_extract(extension)
        assert found.valid, found.errors
        assert extension["info"]["input"]["method"] == operation.method


async def test_an_example_shows_what_is_asked_and_answered(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        service = describe(sold, url=URL, descriptions=DESCRIBED)
    chat, song, _ = [bazaar_extension(one)["bazaar"]["info"] for one in service.paid]
    assert chat["input"]["bodyType"] == "json"
    assert chat["input"]["body"]["messages"]
    assert chat["output"]["example"]["object"] == "chat.completion"
    assert song["input"]["pathParams"] == {"name": "name", "rest": "rest"}
    assert song["output"]["example"] == {"a": 1}


@pytest.mark.parametrize("title", ["Short", "x" * 100])
async def test_a_resource_keeps_to_the_bounds_of_the_bazaar(tmp_path: Path, title: str) -> None:
    """A name and five tags of 32 characters at most."""
    async with gate(tmp_path) as sold:
        tags = tuple(f"{'t' * 40}{number}" for number in range(7))
        service = describe(sold, url=URL, title=title, categories=tags)
    found = bazaar_resource(service, service.paid[0])
    assert found["url"] == f"{URL}/text"
    assert "0.40 USDC / 1M output tokens" in found["description"]
    assert found["mimeType"] == "application/json"
    assert 0 < len(found["serviceName"]) <= 32
    assert len(found["tags"]) <= 5
    assert all(len(one) <= 32 for one in found["tags"])
