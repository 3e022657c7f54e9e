"""The operator's port of an application that sells by itself."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mpp_session.selling import SellingApp
from mpp_session.testing.chain import TestChain
from tests.e2e.gateways import free_port
from tests.mpp_session.dashboard.test_site import form_token
from tests.mpp_session.gateway.conftest import build_config
from tests.mpp_session.serving import serve
from tests.mpp_session.test_selling import ROUTES, WITH_A_LIFE

TOKEN = "token-" * 6  # 32 characters or more


async def test_an_application_has_the_port_of_a_gateway(devnet: TestChain, tmp_path: Path) -> None:
    """Health, metrics, forms, the dashboard behind its token, and a pause that stops sales."""
    port = free_port()
    admin = f"http://127.0.0.1:{port}"
    settings = {"admin__port": port, "admin__token": TOKEN, "admin__enabled": True}
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path, **settings)
    selling = SellingApp(WITH_A_LIFE, ROUTES, load=lambda: config, discovery=True, admin=True)
    async with serve(selling) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/joke")).status_code == 402
        health = (await client.get(f"{admin}/readyz")).json()
        assert health["parts"].keys() == {"database", "chain", "settler"}
        text = (await client.get(f"{admin}/metrics")).text
        names = {family.name for family in text_string_to_metric_families(text)}
        assert {"mpp_session_challenges", "mpp_session_part_up"} <= names
        published = await client.get(f"{url}/openapi.json")
        assert (await client.get(f"{admin}/discovery/openapi")).content == published.content
        assert (await client.get(f"{admin}/")).status_code == 303
        await client.post(f"{admin}/login", data={"token": TOKEN})
        prices = (await client.get(f"{admin}/prices")).text
        assert "GET /joke" in prices
        assert "Reload prices" not in prices, "an application's prices are its own code"
        assert "Model server" not in (await client.get(f"{admin}/")).text
        assert "GET /joke" in (await client.get(f"{admin}/cycles")).text

        async def press(action: str) -> None:
            client.base_url = httpx.URL(admin)
            token = await form_token(client, f"/actions/{action}")
            await client.post(f"/actions/{action}", data={"form_token": token})

        await press("pause")
        refused = await client.get(f"{url}/joke")
        assert refused.json()["type"].endswith("sales-paused")
        await press("resume")
        assert (await client.get(f"{url}/joke")).status_code == 402


async def test_without_the_argument_no_port_is_opened(devnet: TestChain, tmp_path: Path) -> None:
    port = free_port()
    settings = {"admin__port": port, "admin__enabled": True}
    config = build_config(devnet, "http://127.0.0.1:9", tmp_path, **settings)
    selling = SellingApp(WITH_A_LIFE, ROUTES, load=lambda: config)
    async with serve(selling) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/joke")).status_code == 402
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/readyz")
