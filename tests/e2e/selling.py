"""A provider as it runs: uvicorn, an engine, a SQLite file, and the escrow on Anvil."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as AppRoute

from channel.engine import Engine, EngineSettings, SponsorTerms
from channel.errors import ChainUnavailableError
from channel.http import PaidEventStream, PaymentGate, Price, Route
from channel.ledger.sqlite import SqliteLedger
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenHash,
    TopUpHash,
)
from channel.state.channel_state import ChannelState
from channel.types import (
    ZERO_ADDRESS,
    Address,
    ChannelKey,
    ChannelTerms,
    SignedVoucher,
    TxHash,
)
from channel.verify.challenge_id import ChallengeBinder
from channel.verify.signature import sign
from channel.verify.typed_data import derive_channel_id
from channel.wire.challenge import Challenge, parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    ClosePayload,
    Payload,
    VoucherPayload,
)
from mpp_session.testing.settling import open_sender, settle_closes
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.node.values import parse_quantity
from settlement.settle.executor import SettledChannel, Settler
from settlement.settle.jobs import CloseResult
from settlement.settle.quarantine import Quarantine
from settlement.settle.refusals import JournalRefusals
from settlement.settle.settler import EscrowSettler
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.manager import TxManager
from tests.mpp_session.serving import serve
from tests.waiting import PATIENCE_S

SECRET = b"a secret of thirty-two bytes or so"
PRICE = 10
DELTA = 20
DEPOSIT = 1_000
JOKE = "/joke"
TOKENS = "/tokens"


class Clock:
    """The machine's clock, which a test may move ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return (self._stopped_at or time.time()) + self.ahead_s

    def stop(self) -> None:
        """Move by the test alone from now on."""
        self._stopped_at = time.time()


class Payer:
    """The devnet's payer: opens real channels and signs vouchers for them."""

    def __init__(self, chain: Devnet, name: str = "payer") -> None:
        self._chain = chain
        self._account = PayerAccount(chain.sender("payer"))
        self.address = chain.account("payer").address
        self.private_key = chain.account(name).private_key
        self.terms = ChannelTerms(
            self.address, chain.account("payee").address, chain.values.token, ZERO_ADDRESS
        )
        self.salt = bytes(32)
        self.key: ChannelKey
        self.open_tx: TxHash

    async def open(self, deposit: int = DEPOSIT, *, signer: Address = ZERO_ADDRESS) -> None:
        values = self._chain.values
        self.terms = replace(self.terms, authorized_signer=signer)
        self.salt = (int.from_bytes(self.salt) + 1).to_bytes(32)
        self.open_tx = await self._account.open_channel(
            escrow=values.escrow,
            payee=self.terms.payee,
            token=values.token,
            deposit=deposit,
            salt=self.salt,
            authorized_signer=signer,
        )
        channel_id = derive_channel_id(
            self.terms, salt=self.salt, escrow=values.escrow, chain_id=values.chain_id
        )
        self.key = ChannelKey(values.chain_id, values.escrow, channel_id)

    async def request_close(self) -> None:
        await self._account.request_close(escrow=self.key.escrow, channel_id=self.key.channel_id)

    async def withdraw(self) -> None:
        await self._account.withdraw(escrow=self.key.escrow, channel_id=self.key.channel_id)

    async def top_up(self, amount: int) -> TopUpHash:
        tx_hash = await self._account.top_up(
            escrow=self.key.escrow,
            token=self.terms.token,
            channel_id=self.key.channel_id,
            amount=amount,
        )
        return TopUpHash(channel_id=self.key.channel_id, additional_deposit=amount, tx_hash=tx_hash)

    def sign(
        self, amount: int, *, over: ChannelKey | None = None, key: bytes | None = None
    ) -> SignedVoucher:
        """Sign a voucher, on request over something else or with another key."""
        signature = sign(key or self.private_key, EVM.voucher_digest(over or self.key, amount))
        return SignedVoucher(self.key.channel_id, amount, signature)

    def voucher(self, amount: int) -> VoucherPayload:
        return VoucherPayload(self.sign(amount))

    def closing(self, amount: int) -> ClosePayload:
        return ClosePayload(self.sign(amount))

    def opening(self, amount: int = 0) -> OpenHash:
        return OpenHash(
            voucher=self.sign(amount),
            salt=self.salt,
            authorized_signer=self.terms.authorized_signer,
            tx_hash=self.open_tx,
        )


class ReplaceableSettler:
    """The settler that a test gives it; with None, one whose node is down."""

    def __init__(self, settler: Settler) -> None:
        self.by: Settler | None = settler

    async def close_channel(self, *args: Any, **options: Any) -> CloseResult:
        if self.by is None:
            raise ChainUnavailableError("No node answers.")
        return await self.by.close_channel(*args, **options)

    async def settle_channel(self, *args: Any, **options: Any) -> SettledChannel:
        if self.by is None:
            raise ChainUnavailableError("No node answers.")
        return await self.by.settle_channel(*args, **options)


