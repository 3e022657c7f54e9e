"""The other side, by hand: a chain on paper and a provider that can be made to lie.

Honest by default, and strict: it verifies every signature and keeps the books as the protocol
says. Each attribute that a test changes is one lie. The real provider is met in tests/e2e.
"""
# ruff: noqa: ARG002 -- the paper chain has one escrow and one token

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from msgspec.structs import replace

from channel.chain import PayerMeans
from channel.errors import AgentError, TransactionRevertedError
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenHash,
    OpenPermit2,
    TopUpAuthorization,
    TopUpHash,
    TopUpPermit2,
)
from channel.types import (
    Address,
    ChannelFact,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    TokenUnit,
    TxHash,
)
from channel.verify.signature import address_of, recover, sign
from channel.verify.typed_data import (
    CANONICAL_PERMIT2,
    derive_channel_id,
    keccak,
    open_nonce,
    open_permit_digest,
    open_witness,
    permit2_domain_separator,
    receive_authorization_digest,
    token_domain_separator,
    top_up_nonce,
    top_up_permit_digest,
    top_up_witness,
)
from channel.wire.challenge import (
    Challenge,
    SessionRequest,
    format_challenge,
)
from channel.wire.credential import Credential, select_credential
from channel.wire.encoding import format_timestamp
from channel.wire.funding import (
    Deposit,
    TopUpPermit,
    TransferAuthorization,
)
from channel.wire.payload import (
    ClosePayload,
    VoucherPayload,
)
from channel.wire.receipt import Receipt, format_receipt, format_receipt_json
from channel.wire.sse import NeedVoucher, format_event, format_need_voucher
from tests.waiting import PATIENCE_S

CHAIN_ID = 31337
ESCROW = Address(b"\xe5" * 20)
TOKEN = Address(b"\x70" * 20)
PAYEE = Address(b"\xbe" * 20)
PAYER_KEY = keccak(b"payer of the client's tests")
PAYER = address_of(PAYER_KEY)
BASE = "https://api.example"
NOW = 1_750_000_000.0
DOMAIN = token_domain_separator("Paper Dollar", "1", CHAIN_ID, TOKEN)


WITH_VOUCHER = OpenHash | OpenAuthorization | OpenPermit2 | VoucherPayload | ClosePayload


