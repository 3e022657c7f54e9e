"""The nginx and Caddy examples of docs/deploy: real proxies in front of a real gateway."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from channel.http.request import read_client
from channel.limits import (
    AUTHORIZATION_BYTES_MAX,
    CHALLENGE_BYTES_MAX,
    HEAD_S_MAX,
    READ_S_MAX,
    REQUEST_BYTES_MAX,
)
from mpp_session.settings import Upstream
from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.e2e.customers import PATH, Customer
from tests.e2e.gateways import (
    PRICE,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
)
from tests.e2e.proxies import DEPLOY, PROXIES, Proxy, run_proxy
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import ModelServer, model_server
from tests.mpp_session.serving import serve
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.timeout(180)

PROBLEM = "application/problem+json"


@pytest.fixture(params=PROXIES)
def proxy_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Shop(NamedTuple):
    """A gateway behind a proxy, and a customer of the proxy."""

    proxy: Proxy
    gateway: GatewayProcess
    variables: dict[str, str]
    model: ModelServer
    customer: Customer


@pytest.fixture
async def shop(
    proxy_name: str, devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge
) -> AsyncIterator[Shop]:
    async with model_server() as model:
        variables = gateway_variables(
            devnet.values,
            model.url,
            tmp_path / "ledger.db",
            free_port(),
            step_units=8,
            settles=False,
        )
        log = tmp_path / "gateway.log"
        gateway = GatewayProcess(gateway_command(), variables, log, forge=forge)
        async with (
            gateway.running(),
            run_proxy(proxy_name, tmp_path / "proxy", gateway.url) as proxy,
            httpx.AsyncClient(verify=proxy.verify, timeout=PATIENCE_S, trust_env=False) as client,
        ):
            yield Shop(proxy, gateway, variables, model, Customer(chain, client))


async def test_each_chunk_of_a_paid_stream_arrives_before_the_model_makes_the_next(
    shop: Shop,
) -> None:
    """The model goes on only when the customer has what it said: a buffer would stop both."""
    shop.model.words = ["one", " two", " three"]
    shop.model.held.add("customer")
    await shop.customer.open(shop.proxy.url, 10**6)
    async with (
        asyncio.timeout(PATIENCE_S),
        shop.customer.events(shop.proxy.url, 8 * PRICE, user="customer") as events,
    ):
        async for _, data in events:
            if "one" in data:
                break
        assert shop.model.emitted["customer"] == 1
        shop.model.held.clear()
        rest = [data async for _, data in events]
    assert any("three" in data for data in rest)
    assert "[DONE]" in rest


async def test_the_model_stops_for_a_client_that_leaves_the_proxy(shop: Shop) -> None:
    shop.model.words, shop.model.delay_s = ["x"] * 10_000, 0.01
    await shop.customer.open(shop.proxy.url, 10**6)
    async with shop.customer.events(shop.proxy.url, 1000 * PRICE) as events:
        await anext(events)
    await asyncio.wait_for(shop.model.cancelled.wait(), PATIENCE_S)


@pytest.mark.parametrize("size", [REQUEST_BYTES_MAX + 1, 4 * REQUEST_BYTES_MAX])
async def test_a_body_beyond_the_bound_gets_the_gateway_s_typed_problem(
    shop: Shop, size: int
) -> None:
    client, url = shop.customer.client, shop.proxy.url
    assert (await client.post(url + PATH, content=b"x" * size)).status_code == 402
    await shop.customer.open(url, 10**6)
    paid = await shop.customer.authorize(url, shop.customer.payer.voucher(8 * PRICE))
    answer = await client.post(url + PATH, content=b"x" * size, headers=paid)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"].endswith("/content-too-large")


async def test_clients_of_a_gateway_that_is_away_learn_when_to_retry(shop: Shop) -> None:
    await shop.gateway.end()
    answer = await shop.customer.client.post(shop.proxy.url + PATH, json={})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["status"] == 503
    await shop.gateway.start()
    assert (await shop.customer.client.post(shop.proxy.url + PATH, json={})).status_code == 402


async def test_each_client_of_a_proxy_has_the_places_of_its_own_address(shop: Shop) -> None:
    """What a client claims of its address gives it no further ones."""
    await shop.gateway.end()
    shop.variables["MPP_SESSION_LIMITS_RUNNING_PER_ADDRESS"] = "1"
    await shop.gateway.start()
    shop.model.held.add("customer")
    url, customer = shop.proxy.url, shop.customer
    await customer.open(url, 10**6)
    async with customer.events(url, 8 * PRICE, user="customer") as events:
        await anext(events)
        for claimed in ({}, {"x-forwarded-for": "203.0.113.9"}):
            refused = await customer.buy(url, 16 * PRICE, headers=claimed)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
        transport = httpx.AsyncHTTPTransport(verify=shop.proxy.verify, local_address="127.0.0.7")
        async with httpx.AsyncClient(transport=transport, timeout=PATIENCE_S) as client:
            customer.client = client
            assert (await customer.buy(url, 16 * PRICE)).status_code == 200
        shop.model.held.clear()


async def diagnose(shop: Shop, forge: Forge, folder: Path, url: str, root: Path) -> dict[str, str]:
    """Return what `mpp-session doctor` finds of the proxy at a public address."""
    variables = shop.variables | {
        "MPP_SESSION_DISCOVERY_URL": url,
        "SSL_CERT_FILE": str(root),
    }
    done = await asyncio.to_thread(forge.run, ["doctor", "--json"], variables, folder)
    checks: list[dict[str, str]] = json.loads(done.stdout)["checks"]
    return next(check for check in checks if check["name"] == "proxy")


async def test_doctor_finds_the_examples_right_and_a_gateway_that_is_away(
    shop: Shop, forge: Forge, tmp_path: Path
) -> None:
    ask = partial(diagnose, shop, forge, tmp_path, root=shop.proxy.root)
    assert (await ask(shop.proxy.url))["verdict"] == "ok"
    elsewhere = await ask(shop.model.url)
    assert (elsewhere["verdict"], "not as this gateway" in elsewhere["found"]) == ("fault", True)
    await shop.gateway.end()
    away = await ask(shop.proxy.url)
    assert (away["verdict"], "does not reach" in away["found"]) == ("advice", True)


@pytest.mark.parametrize("proxy_name", ["nginx"], indirect=True)
@pytest.mark.parametrize(
    ("directive", "fault", "said"),
    [
        (
            "proxy_buffering",
            "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;",
            "holds event streams back",
        ),
        (
            "proxy_set_header X-Forwarded-For",
            "proxy_set_header X-Forwarded-For $http_x_forwarded_for;",
            "clients can choose their address",
        ),
    ],
)
async def test_doctor_names_what_a_proxy_does_wrong_and_the_directive_that_ends_it(  # noqa: PLR0917
    shop: Shop, forge: Forge, tmp_path: Path, directive: str, fault: str, said: str
) -> None:
    """The remedy is run as it is printed: its directive takes the place of the wrong one."""
    for number, verdict in enumerate(("fault", "ok")):
        folder = tmp_path / f"wrong-{number}"
        async with run_proxy("nginx", folder, shop.gateway.url, **{directive: fault}) as wrong:
            found = await diagnose(shop, forge, tmp_path, wrong.url, wrong.root)
        assert found["verdict"] == verdict, found
        if verdict == "fault":
            assert said in found["found"]
            fault = re.findall(rf"{directive} [^;]*;", found["remedy"])[0]


async def test_the_longest_offers_and_credentials_pass(proxy_name: str, tmp_path: Path) -> None:
    """A 402 with many long challenges, and a credential as long as the gateway reads."""
    offer = "Payment " + "x" * (CHALLENGE_BYTES_MAX // 16 - len("Payment "))

    async def answer(request: Request) -> Response:
        refused = Response(status_code=402)
        for _ in range(16):
            refused.headers.append("www-authenticate", offer)
        refused.headers["x-read"] = str(len(request.headers["authorization"]))
        return refused

    app = Starlette(routes=[Route("/", answer)])
    credential = "Payment " + "y" * (AUTHORIZATION_BYTES_MAX - len("Payment "))
    async with (
        serve(app, head_bytes_max=2 * AUTHORIZATION_BYTES_MAX) as url,
        run_proxy(proxy_name, tmp_path / "proxy", url) as proxy,
        httpx.AsyncClient(verify=proxy.verify, trust_env=False) as client,
    ):
        got = await client.get(proxy.url, headers={"authorization": credential})
    assert got.status_code == 402
    assert got.headers.get_list("www-authenticate") == [offer] * 16
    assert got.headers["x-read"] == str(len(credential))


@pytest.mark.parametrize("claimed", [None, "203.0.113.9", "203.0.113.9, 127.0.0.1"])
async def test_a_client_s_address_is_the_proxy_s_word_and_never_the_client_s(
    proxy_name: str, tmp_path: Path, claimed: str | None
) -> None:
    """By address the gateway bounds what strangers can cost; a client cannot choose another's."""

    async def answer(request: Request) -> Response:
        return JSONResponse(read_client(request.scope).hex())

    headers = {} if claimed is None else {"x-forwarded-for": claimed}
    async with (
        serve(Starlette(routes=[Route("/", answer)])) as url,
        run_proxy(proxy_name, tmp_path / "proxy", url) as proxy,
    ):
        for address in ("127.0.0.1", "127.0.0.7"):
            transport = httpx.AsyncHTTPTransport(verify=proxy.verify, local_address=address)
            async with httpx.AsyncClient(transport=transport) as client:
                seen = (await client.get(proxy.url, headers=headers)).json()
            assert seen == bytes(map(int, address.split("."))).hex()


def test_the_files_bounds_fit_the_gateway_s() -> None:
    """A proxy that gives up first cuts a paid stream; one that keeps a closed connection loses a
    request on it."""
    nginx = (DEPLOY / "nginx.conf").read_text()
    seconds = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)s;", nginx)}
    silence_s = Upstream(url="http://model").read_timeout_s
    assert seconds["proxy_read_timeout"] > silence_s
    assert seconds["proxy_send_timeout"] > silence_s
    assert seconds["send_timeout"] > READ_S_MAX
    assert seconds["keepalive_timeout"] < HEAD_S_MAX
    caddy = (DEPLOY / "Caddyfile").read_text()
    kept = re.search(r"keepalive (\d+)s", caddy)
    assert kept is not None
    assert int(kept.group(1)) < HEAD_S_MAX
    assert not re.search(r"(read|write|response_header)_timeout", caddy), "Caddy has none by itself"
