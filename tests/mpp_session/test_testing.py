"""The fixtures work as their manual says, for synchronous and asynchronous tests."""

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from eth_utils.address import to_checksum_address
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route as Endpoint

import mpp_session.testing
from channel.errors import CannotFundError, OfferRefusedError
from channel.http import Price, Route
from channel.types import Address
from mpp_session.testing import TestChain, TestPayer, TestProvider
from mpp_session.testing.provider import JOKE, WORDS
from settlement.artifacts import load_artifact
from tests.e2e.gateways import free_port
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
MANUAL = ROOT / "docs" / "guide" / "testing.md"
RICH = 1_000_000 * 10**6


# -- devnet, escrow, token


def test_a_synchronous_test_has_a_chain(devnet: TestChain, escrow: Address, token: Address) -> None:
    assert (escrow, token) == (devnet.values.escrow, devnet.values.token)
    someone = devnet.account("someone").address
    devnet.fund(someone, ether=1, amount=7)
    assert devnet.token_balance(someone) == 7


@pytest.mark.parametrize("round_", [1, 2])
def test_each_test_finds_the_chain_as_new(devnet: TestChain, round_: int) -> None:
    """A snapshot is used up by its revert: the second round would find what the first left."""
    someone = devnet.account("someone").address
    assert devnet.token_balance(someone) == 0
    devnet.fund(someone, amount=round_)
    devnet.advance(1000)


async def test_an_asynchronous_test_has_the_same_chain(devnet: TestChain) -> None:
    async with devnet.connect() as chain:
        assert await chain.token_balance(chain.account("payer").address) == RICH


# -- payer, provider


async def test_a_request_is_paid_for(provider: TestProvider, payer: TestPayer) -> None:
    async with payer.client() as client:
        answer = await client.get(f"{provider.url}/joke")
        assert answer.text == JOKE
        assert "payment-receipt" in answer.headers
    (channel,) = await asyncio.to_thread(provider.channels)
    assert channel.spent == 250
    assert channel.terms.payer == payer.account.address


async def test_a_stream_is_paid_for_word_by_word(provider: TestProvider, payer: TestPayer) -> None:
    async with payer.client() as client:
        answer = await client.get(f"{provider.url}/words")
    assert [word for word in WORDS if f"data: {word}\n" in answer.text] == list(WORDS)
    (channel,) = await asyncio.to_thread(provider.channels)
    assert channel.spent == 10 * len(WORDS)


async def test_the_rest_comes_back(
    provider: TestProvider, payer: TestPayer, devnet: TestChain
) -> None:
    async with payer.client() as client:
        await client.get(f"{provider.url}/joke")
        await client.payments.close()
    balances = [
        await asyncio.to_thread(devnet.token_balance, address)
        for address in (payer.account.address, provider.payee)
    ]
    assert balances == [RICH - 250, RICH + 250]


async def test_an_application_of_ones_own_is_sold(provider: TestProvider, payer: TestPayer) -> None:
    async def weather(request: Request) -> JSONResponse:
        return JSONResponse({"city": request.path_params["city"]})

    app = Starlette(routes=[Endpoint("/weather/{city}", weather)])
    price = Price(unit_price=5_000, unit_type="forecast")
    routes = [Route(method="GET", path="/weather/{city}", price=price)]
    url = await asyncio.to_thread(provider.serve, app, routes)
    async with payer.client(payer.policy({"forecast": 5_000})) as client:
        answer = await client.get(f"{url}/weather/Oslo")
    assert answer.json() == {"city": "Oslo"}
    async with payer.client(payer.policy({"forecast": 4_999})) as client:
        with pytest.raises(OfferRefusedError):
            await client.get(f"{url}/weather/Rome")


def test_a_request_without_payment_is_asked_to_pay(provider: TestProvider) -> None:
    """CORE-01, CORE-02."""
    answer = httpx.get(f"{provider.url}/joke")
    assert answer.status_code == 402
    assert answer.headers["www-authenticate"].startswith("Payment ")
    assert provider.channels() == []


async def test_the_provider_defends_itself(
    provider: TestProvider, payer: TestPayer, devnet: TestChain
) -> None:
    """CLOSE-08: a payer that leaves without paying is closed upon."""
    async with payer.client() as client:
        await client.get(f"{provider.url}/joke")
        (account,) = await client.payments.channels()
        await client.payments.request_close(account.key.channel_id)
    sweep = await asyncio.to_thread(provider.sweep)
    assert sweep.closed == 1
    assert await asyncio.to_thread(devnet.token_balance, provider.payee) == RICH + 250


