"""What is free passes, what is not served is 404, and neither touches the books."""

from typing import Any

import httpx
import pytest

from tests.mpp_session.gateway.conftest import RunGateway
from tests.mpp_session.model_server import ModelServer
from tests.mpp_session.serving import serve


async def test_a_free_path_is_passed_on_with_its_query(
    run_gateway: RunGateway, model: ModelServer
) -> None:
    async with run_gateway() as gateway, httpx.AsyncClient() as client:
        response = await client.get(f"{gateway.url}/v1/models?limit=1")
        assert [one["id"] for one in response.json()["data"]] == ["tiny"]
        assert (await client.head(f"{gateway.url}/v1/models")).status_code == 200
        assert await gateway.channels() == []
    assert model.seen[0].path == "/v1/models"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/../metrics"),
        ("GET", "//v1/models"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completions/../embeddings"),
        ("POST", "/V1/chat/completions"),
    ],
)
async def test_everything_else_is_404_before_payment(
    run_gateway: RunGateway, model: ModelServer, method: str, path: str
) -> None:
    """CORE-04: and never reaches the model server, however the path is spelt."""
    async with run_gateway() as gateway, httpx.AsyncClient() as client:
        request = client.build_request(method, gateway.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        response = await client.send(request)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
    assert model.seen == []


async def test_a_header_of_any_bytes_is_passed_on_as_it_came(
    run_gateway: RunGateway,
) -> None:
    """DESIGN 5: HTTP allows them, and a stranger's must not become a 500."""
    asked: list[bytes] = []

    async def upstream(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.append(dict(scope["headers"])[b"user-agent"])
            headers = [(b"x-request-id", "\u65e5\u672c".encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})

    async with (
        serve(upstream) as url,
        run_gateway(upstream__url=url) as gateway,
        httpx.AsyncClient() as client,
    ):
        named = {b"user-agent": "caf\u00e9".encode()}
        answer = await client.get(f"{gateway.url}/health", headers=named)
    assert asked == ["caf\u00e9".encode()]
    assert (b"x-request-id", "\u65e5\u672c".encode()) in answer.headers.raw


@pytest.mark.parametrize("host", ["[", "a b", "[::1", "http://x", "x:99999999", "\u00e9"])
async def test_the_path_is_answered_for_any_host(run_gateway: RunGateway, host: str) -> None:
    """F-10, DESIGN 5: a stranger's `Host` is never read, and so cannot be a 500."""
    async with run_gateway() as gateway, httpx.AsyncClient() as client:
        named = {b"host": host.encode()}
        response = await client.get(f"{gateway.url}/v1/models?limit=1", headers=named)
        assert [one["id"] for one in response.json()["data"]] == ["tiny"]


async def test_a_free_path_is_configuration(run_gateway: RunGateway, model: ModelServer) -> None:
    async with (
        run_gateway(upstream__free=["GET /health"]) as gateway,
        httpx.AsyncClient() as client,
    ):
        assert (await client.get(f"{gateway.url}/v1/models")).status_code == 404
    assert model.seen == []


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/v1/models/meta%2Fllama%3F1", ["/v1/models/meta%2Fllama%3F1"]),
        ("/v1/models/50%2525", ["/v1/models/50%2525"]),
        ("/v1/models/../../slots", []),
        ("/v1/models/%2e%2e/%2e%2e/slots", []),
        ("/v1/models/..%2f..%2fslots", []),
    ],
)
async def test_a_free_template_leads_to_what_is_below_it_and_nowhere_else(
    run_gateway: RunGateway, path: str, seen: list[str]
) -> None:
    """F-12: what a model server shows of its other clients is behind other paths."""
    asked: list[str] = []

    async def upstream(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.append(scope["raw_path"].decode())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

    free = ["GET /v1/models/{name:path}"]
    async with (
        serve(upstream) as url,
        run_gateway(upstream__url=url, upstream__free=free) as gateway,
        httpx.AsyncClient() as client,
    ):
        request = client.build_request("GET", gateway.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert (await client.send(request)).status_code == (200 if seen else 404)
    assert asked == seen


async def test_a_model_server_that_is_away_is_502_on_a_free_path_too(
    run_gateway: RunGateway,
) -> None:
    async with run_gateway(upstream__url="http://127.0.0.1:9") as gateway:
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{gateway.url}/v1/models")
        assert response.status_code == 502
        assert "www-authenticate" not in response.headers
