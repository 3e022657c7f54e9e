"""A provider and a payer for tests: an engine on a real SQLite ledger, and what to send it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from channel.engine import Engine, EngineSettings, Offer
from channel.engine.admission import Admission
from channel.ledger.interface import Ledger
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
from channel.verify.signature import address_of, sign
from channel.wire.challenge import Challenge, parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    ClosePayload,
    Payload,
    VoucherPayload,
)
from channel.wire.problem import OWN_BASE, PROBLEM_BASE, problem_uri
from channel.wire.receipt import Receipt, parse_receipt
from tests.channel.chain_model import CHAIN_ID, ChainModel
from tests.channel.settling import settling
from tests.waiting import PATIENCE_S

REALM = "api.example.com"
SECRET = b"a secret of thirty-two bytes or so"
PAYEE = Address(b"\xb2" * 20)
TOKEN = Address(b"\xc3" * 20)
PAYER_KEY = b"\x11" * 32
STRANGER_KEY = b"\x22" * 32
PRICE = 10
DEPOSIT = 1_000
SETTINGS = EngineSettings(
    realm=REALM,
    payee=PAYEE,
    token=TOKEN,
    vouchers_per_second=10_000,
    transaction_wait_s=PATIENCE_S,
    close_wait_s=PATIENCE_S,
    close_timeout_s=PATIENCE_S,
)


class Clock:
    """Wall-clock time that a test moves, and nothing else: a pause of the machine is not seen."""

    def __init__(self) -> None:
        self._now = 1_800_000_000.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


class Payer:
    """A payer with a key, who opens channels in the chain model and signs vouchers."""

    def __init__(self, chain: ChainModel, private_key: bytes = PAYER_KEY) -> None:
        self.chain = chain
        self.private_key = private_key
        self.address = address_of(private_key)
        self.terms = ChannelTerms(self.address, PAYEE, TOKEN, ZERO_ADDRESS)
        self.salt = b"\x01" * 32
        self.key: ChannelKey
        self.open_tx: TxHash

    def open_on_chain(self, deposit: int = DEPOSIT) -> None:
        self.key, self.open_tx = self.chain.open(self.terms, self.salt, deposit)

    def sign(
        self, amount: int, key: ChannelKey | None = None, *, entropy: bytes | None = None
    ) -> SignedVoucher:
        key = key or self.key
        signature = sign(self.private_key, EVM.voucher_digest(key, amount), entropy=entropy)
        return SignedVoucher(key.channel_id, amount, signature)

    def opening(self, amount: int = 0) -> OpenHash:
        return OpenHash(
            voucher=self.sign(amount),
            salt=self.salt,
            authorized_signer=self.terms.authorized_signer,
            tx_hash=self.open_tx,
        )

    def voucher(self, amount: int) -> VoucherPayload:
        return VoucherPayload(self.sign(amount))

    def closing(self, amount: int, *, entropy: bytes | None = None) -> ClosePayload:
        """A close; by a client that signs as RFC 6979 says unless there is `entropy`."""
        return ClosePayload(self.sign(amount, entropy=entropy))

    def top_up(self, amount: int) -> TopUpHash:
        tx_hash = self.chain.top_up(self.key, amount)
        return TopUpHash(channel_id=self.key.channel_id, additional_deposit=amount, tx_hash=tx_hash)

    def credential(self, challenge: Challenge, payload: Payload) -> Credential:
        return Credential(challenge, payload, (CHAIN_ID, self.address))


class Provider:
    """An engine with everything around it, and one route to sell."""

    def __init__(
        self,
        ledger: Ledger,
        chain: ChainModel,
        clock: Clock,
        settings: EngineSettings,
        admission: Admission | None = None,
    ) -> None:
        self.ledger = ledger
        self.chain = chain
        self.clock = clock
        self.engine = Engine(
            ledger=ledger,
            chain=chain,
            binder=ChallengeBinder([SECRET]),
            settings=settings,
            admission=admission,
            refusals=chain,
            now=clock,
        )
        self.payer = Payer(chain)
        self.offer = Offer(
            request=self.engine.ask(unit_price=PRICE, unit_type="request"),
            http_method="GET",
            route="/paid",
        )

    async def state(self) -> ChannelState | None:
        return await self.ledger.load(self.payer.key)

    async def books(self) -> ChannelState:
        state = await self.state()
        assert state is not None
        return state


@asynccontextmanager
async def open_provider(
    path: Path,
    settings: EngineSettings = SETTINGS,
    *,
    admission: Admission | None = None,
    has_settler: bool = True,
    **changes: Any,
) -> AsyncIterator[Provider]:
    """Open an engine on a ledger file, and a settler beside it; closes all.

    Without a settler, a test writes to the ledger what one would.
    """
    ledger = await SqliteLedger.open(path / "ledger.sqlite", exclusive=True)
    provider = Provider(ledger, ChainModel(), Clock(), replace(settings, **changes), admission)
    try:
        beside = settling(ledger, provider.chain, provider.engine.settings.payee)
        async with beside if has_settler else nullcontext():
            try:
                yield provider
            finally:
                await provider.engine.aclose()
    finally:
        await ledger.close()


def never_stop() -> None:
    """Fail the test in which a gate would stop its worker, and end nothing."""
    pytest.fail("the worker stops")


class Answer(msgspec.Struct):
    """What came back for a request."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def challenge(self) -> Challenge:
        return parse_challenges(self.all("www-authenticate"))[0]

    @property
    def problem(self) -> dict[str, Any]:
        assert self.header("content-type") == "application/problem+json"
        problem: dict[str, Any] = msgspec.json.decode(self.body)
        assert problem["status"] == self.status
        return problem

    @property
    def kind(self) -> str:
        kind: str = self.problem["type"]
        name = kind.removeprefix(PROBLEM_BASE).removeprefix(OWN_BASE)
        assert kind == problem_uri(name)
        return name

    @property
    def receipt(self) -> Receipt:
        value = self.header("payment-receipt")
        assert value is not None
        return parse_receipt(value)