class PaperChain:
    """An account and an escrow, as `PayerChain` describes them; remembers what was asked of it."""

    def __init__(self, account: Address = PAYER, chain_id: int = CHAIN_ID) -> None:
        self.account = account
        self.chain_id = chain_id
        self.facts: dict[ChannelId, ChannelFact] = {}
        self.openings: dict[ChannelId, TxHash] = {}
        self.deposited: list[int] = []
        self.close_requests = 0
        self.trusted = {ESCROW}
        self.closed_at: dict[ChannelId, int] = {}
        self.before_answer: Callable[[str], None] = lambda _: None
        self.means: dict[str, Any] = {}
        """What the account has otherwise than by default: dollars, ether, nothing approved."""
        self.now = NOW
        self.approved = False
        self.used: set[bytes | int] = set()
        """Nonces that the token or Permit2 will not take again."""

    async def require_escrow(self, escrow: Address, token: Address) -> None:
        if escrow not in self.trusted or token != TOKEN:
            raise AgentError("this escrow is not trusted")

    async def read_channel(
        self, escrow: Address, channel_id: ChannelId, *, block_number: int | None = None
    ) -> ChannelFact | None:
        await asyncio.sleep(0)
        return self.facts.get(channel_id)

    async def read_token_unit(self, token: Address) -> TokenUnit | None:
        return TokenUnit("dUSD", 3) if token == TOKEN else None

    async def read_means(self, token: Address, permit2: Address) -> PayerMeans:
        has: dict[str, Any] = {
            "balance": 1_000_000,
            "can_pay_gas": True,
            "token_domain": DOMAIN,
            "permit2_allowance": 2**256 - 1 if self.approved else 0,
            "now": int(self.now),
            "head_at": int(self.now),
        }
        return PayerMeans(**(has | self.means))

    async def sign(self, digest: bytes) -> bytes:
        return sign(PAYER_KEY, digest)

    async def find_use(self, *, token: Address, authorization: bytes) -> int | None:
        return 1 if authorization in self.used else None

    async def find_permit_use(self, *, escrow: Address, nonce: int) -> int | None:
        assert escrow in self.trusted
        return 1 if nonce in self.used else None

    async def approve_permit2(self, *, token: Address, permit2: Address) -> None:
        assert self.means.get("can_pay_gas", True)
        self.approved = True

    async def open_channel(
        self,
        *,
        escrow: Address,
        payee: Address,
        token: Address,
        deposit: int,
        salt: bytes,
        authorized_signer: Address,
    ) -> TxHash:
        await asyncio.sleep(0)
        terms = ChannelTerms(self.account, payee, token, authorized_signer)
        return self.create(terms, salt, deposit)

    def create(self, terms: ChannelTerms, salt: bytes, deposit: int) -> TxHash:
        escrow = ESCROW
        channel_id = derive_channel_id(terms, salt=salt, escrow=escrow, chain_id=self.chain_id)
        if channel_id in self.facts:
            raise TransactionRevertedError("ChannelAlreadyExists")
        self.facts[channel_id] = ChannelFact(
            key=ChannelKey(self.chain_id, escrow, channel_id),
            terms=terms,
            deposit=deposit,
            settled=0,
            close_requested_at=0,
            is_finalized=False,
            block_number=1,
        )
        self.deposited.append(deposit)
        self.openings[channel_id] = TxHash(keccak(b"open" + channel_id))
        self.before_answer("open")
        return self.openings[channel_id]

    async def find_opening(self, *, escrow: Address, channel_id: ChannelId) -> TxHash | None:
        return self.openings.get(channel_id)

    async def top_up(
        self, *, escrow: Address, token: Address, channel_id: ChannelId, amount: int
    ) -> TxHash:
        fact = self.facts[channel_id]
        self.change(channel_id, deposit=fact.deposit + amount)
        self.deposited.append(amount)
        self.before_answer("top_up")
        return TxHash(keccak(b"topUp" + channel_id + bytes([len(self.deposited)])))

    def relay(self, key: ChannelKey, deposit: Deposit) -> None:
        """Do what the escrow does with a deposit by signature: check everything, once."""
        funding = deposit.authorization
        assert recover(self._digest(key, deposit), deposit.signature) == funding.funder
        end = (
            funding.valid_before if isinstance(funding, TransferAuthorization) else funding.deadline
        )
        assert self.now < end
        if funding.nonce in self.used:
            raise TransactionRevertedError("the nonce was used")
        self.used.add(funding.nonce)
        if deposit.action == "topUp":
            self.change(key.channel_id, deposit=self.facts[key.channel_id].deposit + deposit.amount)
            self.deposited.append(deposit.amount)
            return
        assert deposit.salt is not None
        terms = ChannelTerms(funding.funder, PAYEE, TOKEN, deposit.authorized_signer)
        self.create(terms, deposit.salt, deposit.amount)
        assert key.channel_id in self.facts

    def _digest(self, key: ChannelKey, deposit: Deposit) -> bytes:
        funding = deposit.authorization
        if isinstance(funding, TransferAuthorization):
            assert funding.to == ESCROW
            assert deposit.salt is not None
            if deposit.action == "open":
                terms = ChannelTerms(funding.funder, PAYEE, TOKEN, deposit.authorized_signer)
                assert funding.nonce == open_nonce(terms, deposit.salt)
            else:
                assert funding.nonce == top_up_nonce(
                    key.channel_id,
                    additional_deposit=funding.value,
                    funder=funding.funder,
                    salt=deposit.salt,
                )
            return receive_authorization_digest(
                DOMAIN,
                funder=funding.funder,
                to=funding.to,
                value=funding.value,
                valid_after=funding.valid_after,
                valid_before=funding.valid_before,
                nonce=funding.nonce,
            )
        assert self.approved
        assert funding.token == TOKEN
        words: dict[str, Any] = {
            "token": TOKEN,
            "amount": funding.amount,
            "spender": ESCROW,
            "nonce": funding.nonce,
            "deadline": funding.deadline,
        }
        separator = permit2_domain_separator(CHAIN_ID, CANONICAL_PERMIT2)
        if isinstance(funding, TopUpPermit):
            return top_up_permit_digest(
                separator, **words, witness=top_up_witness(funding.channel_id)
            )
        witness = open_witness(PAYEE, funding.salt, funding.authorized_signer)
        return open_permit_digest(separator, **words, witness=witness)

    async def request_close(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        self.close_requests += 1
        await asyncio.sleep(0)  # until it is mined
        self.change(channel_id, close_requested_at=int(NOW))
        return TxHash(keccak(b"requestClose" + channel_id))

    async def withdraw(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        self.change(channel_id, is_finalized=True)
        return TxHash(keccak(b"withdraw" + channel_id))

    def change(self, channel_id: ChannelId, **fields: Any) -> None:
        self.facts[channel_id] = replace(self.facts[channel_id], **fields)


@dataclass
class Books:
    accepted: int = 0
    spent: int = 0
    deposit: int = 0


@dataclass
class Seen:
    """One request as the provider saw it."""

    method: str
    url: httpx.URL
    headers: httpx.Headers
    body: bytes
    credential: Credential | None


def session_request(**changes: Any) -> SessionRequest:
    values: dict[str, Any] = {
        "unit_price": 10,
        "currency": TOKEN,
        "recipient": PAYEE,
        "chain_id": CHAIN_ID,
        "escrow": ESCROW,
        "unit_type": "request",
        "suggested_deposit": 1_000,
        "credential_types": ("hash",),
    }
    return SessionRequest(**(values | changes))


@dataclass
class Provider(httpx.AsyncBaseTransport):
    """Sells answers over the paper chain. Streams: `tokens` units of text, one event each."""

    chain: PaperChain
    offer: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    reserve: int = 1
    """Units that an answer in one piece must have covered before it is made."""
    challenge_changes: dict[str, Any] = field(default_factory=dict)
    lifetime_s: float = 300.0
    now: Callable[[], float] = lambda: NOW
    books: dict[ChannelId, Books] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    override: Callable[[Seen], httpx.Response | None] = lambda _: None
    """Answers first, and instead; None to be honest."""
    change_receipt: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
    change_need: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
    speak: Callable[[Seen, Books], AsyncIterator[bytes]] | None = None
    """What a stream says instead of `events`."""
    issued: int = 0
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    responses: dict[str, tuple[int, bytes, dict[str, str]]] = field(default_factory=dict)

    @property
    def asked(self) -> SessionRequest:
        return session_request(**self.offer)

    @property
    def paid(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.credential is not None]

    @property
    def vouchers(self) -> list[int]:
        """Every amount presented, in order."""
        payloads = [seen.credential.payload for seen in self.seen if seen.credential]
        return [
            payload.voucher.cumulative_amount
            for payload in payloads
            if isinstance(payload, WITH_VOUCHER)
        ]

    def challenge(self) -> Challenge:
        self.issued += 1
        fields: dict[str, Any] = {
            "id": f"challenge-{self.issued}",
            "realm": "api.example",
            "method": "evm",
            "intent": "session",
            "request": EVM.format_request(self.asked),
            "expires": format_timestamp(self.now() + self.lifetime_s),
        }
        return Challenge(**(fields | self.challenge_changes))

    def refuse(
        self, kind: str = "payment-required", status: int = 402, **members: object
    ) -> httpx.Response:
        body = {"type": f"https://paymentauth.org/problems/{kind}", "status": status} | {
            name: str(value) for name, value in members.items()
        }
        headers = {"Content-Type": "application/problem+json"}
        if status in (402, 410):
            headers["WWW-Authenticate"] = format_challenge(self.challenge())
        return httpx.Response(status, headers=headers, content=json.dumps(body))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
        values = request.headers.get_list("Authorization")
        text = select_credential(values)
        credential = None if text is None else EVM.parse_credential(text)
        seen = Seen(request.method, request.url, request.headers, body, credential)
        self.seen.append(seen)
        await asyncio.sleep(0)
        response = self.override(seen) or self.answer(seen)
        if request.method == "HEAD":
            return httpx.Response(response.status_code, headers=response.headers)
        return response

    def answer(self, seen: Seen) -> httpx.Response:
        if seen.credential is None:
            return self.refuse()
        payload = seen.credential.payload
        self.fund(seen)
        fact = self.chain.facts.get(payload.channel_id)
        books = self.books.get(payload.channel_id)
        if isinstance(payload, OpenHash):
            assert fact is not None
            assert payload.tx_hash == self.chain.openings[payload.channel_id]
            assert seen.credential.source == (CHAIN_ID, fact.terms.payer)
            books = self.books.setdefault(payload.channel_id, Books(deposit=fact.deposit))
        if books is None or fact is None:
            return self.refuse("session/channel-not-found", 410)
        if fact.is_finalized or fact.close_requested_at:
            return self.refuse("session/channel-finalized", 410)
        return self.take(seen, books, fact)

    def fund(self, seen: Seen) -> None:
        """Make the deposit that a credential asks for, unless that was done before."""
        assert seen.credential is not None
        payload = seen.credential.payload
        deposit = deposit_of(seen)
        if deposit is None:
            return
        assert deposit.type in self.asked.credential_types
        assert self.asked.fee_payer
        if deposit.authorization.nonce not in self.chain.used:
            self.chain.relay(ChannelKey(CHAIN_ID, ESCROW, payload.channel_id), deposit)
        fact = self.chain.facts[payload.channel_id]
        books = self.books.setdefault(payload.channel_id, Books())
        books.deposit = fact.deposit

    def take(self, seen: Seen, books: Books, fact: ChannelFact) -> httpx.Response:
        assert seen.credential is not None
        payload = seen.credential.payload
        if isinstance(payload, TopUpHash | TopUpAuthorization | TopUpPermit2):
            books.deposit = fact.deposit
            return self.receipted(seen, books, 200)
        assert isinstance(payload, WITH_VOUCHER)
        amount = payload.voucher.cumulative_amount
        signer = recover(EVM.voucher_digest(fact.key, amount), payload.voucher.signature)
        assert signer == fact.terms.signer
        if isinstance(payload, ClosePayload):
            return self.close(seen, books, fact, amount)
        if amount > books.deposit:
            return self.refuse("session/amount-exceeds-deposit", deposit=books.deposit)
        rise = amount - books.accepted
        if 0 < rise < self.asked.min_voucher_delta and amount != books.deposit and books.accepted:
            return self.refuse(
                "session/delta-too-small",
                acceptedCumulative=books.accepted,
                minVoucherDelta=self.asked.min_voucher_delta,
            )
        books.accepted = max(books.accepted, amount)
        self.waiting.set()
        if seen.method == "HEAD":
            return self.receipted(seen, books, 200)
        return self.sell(seen, books)

    def sell(self, seen: Seen, books: Books) -> httpx.Response:
        key = seen.headers.get("Idempotency-Key")
        if key is not None and key in self.responses:
            status, body, headers = self.responses[key]
            return httpx.Response(status, content=body, headers=headers)
        price = self.asked.unit_price
        cost = price if self.tokens else price * self.reserve
        if books.accepted - books.spent < cost:
            return self.refuse(
                "session/insufficient-balance",
                requiredCumulative=books.spent + cost,
                acceptedCumulative=books.accepted,
                spent=books.spent,
                deposit=books.deposit,
            )
        if self.tokens:
            return self.stream(seen, books)
        books.spent += price
        response = self.receipted(seen, books, 200, units=1, body=b'{"text": "because"}')
        if key is not None:
            self.responses[key] = (200, response.content, dict(response.headers))
        return response

    def close(self, seen: Seen, books: Books, fact: ChannelFact, amount: int) -> httpx.Response:
        assert amount >= books.spent, "the client must not close below what was spent"
        self.chain.change(fact.key.channel_id, is_finalized=True, settled=amount)
        self.chain.closed_at[fact.key.channel_id] = amount
        return self.receipted(seen, books, 200, tx_hash=TxHash(keccak(b"close")))

    def receipt(self, seen: Seen, books: Books, **more: Any) -> Receipt:
        assert seen.credential is not None
        fields: dict[str, Any] = {
            "method": "evm",
            "challenge_id": seen.credential.challenge.id,
            "channel_id": seen.credential.payload.channel_id,
            "chain_id": CHAIN_ID,
            "accepted": books.accepted,
            "spent": books.spent,
            "timestamp": self.now(),
        }
        return Receipt(**self.change_receipt(fields | more))

    def receipted(
        self, seen: Seen, books: Books, status: int, *, body: bytes = b"", **more: Any
    ) -> httpx.Response:
        headers = {
            "Payment-Receipt": format_receipt(self.receipt(seen, books, **more)),
            "Cache-Control": "private",
        }
        return httpx.Response(status, headers=headers, content=body)

    def stream(self, seen: Seen, books: Books) -> httpx.Response:
        source = (self.speak or self.events)(seen, books)
        headers = {
            "Content-Type": "text/event-stream",
            "Payment-Receipt": format_receipt(self.receipt(seen, books)),
        }
        return httpx.Response(200, headers=headers, stream=Events(source))

    async def events(self, seen: Seen, books: Books) -> AsyncIterator[bytes]:
        assert seen.credential is not None
        price = self.asked.unit_price
        for index in range(self.tokens):
            while books.accepted - books.spent < price:
                self.waiting.clear()
                fields = self.change_need(
                    {
                        "channel_id": seen.credential.payload.channel_id,
                        "required_cumulative": books.spent + price,
                        "accepted": books.accepted,
                        "deposit": books.deposit,
                    }
                )
                yield format_need_voucher(NeedVoucher(**fields))
                async with asyncio.timeout(PATIENCE_S):
                    await self.waiting.wait()
            books.spent += price
            yield format_event(json.dumps({"choices": [{"delta": {"content": f"t{index} "}}]}))
        receipt = self.receipt(seen, books, units=self.tokens)
        yield format_event(format_receipt_json(receipt), "payment-receipt")
        yield format_event("[DONE]")


def deposit_of(seen: Seen) -> Deposit | None:
    """The signed deposit of a request, alone or on a voucher, in one form."""
    payload = None if seen.credential is None else seen.credential.payload
    if isinstance(payload, VoucherPayload):
        assert payload.deposit is None or isinstance(payload.deposit, Deposit)
        return payload.deposit
    if isinstance(payload, OpenAuthorization | OpenPermit2):
        return Deposit(
            "open",
            payload.type,
            payload.authorization,
            payload.signature,
            payload.salt,
            payload.authorized_signer,
        )
    if isinstance(payload, TopUpAuthorization | TopUpPermit2):
        salt = payload.salt if isinstance(payload, TopUpAuthorization) else None
        zero_address = Address(bytes(20))
        assert (
            payload.additional_deposit
            == Deposit(
                "topUp", payload.type, payload.authorization, payload.signature, salt, zero_address
            ).amount
        )
        return Deposit(
            "topUp", payload.type, payload.authorization, payload.signature, salt, zero_address
        )
    return None


class Events(httpx.AsyncByteStream):
    """A body from a generator that is closed with it."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._source:
            yield chunk

    async def aclose(self) -> None:
        await self._source.aclose()  # type: ignore[attr-defined]
