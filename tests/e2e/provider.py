"""A real provider: escrow on a local chain, SQLite ledger, gate and meter under uvicorn."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as AppRoute

from channel.engine import Engine, EngineSettings, SponsorTerms
from channel.http import Event, PaidEventStream, PaymentGate, Price, Route
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.verify.challenge_id import ChallengeBinder
from mpp_session.testing.settling import settle_closes
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.settle.settler import EscrowSettler
from settlement.sponsor.capabilities import probe
from settlement.sponsor.orders.url import open_orders
from settlement.sponsor.sender import DepositSender
from settlement.sponsor.worker import SponsorLimits, WaitingSponsor
from settlement.tx.journal.url import open_journal
from settlement.tx.manager import TxManager
from settlement.tx.orders import OrderLimits

JOKE_PRICE = 100
TOKEN_PRICE = 10
DEPOSIT_MIN = 1_500


class Shop(msgspec.Struct):
    """What is for sale, and the books behind it."""

    url: str
    ledger: Ledger
    engine: Engine
    served: list[str]


@asynccontextmanager
async def sponsored(
    devnet: Devnet,
    folder: Path,
    *,
    types: Sequence[str] = (),
    wait_s: float = 10.0,
    gas_gwei: int = 10**9,
) -> AsyncIterator[dict[str, Any]]:
    """What `open_shop` needs to pay the gas of deposits by signature, all in this process."""
    url, chain_id = f"sqlite:///{folder / 'ledger.db'}", devnet.values.chain_id
    payee = devnet.values.accounts["payee"].address
    reader = EscrowReader(devnet.rpc, devnet.values.escrow)
    capabilities = await probe(reader, devnet.values.token)
    journal = await open_journal(url, account=payee, chain_id=chain_id)
    await journal.take_lease("this test", ttl_s=600)
    orders = await open_orders(url, chain_id=chain_id, escrow=reader.escrow)
    limits = SponsorLimits(
        orders=OrderLimits(period_s=3600, gas_gwei=gas_gwei, per_funder=1000),
        gas_price_max_wei=100 * 10**9,
        margin_s=60,
        wait_s=wait_s,
    )
    sender = TxManager(devnet.rpc, devnet.signer("payee"), journal=journal)
    works = [sender.run(), DepositSender(orders, reader, sender, journal).run()]
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield {
            "sender": sender,
            "sponsor": WaitingSponsor(orders, reader, sender=payee, limits=limits),
            "terms": SponsorTerms(
                credential_types=(*(types or capabilities.able), "hash"),
                token_domain=capabilities.token_domain,
                deposit_min=DEPOSIT_MIN,
                per_source_max=1_000,
            ),
        }
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await orders.close()
        await journal.close()


@asynccontextmanager
async def open_shop(
    devnet: Devnet,
    folder: Path,
    *,
    tokens: int = 100,
    sponsoring: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Shop]:
    values = devnet.values
    ledger = await open_ledger(f"sqlite:///{folder / 'ledger.db'}", exclusive=True)
    reader = EscrowReader(devnet.rpc, values.escrow)
    paid_for = sponsoring or {"sender": devnet.sender("payee"), "sponsor": None, "terms": None}
    settler = EscrowSettler(reader, paid_for["sender"])
    engine = Engine(
        ledger=ledger,
        chain=reader,
        sponsor=paid_for["sponsor"],
        binder=ChallengeBinder([b"a secret of this test, long enough"]),
        settings=EngineSettings(
            realm="shop.example",
            payee=values.accounts["payee"].address,
            token=values.token,
            sponsor=paid_for["terms"],
            **({"vouchers_per_second": 1_000} | settings),
        ),
    )
    served: list[str] = []

    async def joke(request: Request) -> Response:
        served.append(request.url.path)
        return JSONResponse({"joke": "A chain walks into a bar."})

    async def chat(_request: Request) -> Response:
        return PaidEventStream(speak(tokens))

    app = PaymentGate(
        Starlette(
            routes=[
                AppRoute("/joke", joke),
                AppRoute("/v1/chat/completions", chat, methods=["POST"]),
            ]
        ),
        engine=engine,
        routes=[
            Route(
                method="GET", path="/joke", price=Price(unit_price=JOKE_PRICE, unit_type="request")
            ),
            Route(
                method="POST",
                path="/v1/chat/completions",
                price=Price(unit_price=TOKEN_PRICE, unit_type="llm_chunk"),
                metered=True,
            ),
        ],
    )
    try:
        payee = values.accounts["payee"].address
        async with settle_closes(reader, ledger, settler, payee), serving(app) as url:
            yield Shop(url, ledger, engine, served)
    finally:
        await engine.aclose()
        await settler.tasks.drain()
        await ledger.close()


async def speak(tokens: int) -> AsyncIterator[Event]:
    for index in range(tokens):
        chunk = {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": {"content": f"t{index} "}}],
        }
        yield Event(json.dumps(chunk))
    yield Event("[DONE]", units=0)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http="h11", log_level="warning", lifespan="off"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())  # noqa: SLF001 -- `serve` would take our signals
    while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