class Visit:
    """One request to an ASGI application in this process, message by message."""

    def __init__(
        self,
        app: Callable[..., Any],
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | list[tuple[str, str]] = (),  # type: ignore[assignment]
        body: bytes = b"",
        is_whole: bool = True,
    ) -> None:
        path, _, query = target.partition("?")
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if body:
            pairs.append(("content-length", str(len(body))))
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in pairs],
            "client": ("203.0.113.1", 50000),
            "server": (REALM, 443),
        }
        self.sent: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        """Set while the transport takes bytes; clear it to be a slow reader."""
        self.gate.set()
        self.is_writing = False
        """A message waits for the transport to take it."""
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": not is_whole})
        self._is_gone = False
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._is_gone and self._incoming.empty():
            return {"type": "http.disconnect"}
        return await self._incoming.get()

    async def _send(self, message: dict[str, Any]) -> None:
        self.is_writing = True
        await self.gate.wait()
        self.is_writing = False
        if not self._is_gone:
            self.sent.append(message)
        self.arrived.set()

    def leave(self) -> None:
        """Disconnect."""
        self._is_gone = True
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait until something was sent that makes `condition` true."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.arrived.clear()
                if condition():
                    return
                await self.arrived.wait()

    @property
    def unread(self) -> int:
        """Messages of the request that the application has not read."""
        return self._incoming.qsize()

    @property
    def text(self) -> str:
        """The body so far."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def answer(self) -> Answer:
        """Wait for the application to end and return what it sent."""
        await self.task
        return self.so_far()

    def so_far(self) -> Answer:
        start = self.sent[0]
        assert start["type"] == "http.response.start"
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in start["headers"]]
        return Answer(start["status"], headers, self.text.encode())


async def ask(
    app: Callable[..., Any],
    method: str,
    target: str,
    credential: Credential | str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """Send one request and return its answer."""
    pairs = dict(headers or {})
    if credential is not None:
        text = credential if isinstance(credential, str) else format_credential(credential)
        pairs["authorization"] = text
    return await Visit(app, method, target, headers=pairs, body=body).answer()
