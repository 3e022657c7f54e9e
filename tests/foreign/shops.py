"""Other people's servers, each the real package, that sell `GET /joke` and `POST /joke`.

They settle on the chain with Circle's own USDC. `served` counts what they served.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from mpp.methods.evm import Authorization
from mpp.methods.evm import server as evm
from mpp.methods.evm.client import AuthorizationConfig
from mpp.server.http import Request as MppRequest
from mpp.server.mpp import Mpp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from x402 import x402Facilitator, x402ResourceServer
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import ExactEvmServerScheme, register_exact_evm_facilitator
from x402.schemas import AssetAmount

from channel.types import Address
from mpp_session.testing import TestChain
from settlement.abi import Function
from settlement.dev.devnet import Devnet
from settlement.tx.manager import TxManager
from tests.mpp_session.serving import serve

PRICE = 10_000
DOMAIN = {"name": "USD Coin", "version": "2"}
TRANSFER = Function(
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
)

Settle = Callable[[Authorization], Awaitable[str]]


class Shop:
    """Where a shop is, and what it served."""

    def __init__(self) -> None:
        self.url = ""
        self.served = 0
        self.price = "0.01"
        self.before: Callable[[], Response | None] = lambda: None
        """Answers instead of the goods, after the payment."""

    def serve(self) -> Response:
        answer = self.before()
        if answer is None:
            self.served += 1
            answer = JSONResponse({"joke": "A chain walks into a bar."})
        return answer


def settle_on(chain: Devnet) -> Settle:
    """Return pympp's hook: the stranger pays the gas, and the money goes where it was signed to."""
    sender = TxManager(chain.rpc, chain.signer("stranger"))

    async def settle(authorization: Authorization) -> str:
        payload = authorization.payload
        calldata = TRANSFER.encode(
            payload["from"],
            payload["to"],
            *(int(payload[name]) for name in ("value", "validAfter", "validBefore")),
            *(bytes.fromhex(payload[name][2:]) for name in ("nonce", "signature")),
        )
        receipt = await sender.send(chain.values.token, calldata)
        return "0x" + receipt.tx_hash.hex()

    return settle


@asynccontextmanager
async def pympp_shop(
    token: Address, payee: Address, chain_id: int, settle: Settle, **options: Any
) -> AsyncIterator[Shop]:
    """Sell by `evm` charge, and by x402 from the same object."""
    shop = Shop()
    method = evm.charge(
        currency="0x" + token.hex(),
        recipient="0x" + payee.hex(),
        chain_id=chain_id,
        decimals=6,
        authorization=AuthorizationConfig(name="USD Coin", version="2"),
        settle=settle,
        route_binding="resource",
        **options,
    )
    payments = Mpp(methods=[method], realm="shop.example", secret_key="s" * 32)

    async def joke(request: Request) -> Response:
        body = await request.body()
        asked = MppRequest(request.method, str(request.url), dict(request.headers), body or None)
        result = await payments.charge(amount=shop.price)(asked)
        if result.status != 200:
            refusal = result.challenge
            return Response(refusal.body, refusal.status, dict(refusal.headers.multi_items()))
        response: Response = result.with_receipt(shop.serve())
        return response

    app = Starlette(routes=[Route("/joke", joke, methods=["GET", "POST"])])
    async with serve(app) as shop.url:
        yield shop


@asynccontextmanager
async def x402_shop(
    facilitator: Any, token: Address, payee: Address, network: str
) -> AsyncIterator[Shop]:
    """Sell by x402's own middleware; it settles by the given facilitator, once served."""
    shop = Shop()
    server = x402ResourceServer([facilitator])
    scheme: Any = ExactEvmServerScheme  # its types do not agree with those of its base
    server.register(network, scheme())
    price = AssetAmount(amount=str(PRICE), asset="0x" + token.hex(), extra=DOMAIN)
    option = PaymentOption(scheme="exact", pay_to="0x" + payee.hex(), price=price, network=network)
    app = FastAPI()
    routes = {"GET /joke": RouteConfig(option), "POST /joke": RouteConfig(option)}
    app.add_middleware(PaymentMiddlewareASGI, routes=routes, server=server)

    @app.api_route("/joke", methods=["GET", "POST"])
    async def joke() -> Response:
        return shop.serve()

    async with serve(app) as shop.url:
        yield shop


def local_facilitator(chain: TestChain) -> x402Facilitator:
    """Return x402's own facilitator, in this process; the stranger pays the gas."""
    key = "0x" + chain.account("stranger").private_key.hex()
    network = f"eip155:{chain.values.chain_id}"
    signer = FacilitatorWeb3Signer(key, chain.values.rpc_url, gas_limit=300_000)
    facilitator = x402Facilitator()
    register_exact_evm_facilitator(facilitator, signer, networks=network)
    return facilitator