class Provider:
    """What a test needs to reach: the server's URL, its books, its chain."""

    def __init__(
        self,
        chain: Devnet,
        ledger: SqliteLedger,
        settings: EngineSettings,
        sender: TxManager,
        journal: SettlerJournal,
        **parts: Any,
    ) -> None:
        self.chain = chain
        self.ledger = ledger
        self.clock = Clock()
        self.reader = EscrowReader(chain.rpc, chain.values.escrow)
        self.journal = journal
        self.sender = sender
        quarantine = Quarantine(journal, clock=self.clock)
        self.settler = EscrowSettler(self.reader, sender, quarantine=quarantine)
        self.settles = ReplaceableSettler(self.settler)
        self.engine = Engine(
            ledger=ledger,
            chain=parts.get("reader", self.reader),
            refusals=JournalRefusals(journal),
            binder=ChallengeBinder([SECRET]),
            settings=settings,
            sponsor=parts.get("sponsor"),
            admission=parts.get("admission"),
            now=self.clock,
        )
        self.payer = Payer(chain)
        self.served = 0
        self.client: httpx.AsyncClient

    def settler_of(self, account: str) -> EscrowSettler:
        """Return a settler with another account's key: the escrow refuses what it sends."""
        sender = self.chain.sender(account)
        return EscrowSettler(self.reader, sender, quarantine=Quarantine(self.journal))

    def app(self) -> PaymentGate:
        async def joke(_: Request) -> Response:
            self.served += 1
            return PlainTextResponse(f"joke {self.served}")

        async def tokens(request: Request) -> Response:
            self.served += 1
            count = int(request.query_params.get("count", "3"))

            async def produce() -> AsyncIterator[str]:
                for number in range(count):
                    yield f"token {number}"

            return PaidEventStream(produce())

        async def broken(_: Request) -> Response:
            self.served += 1
            return JSONResponse({"error": "no joke today"}, status_code=500)

        return PaymentGate(
            Starlette(
                routes=[
                    AppRoute(JOKE, joke, methods=["GET", "POST"]),
                    AppRoute(TOKENS, tokens),
                    AppRoute("/broken", broken),
                ]
            ),
            engine=self.engine,
            routes=[
                _route("GET", JOKE),
                _route("POST", JOKE),
                _route("GET", "/broken"),
                _route("GET", TOKENS, metered=True),
            ],
        )

    async def challenge(self, path: str = JOKE, method: str = "GET") -> Challenge:
        answer = await self.client.request(method, path)
        return parse_challenges(answer.headers.get_list("www-authenticate"))[0]

    async def credential(
        self, payload: Payload, *, path: str = JOKE, challenge: Challenge | None = None
    ) -> Credential:
        source = (self.chain.values.chain_id, self.payer.address)
        return Credential(challenge or await self.challenge(path), payload, source)

    async def send(
        self,
        payload: Payload | Credential | str,
        *,
        method: str = "GET",
        path: str = JOKE,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """Answer a fresh challenge with a payload, or send a credential as it is."""
        if isinstance(payload, str):
            text = payload
        elif isinstance(payload, Credential):
            text = format_credential(payload)
        else:
            text = format_credential(await self.credential(payload, path=path))
        return await self.client.request(
            method, path, headers={"authorization": text, **(headers or {})}, content=content
        )

    async def authorization(self, payload: Payload, path: str) -> str:
        """Return the header that pays for a path."""
        return format_credential(await self.credential(payload, path=path))

    async def manage(self, payload: Payload) -> httpx.Response:
        return await self.send(payload, method="HEAD")

    async def opened(self, amount: int = 0, deposit: int = DEPOSIT) -> None:
        """Open a channel on chain and here."""
        await self.payer.open(deposit)
        answer = await self.manage(self.payer.opening(amount))
        assert answer.status_code == 200

    async def books(self) -> ChannelState | None:
        return await self.ledger.load(self.payer.key)


def _route(method: str, path: str, *, metered: bool = False) -> Route:
    price = Price(unit_price=PRICE, unit_type="joke", min_voucher_delta=DELTA)
    return Route(method=method, path=path, price=price, metered=metered)


@asynccontextmanager
async def provide(
    chain: Devnet,
    path: Path,
    *,
    reader: Any = None,
    sponsor: Any = None,
    admission: Any = None,
    sponsor_terms: SponsorTerms | None = None,
    build: Callable[[Provider], PaymentGate] = Provider.app,
    **changes: Any,
) -> AsyncIterator[Provider]:
    """Serve on a free port, and settle; everything is closed at the end."""
    settings = EngineSettings(
        realm="jokes.example",
        payee=chain.account("payee").address,
        token=chain.values.token,
        fact_ttl_s=0,
        fact_age_s_max=0,
        vouchers_per_second=1_000,
        transaction_wait_s=PATIENCE_S,
        sponsor=sponsor_terms,
    )
    ledger = await SqliteLedger.open(path / "ledger.sqlite", exclusive=True)
    parts = {"reader": reader, "sponsor": sponsor, "admission": admission}
    given = {name: part for name, part in parts.items() if part}
    async with AsyncExitStack() as open_:
        open_.push_async_callback(ledger.close)
        sender, journal = await open_.enter_async_context(
            open_sender(chain.rpc, chain.signer("payee"), path)
        )
        settings = replace(settings, **changes)
        provider = Provider(chain, ledger, settings, sender, journal, **given)
        open_.push_async_callback(provider.settler.aclose)
        await open_.enter_async_context(
            settle_closes(provider.reader, ledger, provider.settles, settings.payee)
        )
        open_.push_async_callback(provider.engine.aclose)
        url = await open_.enter_async_context(serve(build(provider)))
        provider.client = await open_.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False)
        )
        yield provider


async def sent_by_payee(seller: Provider) -> int:
    """Return how many transactions of the payee are mined."""
    account = "0x" + seller.chain.account("payee").address.hex()
    return parse_quantity(await seller.chain.rpc.read("eth_getTransactionCount", account, "latest"))
