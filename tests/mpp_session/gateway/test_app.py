"""What a gateway publishes states the prices of its own challenges."""

import asyncio
import html
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.errors import ConfigError
from channel.methods.evm.method import EVM
from channel.wire.challenge import parse_challenges
from channel.wire.encoding import format_checksum_address
from mpp_session.gateway.endpoints import ENDPOINTS
from mpp_session.testing.chain import TestChain
from tests.mpp_session.gateway.conftest import PRICE, RunGateway
from tests.mpp_session.model_server import ModelServer
from tests.waiting import PATIENCE_S

PER_MILLION = {
    "price__per_unit": None,
    "price__input": "0.10",
    "price__output": "0.40",
}

BY_THE_MILLION = "0.40 dUSD / 1M output tokens, 0.10 dUSD / 1M input tokens"


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({}, "25 dUSD / 1M llm tokens"),
        (PER_MILLION, BY_THE_MILLION),
        (
            PER_MILLION | {"price__minimum": "0.0001", "price__maximum": "0.5"},
            f"{BY_THE_MILLION}, at least 0.000100 dUSD a request, at most 0.500000 dUSD a request",
        ),
    ],
)
async def test_documents_and_challenge_agree(
    run_gateway: RunGateway, prices: dict[str, Any], said: str
) -> None:
    """DISC-04, DISC-07: in the OpenAPI document, in llms.txt and on the page."""
    async with run_gateway(**prices) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        document = (await client.get("/openapi.json")).json()
        texts = [(await client.get(path)).text for path in ("/llms.txt", "/")]
        for path, item in document["paths"].items():
            for method, operation in item.items():
                asked = await client.request(method, path, json=_example(operation))
                is_paid = "x-payment-info" in operation
                assert (asked.status_code == 402) is is_paid
                if not is_paid:
                    continue
                (challenge,) = parse_challenges(asked.headers.get_list("www-authenticate"))
                request = EVM.parse_request(challenge.request)
                (offer,) = operation["x-payment-info"]["offers"]
                assert offer == {
                    "intent": challenge.intent,
                    "method": challenge.method,
                    "amount": str(request.unit_price),
                    "currency": format_checksum_address(request.currency),
                    "description": f"per {request.unit_type} on chain {request.chain_id}: {said}",
                }
                assert asked.json()["price"][0]["display"] == said
        sold = [one.path for one in ENDPOINTS if prices or one.has_output]
        assert [*document["paths"]] == [*sold, "/v1/models", "/health"]
        assert all(said in html.unescape(text) for text in texts)
        assert await gateway.channels() == []


def _example(operation: dict[str, Any]) -> Any:
    if "requestBody" not in operation:
        return None
    return operation["requestBody"]["content"]["application/json"]["example"]


async def test_the_model_server_is_not_asked(run_gateway: RunGateway, model: ModelServer) -> None:
    async with run_gateway() as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        for path in ("/openapi.json", "/llms.txt", "/"):
            assert (await client.get(path)).status_code == 200
    assert model.seen == []


async def test_an_operator_may_publish_nothing(run_gateway: RunGateway) -> None:
    async with (
        run_gateway(discovery__enabled=False) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        for path in ("/openapi.json", "/llms.txt", "/"):
            assert (await client.get(path)).status_code == 404


async def test_the_model_servers_own_document_may_be_published_instead(
    run_gateway: RunGateway,
) -> None:
    free = ("GET /openapi.json",)
    with pytest.raises(ConfigError, match=r"'GET /openapi\.json'.*discovery\.enabled = false"):
        async with run_gateway(upstream__free=free):
            pass
    async with (
        run_gateway(upstream__free=free, discovery__enabled=False) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        answer = await client.get("/openapi.json")
    assert answer.text == "Not Found"  # the words of the tests' model server, passed on


async def test_a_free_template_does_not_hide_what_is_published(
    run_gateway: RunGateway, model: ModelServer
) -> None:
    async with (
        run_gateway(upstream__free=("GET /{rest:path}",)) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        document = (await client.get("/openapi.json")).json()
        await client.get("/v1/models")
    assert "/{rest}" in document["paths"]
    assert "/v1/models" not in document["paths"]
    assert [one.path for one in model.seen] == ["/v1/models"]


async def test_the_commands_of_llms_txt_show_the_price_and_pay(
    run_gateway: RunGateway, devnet: TestChain, tmp_path: Path
) -> None:
    """DISC-07: as they are pasted, but for the port, which the test's server chose itself."""
    await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
    async with run_gateway() as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        text = (await client.get("/llms.txt")).text
        curl, pay = re.findall("```sh\n(.*?)\n```", text, re.DOTALL)
        shown = await _shell(curl.replace("http://127.0.0.1:8402", gateway.url), tmp_path)
        assert "HTTP/1.1 402 Payment Required" in shown
        assert await gateway.channels() == []
        answered = await _shell(pay.replace("http://127.0.0.1:8402", gateway.url), tmp_path)
        assert answered == "one two three\n"
        assert (await gateway.channel()).spent == 3 * PRICE


async def _shell(command: str, folder: Path) -> str:
    """Return what a command prints, in a shell that finds this environment's commands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", command),
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PATH": path, "XDG_STATE_HOME": str(folder)},
    )
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()
