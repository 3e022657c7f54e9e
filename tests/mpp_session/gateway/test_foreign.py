"""What programs that cannot pay show of a refusal (O-43)."""

import json
from pathlib import Path

import httpx
import openai
import pytest

from mpp_session.gateway.endpoints import ENDPOINTS
from tests.foreign.running import check_discovery
from tests.mpp_session.gateway.conftest import PRICE, RunGateway


@pytest.mark.parametrize("is_stream", [True, False])
async def test_the_openai_client_shows_what_it_costs_and_how_to_pay(
    run_gateway: RunGateway, *, is_stream: bool
) -> None:
    """O-43: and not "no body"."""
    async with (
        run_gateway() as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], stream=is_stream
            )
        assert caught.value.status_code == 402
        assert f"{PRICE} dUSD / 1M llm tokens" in str(caught.value)
        assert "dUSD" in str(caught.value)
        assert "mpp-session pay" in str(caught.value)
        assert caught.value.code == "payment-required"


async def test_every_refusal_of_the_gateway_has_the_message_where_clients_look(
    run_gateway: RunGateway,
) -> None:
    """O-43: a path that is not served, a free path whose server is away, an unpaid request."""
    async with (
        run_gateway(upstream__url="http://127.0.0.1:9") as gateway,
        httpx.AsyncClient() as client,
    ):
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1/models", 502),
            ("POST", "/v1/chat/completions", 503),
        ):
            answer = await client.request(method, gateway.url + path)
            assert answer.status_code == status
            body = json.loads(answer.content)
            assert body["error"]["message"] == body["detail"]
            assert body["error"]["code"]


@pytest.mark.parametrize("compat", [(), ("agentcash", "x402", "a2a")], ids=["draft", "registries"])
async def test_checkers_of_discovery_find_no_fault(
    run_gateway: RunGateway, tmp_path: Path, compat: tuple[str, ...]
) -> None:
    """DISC-08: OpenAPI's schema, `mppx validate`, and AgentCash's reader."""
    (tmp_path / "home").mkdir()
    settings = {"payment__realm": "127.0.0.1", "discovery__contact": "seller@example.com"}
    async with run_gateway(discovery__compat=compat, **settings) as gateway:
        found = await check_discovery(gateway.url, tmp_path / "home")
    assert found["openapi"] == ["pass: valid"]
    severities = [line.partition(":")[0] for line in found["mppx"]]
    assert set(severities) == {"pass", "skip"}, found["mppx"]
    skipped = [line for line in found["mppx"] if line.startswith("skip")]
    assert skipped
    assert all("no wallet" in line for line in skipped)
    assert len(severities) >= 18
    price = " from 0 USD mpp" if compat else ""
    paid = [f"pass: POST {one.path} paid{price}" for one in ENDPOINTS if one.has_output]
    free = ["pass: GET /v1/models unprotected", "pass: GET /health unprotected"]
    assert found["agentcash"][: len(paid) + 2] == [*paid, *free]
    if compat:
        assert found["agentcash"][len(paid) + 2 :] == []
