"""The description that a gateway serves is valid, and no request that it allows breaks the server.

schemathesis makes requests from the description, right ones and wrong ones, unpaid and paid for.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.core.result import Err
from schemathesis.generation import GenerationMode

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.e2e.customers import Customer
from tests.e2e.gateways import GatewayProcess, free_port, gateway_command, gateway_variables
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import model_server
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.timeout(300)

EXAMPLES = 25
"""Requests of each operation, mode and payment: the same ones on each run."""
DEPOSIT = 10**9


class Shop(NamedTuple):
    url: str
    credential: dict[str, str]
    """A credential that pays for all that is asked with it."""
    gateway: GatewayProcess


@pytest.fixture
async def shop(
    devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge
) -> AsyncIterator[Shop]:
    async with model_server() as model, httpx.AsyncClient(timeout=PATIENCE_S) as client:
        model.words = ["one"]  # no answer is longer than a request allows
        variables = gateway_variables(
            devnet.values,
            model.url,
            tmp_path / "ledger.db",
            free_port(),
            step_units=8,
            settles=False,
        )
        # The voucher is for all of the deposit, so that each request is paid for by the same one.
        for bound in ("CHANNEL_MAX", "SIGNER_MAX", "TOTAL_MAX"):
            variables[f"MPP_SESSION_EXPOSURE_{bound}"] = str(DEPOSIT)
        log = tmp_path / "gateway.log"
        gateway = GatewayProcess(gateway_command(), variables, log, forge=forge)
        async with gateway.running():
            customer = Customer(chain, client)
            await customer.open(gateway.url, DEPOSIT)
            credential = await customer.authorize(gateway.url, customer.payer.voucher(DEPOSIT))
            yield Shop(gateway.url, credential, gateway)


async def test_the_served_document_is_valid_openapi(shop: Shop) -> None:
    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{shop.url}/openapi.json")).json()
    faults = [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]
    assert not faults


async def test_no_request_that_the_document_allows_or_forbids_breaks_the_gateway(
    shop: Shop,
) -> None:
    """No answer is a 5xx, the log holds no error, and the gateway still sells afterwards."""
    asked = await asyncio.to_thread(lambda: list(ask_everything(shop)))
    statuses = {status for _, status in asked}
    assert {method for method, _ in asked} >= {"POST /v1/chat/completions", "GET /v1/models"}
    assert not [one for one in asked if one[1] >= 500]
    assert {200, 402} <= statuses
    assert any(400 <= status < 500 and status != 402 for status in statuses)
    assert "Traceback" not in shop.gateway.said()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        for _ in range(3):
            answer = await client.post(
                f"{shop.url}/v1/chat/completions", json=body, headers=shop.credential
            )
            if answer.status_code != 429:  # it bought nothing for a while
                break
            await asyncio.sleep(1)
    assert answer.status_code == 200, answer.text


def ask_everything(shop: Shop) -> Iterator[tuple[str, int]]:
    """Ask each operation with right and wrong requests; yield its name and each status."""
    schema = schemathesis.openapi.from_url(f"{shop.url}/openapi.json")
    for result in schema.get_all_operations():
        assert not isinstance(result, Err), result
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            for headers in ({}, shop.credential):
                for status in ask(operation, mode, shop.url, headers):
                    yield operation.label, status


def ask(operation: Any, mode: GenerationMode, url: str, headers: dict[str, str]) -> list[int]:
    statuses = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        answer = case.call(base_url=url, headers=headers, timeout=PATIENCE_S)
        statuses.append(answer.status_code)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)

    with contextlib.suppress(Unsatisfiable):  # a request without parameters cannot be wrong
        run()
    return statuses