# -- without gas


async def test_an_account_without_ether_pays_a_provider_that_pays_its_gas(
    sponsoring_provider: TestProvider, gasless_payer: TestPayer, devnet: TestChain
) -> None:
    """RELAY-06: one request opens the channel, and it sends no transaction of its own."""
    agent = gasless_payer.account.address
    async with gasless_payer.client() as client:
        answer = await client.get(f"{sponsoring_provider.url}/joke")
        assert answer.text == JOKE
        (account,) = await client.payments.close()
    assert account.opening is not None
    assert await asyncio.to_thread(devnet.token_balance, agent) == RICH - 250
    async with devnet.connect() as chain:
        assert await chain.rpc.balance_wei(agent) == 0


async def test_an_account_without_ether_learns_what_it_needs_elsewhere(
    provider: TestProvider, gasless_payer: TestPayer
) -> None:
    async with gasless_payer.client() as client:
        with pytest.raises(CannotFundError, match="hash: ether for gas"):
            await client.get(f"{provider.url}/joke")


def test_the_types_can_be_named_for_annotations() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TestNothing'"):
        _ = mpp_session.testing.TestNothing


# -- a plugin that costs nothing


def test_the_manual_runs_in_a_users_project(tmp_path: Path) -> None:
    """docs/guide/testing.md, its blocks, word for word."""
    blocks = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"test_block_{number}.py").write_text(block)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mpp_session.testing"]
    options = ["-o", "asyncio_mode=strict", "-p", "no:cacheprovider"]
    said = subprocess.run(  # noqa: S603
        [*command, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "4 passed" in said.stdout, said.stdout


def test_a_project_with_names_of_its_own_runs_beside_it(tmp_path: Path) -> None:
    """O-55: `service/`, `tests/`, `conftest.py` and `client.py`, under pytest and uvicorn."""
    files = {
        "service/__init__.py": "",
        "service/app.py": "from client import NAME\n\nasync def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "        await send({'type': 'http.response.body', 'body': NAME.encode()})\n",
        "client.py": "NAME = 'mine'\n",
        "conftest.py": "import pytest\n\n@pytest.fixture\ndef mine():\n    return 'mine'\n",
        "tests/__init__.py": "",
        "tests/test_mine.py": "from client import NAME\nfrom mpp_session import Route\n"
        "from service.app import app\n\n"
        "def test_mine(mine, devnet):\n"
        "    assert (NAME, app.__module__, Route.__name__) == (mine, 'service.app', 'Route')\n"
        "    assert devnet.values.chain_id == 31337\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    said = subprocess.run(  # noqa: S603
        pytest_command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert "1 passed" in said.stdout, said.stdout + said.stderr
    port = free_port()
    served = [sys.executable, "-m", "uvicorn", "service.app:app", "--port", str(port)]
    with subprocess.Popen(  # noqa: S603
        served, cwd=tmp_path, env=variables, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert _read_when_up(f"http://127.0.0.1:{port}/") == "mine"
        finally:
            server.terminate()


def _read_when_up(url: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return httpx.get(url).text
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


async def test_a_contract_of_ones_own_is_called_through_web3(devnet: TestChain) -> None:
    account = devnet.account("payer")
    abi = (await asyncio.to_thread(load_artifact, "DevUSD")).abi
    async with devnet.web3() as web3:
        token = web3.eth.contract(address=to_checksum_address(devnet.values.token), abi=abi)
        balance = await token.functions.balanceOf(to_checksum_address(account.address)).call()
    assert balance == await asyncio.to_thread(devnet.token_balance, account.address)


def test_programs_that_read_no_keystore_import_none_of_what_opens_one() -> None:
    """web3.py and eth_account take longer to import than the whole program."""
    imports = "import sys, mpp_session.cli, mpp_session.gateway.worker"
    code = f"{imports}; print([*{{'web3', 'eth_account'}} & {{*sys.modules}}])"
    said = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"


def test_runs_that_use_none_of_it_import_none_of_it() -> None:
    """Every pytest run loads an installed plugin: it must be light."""
    code = "import sys, mpp_session.testing; print([m for m in sys.modules if m.startswith(%r)])"
    for package in ("settlement", "channel", "web3", "eth_account", "starlette"):
        said = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code % package], capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == "[]"
