"""A provider whose fixed prices are paid by charges and x402: worker and settler in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as AppRoute

from channel.http import PaymentGate, Price, Route
from channel.http.hooks import Hooks, ReceiptEvent
from channel.tasks import Tasks
from channel.types import Address
from mpp_session.rails.serving import ChargeRails
from mpp_session.rails.verifier import ChargeTerms, ChargeVerifier
from mpp_session.testing.settling import ledger_url
from settlement.charge.capabilities import require_transfers
from settlement.charge.orders.interface import ChargeOrders, GasLimit
from settlement.charge.orders.url import open_charges
from settlement.charge.sender import ChargeSender
from settlement.charge.worker import ChargeLimits, ChargeWorker
from settlement.dev.devnet import Devnet
from settlement.node.values import parse_quantity
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.manager import TxManager
from tests.e2e.selling import SECRET, Clock, Provider, provide

JOKE = "/joke"
PRICE = 10_000
LIMITS = ChargeLimits(
    gas=GasLimit(period_s=3600, gas_gwei=10**9),
    gas_price_max_wei=100 * 10**9,
    margin_s=60,
    wait_s=10,
    lease_s=60,
)


class Sales(Hooks):
    """Remembers what was sold."""

    def __init__(self) -> None:
        self.receipts: list[ReceiptEvent] = []

    def on_receipt(self, event: ReceiptEvent) -> None:
        self.receipts.append(event)


class Shop:
    """The parts that a test of charges uses."""

    def __init__(
        self, provider: Provider, orders: ChargeOrders, worker: ChargeWorker, clock: Clock
    ) -> None:
        self.provider = provider
        self.orders = orders
        self.worker = worker
        self.clock = clock
        self.chain = provider.chain
        self.sales = Sales()
        self.served = 0
        self.fails = False
        """Whether the handler breaks off."""
        self.is_refusing = False
        """Whether it answers that it cannot."""
        self.may_go_on = asyncio.Event()
        """What it waits for."""
        self.may_go_on.set()
        self.seen: dict[str, str] = {}
        """The header fields of the last request that the application got."""
        self.url = ""
        self.rails: ChargeRails | None = None

    @property
    def client(self) -> httpx.AsyncClient:
        return self.provider.client

    @asynccontextmanager
    async def settler(self) -> AsyncIterator[None]:
        """Run a new settler, which knows of earlier ones what journal and orders tell."""
        sender = TxManager(self.chain.rpc, self.provider.sender.signer, journal=self.journal)
        await sender.recover()
        payee = self.chain.account("payee").address
        charges = ChargeSender(
            self.orders, sender, self.journal, token=self.chain.values.token, payee=payee
        )
        async with Tasks() as tasks:
            tasks.start(sender.run())
            tasks.start(charges.run())
            yield

    @property
    def journal(self) -> SettlerJournal:
        return self.provider.journal

    async def sent(self) -> int:
        """Return how many transactions of the payee were mined; each one cost gas."""
        account = "0x" + self.chain.account("payee").address.hex()
        count = await self.chain.rpc.read("eth_getTransactionCount", account, "latest")
        return parse_quantity(count)

    async def balance(self, address: Address | None = None) -> int:
        return await self.chain.token_balance(address or self.chain.account("payee").address)

    def gate(self, rails: ChargeRails) -> PaymentGate:
        async def joke(request: Request) -> Response:
            self.served += 1
            self.seen = dict(request.headers)
            await self.may_go_on.wait()
            if self.is_refusing:
                return PlainTextResponse("no joke today", status_code=503)
            if self.fails:
                raise RuntimeError("no joke today")
            body = await request.body()
            return PlainTextResponse(f"joke {self.served}{body.decode()}")

        async def refused(_: Request) -> Response:
            return PlainTextResponse("no such joke", status_code=404)

        async def stream(_: Request) -> Response:
            self.served += 1

            async def produce() -> AsyncIterator[str]:
                yield "one "
                if self.fails:
                    raise RuntimeError("the model is gone")
                yield "two"

            return StreamingResponse(produce(), media_type="text/plain")

        app = Starlette(
            routes=[
                AppRoute(JOKE, joke, methods=["GET", "POST"]),
                AppRoute("/refused", refused),
                AppRoute("/stream", stream),
                AppRoute("/cheap", joke),
                AppRoute("/metered", joke),
            ]
        )
        price = Price(unit_price=PRICE, unit_type="joke")
        return PaymentGate(
            app,
            engine=self.provider.engine,
            routes=[
                Route(method="GET", path=JOKE, price=price),
                Route(method="POST", path=JOKE, price=price),
                Route(method="GET", path="/refused", price=price),
                Route(method="GET", path="/stream", price=price),
                Route(method="GET", path="/cheap", price=Price(unit_price=1, unit_type="joke")),
                Route(method="GET", path="/metered", price=price, metered=True),
            ],
            rails=rails,
            hooks=self.sales,
        )


@asynccontextmanager
async def open_shop(
    chain: Devnet, folder: Path, *, limits: ChargeLimits = LIMITS, sends: bool = True
) -> AsyncIterator[Shop]:
    """Serve, and settle what is paid; without `sends` no process broadcasts until asked."""
    values = chain.values
    payee = chain.account("payee").address
    domain = await require_transfers(chain.rpc, values.token, payee=payee, sender=payee)
    async with AsyncExitStack() as open_:
        orders = await open_charges(
            ledger_url(folder), chain_id=values.chain_id, token=values.token
        )
        open_.push_async_callback(orders.close)
        clock = Clock()
        worker = ChargeWorker(
            orders,
            chain.rpc,
            token=values.token,
            payee=payee,
            sender=payee,
            limits=limits,
            now=clock,
        )
        terms = ChargeTerms(
            chain_id=values.chain_id,
            token=values.token,
            token_name=domain.name,
            token_version=domain.version,
            decimals=values.token_decimals,
            payee=payee,
            realm="jokes.example",
            secret=SECRET,
            challenge_lifetime_s=300,
        )
        rails = ChargeRails(ChargeVerifier(terms), worker, amount_min=100)
        shops: list[Shop] = []

        def build(provider: Provider) -> PaymentGate:
            shops.append(Shop(provider, orders, worker, clock))
            return shops[0].gate(rails)

        provider = await open_.enter_async_context(provide(chain, folder, build=build))
        shop = shops[0]
        shop.rails = rails
        shop.url = str(provider.client.base_url)

        if sends:
            await open_.enter_async_context(shop.settler())
        yield shop
