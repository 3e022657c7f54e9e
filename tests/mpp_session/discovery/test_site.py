"""What is published is free, costs nothing, and stands beside what is sold."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.routing import Mount, Router

from channel.errors import ConfigError
from channel.http import Price, Route
from mpp_session.discovery.page import PAGE_POLICY
from mpp_session.discovery.site import DiscoverySite, published_paths
from tests.channel.selling import ask
from tests.mpp_session.discovery.describing import describe, gate

PRICE = Price(unit_price=1, unit_type="request")
ALL = ("agentcash", "x402", "a2a")
TYPES = {
    "/openapi.json": "application/json",
    "/llms.txt": "text/plain",
    "/.well-known/x402": "application/json",
    "/.well-known/agent-card.json": "application/json",
    "/": "text/html",
}


@pytest.mark.parametrize("path", published_paths(ALL))
async def test_each_path_is_answered_free_and_may_be_cached(tmp_path: Path, path: str) -> None:
    """DISC-01, DISC-06: without the gate: nothing is verified, nothing is read from the books."""
    async with gate(tmp_path) as sold:
        service = describe(sold, compat=ALL, url="https://a.example")
        site = DiscoverySite(_unreachable, service, sold.table)
        answer = await ask(site, "GET", path, "Payment garbage")
        head = await ask(site, "HEAD", path)
    assert answer.status == head.status == 200
    assert (answer.header("content-type") or "").startswith(TYPES[path])
    assert answer.header("cache-control") == "max-age=300"
    assert answer.header("content-length") == head.header("content-length") == str(len(answer.body))
    assert answer.body
    assert head.body == b""
    is_page = path == "/"
    assert answer.header("content-security-policy") == (PAGE_POLICY if is_page else None)
    assert answer.header("access-control-allow-origin") == (None if is_page else "*")


async def _unreachable(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("not reached")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("GET", "/openapi.json/"),
        ("GET", "/OpenAPI.json"),
        ("GET", "//llms.txt"),
        ("GET", "/.well-known/x402"),
        ("GET", "/.well-known/agent-card.json"),
    ],
)
async def test_everything_else_goes_to_the_gate(tmp_path: Path, method: str, path: str) -> None:
    reached: list[str] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with gate(tmp_path) as sold:
        await ask(DiscoverySite(app, describe(sold), sold.table), method, path)
    assert reached == [path]


@pytest.mark.parametrize("path", ["/", "/llms.txt", "/{name}", "/{rest:path}", "/OpenAPI.json"])
async def test_a_path_with_a_price_is_not_published_on(tmp_path: Path, path: str) -> None:
    """CORE-04: what is sold is not given away, and the operator hears of it at start."""
    async with gate(tmp_path, [Route(method="GET", path=path, price=PRICE)]) as sold:
        with pytest.raises(ConfigError, match=r"has a price.*discovery\.enabled = false"):
            DiscoverySite(sold, describe(sold), sold.table)


async def test_a_form_with_whole_urls_is_not_served_without_an_address(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        with pytest.raises(ConfigError, match=r"set `discovery\.url`"):
            DiscoverySite(sold, describe(sold, compat=("x402",)), sold.table)


async def test_below_a_mount_the_paths_follow_it(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        site = DiscoverySite(_unreachable, describe(sold), sold.table)
        answer = await ask(Router([Mount("/api", app=site)]), "GET", "/api/openapi.json")
    assert msgspec.json.decode(answer.body)["openapi"]


@pytest.mark.parametrize(("routes", "is_logged"), [(100, True), (10, False)])
async def test_a_document_that_registries_would_not_read_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, routes: int, *, is_logged: bool
) -> None:
    """DISC-09: 64 KiB."""
    many = [Route(method="GET", path=f"/{'x' * 200}/{n}", price=PRICE) for n in range(routes)]
    caplog.set_level(logging.WARNING)
    async with gate(tmp_path, many) as sold:
        DiscoverySite(sold, describe(sold), sold.table)
    assert ("registries read no more than 65536" in caplog.text) is is_logged
