"""A selling provider, for tests of paying code and of applications that sell."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as Endpoint

from channel.engine import Engine, EngineSettings
from channel.http import PaidEventStream, PaymentGate, Price, Route
from channel.http.asgi import ASGIApp
from channel.ledger.sqlite import SqliteLedger
from channel.limits import SECRET_BYTES_MIN
from channel.state.channel_state import ChannelState
from channel.types import Address
from channel.verify.challenge_id import ChallengeBinder
from mpp_session.one_ledger import lock_payee, payee_name
from mpp_session.testing.chain import TestChain
from mpp_session.testing.settling import open_sender, settle_closes
from mpp_session.testing.sponsoring import PaidGas, pay_gas
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from settlement.node.rpc import Rpc
from settlement.settle.quarantine import Quarantine
from settlement.settle.refusals import JournalRefusals
from settlement.settle.settler import EscrowSettler
from settlement.watch.watcher import Sweep

__all__ = ["JOKE", "ROUTES", "WORDS", "TestProvider", "build_application"]

JOKE: Final = "A payer walks into a channel."

WORDS: Final = ("one", "token", "after", "the", "other")

ROUTES: Final = (
    Route(method="GET", path="/joke", price=Price(unit_price=250, unit_type="request")),
    Route(
        method="GET",
        path="/words",
        price=Price(unit_price=10, unit_type="llm_token"),
        metered=True,
    ),
)
"""Its own routes: a text at a fixed price, and a stream paid word by word."""


class TestProvider:
    """A gate, its ledger and its settler, paid by the devnet's account `payee`.

    Everything runs on the chain's event loop, in its thread. The methods block.
    """

    __test__ = False

    def __init__(self, chain: TestChain, directory: Path, *, pays_gas: bool = False) -> None:
        """Prepare a provider; with `pays_gas` it sends the deposits of payers that only sign."""
        self._chain = chain
        self._directory = directory
        self._pays_gas = pays_gas
        self._open = AsyncExitStack()

    def __enter__(self) -> Self:
        try:
            self._chain.run(self._start())
            self.url = self.serve(build_application(), ROUTES)
        except BaseException:
            self._chain.run(self._open.aclose())
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._chain.run(self._open.aclose())

    @property
    def payee(self) -> Address:
        """The address that is paid."""
        return self._chain.account("payee").address

    def serve(self, app: ASGIApp, routes: Sequence[Route]) -> str:
        """Sell `routes` of an ASGI application of yours; return its URL."""
        gate = PaymentGate(app, engine=self._engine, routes=routes, unit=self._unit)
        return self._chain.run(self._listen(gate))

    def channels(self) -> list[ChannelState]:
        """Return every channel in the ledger, as stored on disk."""
        return self._chain.run(self._ledger.list_channels())

    def sweep(self) -> Sweep:
        """Read the chain now, and close or settle what is due, as a gateway does periodically."""
        return self._chain.run(self._watcher.sweep())

    async def _start(self) -> None:
        values = self._chain.values
        rpc = await self._open.enter_async_context(await Rpc.connect(values.rpc_url))
        self._reader = EscrowReader(rpc, values.escrow)
        await self._reader.require_deployment(token=values.token)
        self._unit = await read_token_unit(rpc, values.token)
        self._ledger = await SqliteLedger.open(self._directory / "ledger.db", exclusive=True)
        self._open.push_async_callback(self._ledger.close)
        signer = self._chain.signer("payee")
        name = await payee_name(self._reader, signer.address)
        books = await self._ledger.identity(name)
        await self._open.enter_async_context(lock_payee(name, books, is_shared=False))
        sender, journal = await self._open.enter_async_context(
            open_sender(rpc, signer, self._directory)
        )
        paid: PaidGas | None = None
        if self._pays_gas:
            paying = pay_gas(self._reader, sender, journal, values.token, self._directory)
            paid = await self._open.enter_async_context(paying)
        settler = EscrowSettler(self._reader, sender, quarantine=Quarantine(journal))
        self._open.push_async_callback(settler.tasks.drain)
        self._watcher = await self._open.enter_async_context(
            settle_closes(self._reader, self._ledger, settler, signer.address)
        )
        self._engine = Engine(
            ledger=self._ledger,
            chain=self._reader,
            sponsor=None if paid is None else paid.sponsor,
            refusals=JournalRefusals(journal),
            binder=ChallengeBinder([secrets.token_bytes(SECRET_BYTES_MIN)]),
            settings=EngineSettings(
                realm="test provider",
                payee=signer.address,
                token=values.token,
                sponsor=None if paid is None else paid.terms,
            ),
        )
        self._open.push_async_callback(self._engine.aclose)

    async def _listen(self, app: ASGIApp) -> str:
        config = uvicorn.Config(
            app, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())

        async def stop() -> None:
            server.should_exit = True
            await serving

        self._open.push_async_callback(stop)
        while not server.started:
            if serving.done():
                await serving
            await asyncio.sleep(0.005)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"


def build_application() -> Starlette:
    """Return the provider's own application: `/joke` and `/words`."""
    return Starlette(routes=[Endpoint("/joke", _joke), Endpoint("/words", _words)])


async def _joke(_: Request) -> Response:
    return PlainTextResponse(JOKE)


async def _words(_: Request) -> Response:
    return PaidEventStream(_say())


async def _say() -> AsyncIterator[str]:
    for word in WORDS:
        yield word
