"""Other people's clients pay one route beside its session: each is the real package.

They pay in Circle's own USDC, and what they signed is settled on a chain to the base unit.
"""

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from eth_account import Account
from mpp.client.transport import PaymentTransport
from mpp.methods.evm.client import AuthorizationConfig, evm
from x402 import x402Client
from x402.http.clients.httpx import wrapHttpxWithPayment
from x402.mechanisms.evm.exact import ExactEvmClientScheme

from channel.types import TxHash
from channel.wire.encoding import format_checksum_address
from mpp_session.demo.clients import Answer, PayerTerms
from mpp_session.testing.chain import TestChain
from tests.e2e.charging import JOKE, PRICE, Shop, open_shop
from tests.foreign.running import pay_by_npm

GAS_MAX = 100_000
"""As docs/guide/rails.md says."""
TOKEN: AuthorizationConfig = {"name": "USD Coin", "version": "2"}


@pytest.fixture(scope="module")
def usdc() -> Iterator[TestChain]:
    with TestChain("usdc") as chain:
        yield chain


@pytest.fixture
async def shop(usdc: TestChain, tmp_path: Path) -> AsyncIterator[Shop]:
    async with usdc.connect() as chain, open_shop(chain, tmp_path) as opened:
        yield opened


def key_of(shop: Shop) -> str:
    return "0x" + shop.chain.account("agent").private_key.hex()


def read_response(value: str | None) -> dict[str, Any]:
    """Return what a `PAYMENT-RESPONSE` states."""
    assert value is not None
    decoded: dict[str, Any] = msgspec.json.decode(base64.b64decode(value))
    return decoded


def read_receipt(value: str | None) -> dict[str, Any]:
    """Return what a `Payment-Receipt` states."""
    assert value is not None
    text = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    decoded: dict[str, Any] = msgspec.json.decode(text)
    return decoded


class Till:
    """Counts what a test's clients pay."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.agent = shop.chain.account("agent").address
        self.before: tuple[int, int, int] = (0, 0, 0)

    async def _count(self) -> tuple[int, int, int]:
        shop = self.shop
        return await shop.balance(), await shop.balance(self.agent), await shop.sent()

    async def __aenter__(self) -> None:
        self.before = await self._count()

    async def __aexit__(self, failed: object, *_: object) -> None:
        if failed is None:
            payee, payer, sent = [
                now - then for now, then in zip(await self._count(), self.before, strict=True)
            ]
            assert (payee, payer, sent) == (PRICE, -PRICE, 1)


def by_pympp(shop: Shop) -> httpx.AsyncClient:
    values = shop.chain.values
    method = evm(
        account=Account.from_key(key_of(shop)),
        currency=format_checksum_address(values.token),
        chain_id=values.chain_id,
        decimals=values.token_decimals,
        authorization=TOKEN,
    )
    return httpx.AsyncClient(transport=PaymentTransport(methods=[method]))


def by_x402(shop: Shop) -> httpx.AsyncClient:
    signer = Account.from_key(key_of(shop))
    client = x402Client().set_spend_controls({"allowed_assets": True})
    return wrapHttpxWithPayment(client.register("eip155:*", ExactEvmClientScheme(signer)))


async def by_npm(shop: Shop, folder: Path, name: str) -> Answer:
    values = shop.chain.values
    return await pay_by_npm(
        folder,
        name,
        shop.url.rstrip("/") + JOKE,
        PayerTerms(
            key=key_of(shop),
            chain_id=values.chain_id,
            token=format_checksum_address(values.token),
            token_name=TOKEN["name"],
            token_version=TOKEN["version"],
        ),
    )


async def refuse_replay(shop: Shop) -> None:
    """Send what the client paid with once more: it buys nothing and moves nothing."""
    before = await shop.balance()
    names = ("authorization", "payment-signature")
    (paid,) = [shop.seen[name] for name in names if name in shop.seen]
    name = names["authorization" not in shop.seen]
    again = await shop.client.get(JOKE, headers={name: paid})
    assert again.status_code == 402
    assert "was used" in again.json()["detail"]
    assert shop.served == 1
    assert await shop.balance() == before


async def test_pympp_pays_a_charge(shop: Shop) -> None:
    async with by_pympp(shop) as client, Till(shop):
        answer = await client.get(shop.url.rstrip("/") + JOKE)
        assert (answer.status_code, answer.text) == (200, "joke 1")
        assert answer.headers["cache-control"] == "private"
        assert read_receipt(answer.headers["payment-receipt"])["method"] == "evm"
        assert "payment-response" not in answer.headers
    await refuse_replay(shop)


async def test_the_python_client_of_x402_pays_exactly(shop: Shop) -> None:
    async with by_x402(shop) as client, Till(shop):
        answer = await client.get(shop.url.rstrip("/") + JOKE)
        assert (answer.status_code, answer.text) == (200, "joke 1")
        said = read_response(answer.headers["payment-response"])
        assert (said["success"], said["network"]) == (True, "eip155:31337")
        mined = await shop.chain.rpc.receipt(TxHash(bytes.fromhex(said["transaction"][2:])))
        assert mined is not None
        assert mined.gas_used < GAS_MAX
    await refuse_replay(shop)


async def test_mppx_pays_a_charge(shop: Shop, tmp_path: Path) -> None:
    async with Till(shop):
        paid = await by_npm(shop, tmp_path, "mppx")
        assert (paid.error, paid.status, paid.text) == ("", 200, "joke 1")
        assert read_receipt(paid.receipt)["status"] == "success"
    await refuse_replay(shop)


async def test_the_npm_client_of_x402_pays_exactly(shop: Shop, tmp_path: Path) -> None:
    async with Till(shop):
        paid = await by_npm(shop, tmp_path, "x402-npm")
        assert (paid.error, paid.status, paid.text) == ("", 200, "joke 1")
        assert read_response(paid.response)["success"] is True
    await refuse_replay(shop)
