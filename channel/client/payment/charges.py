"""Pays for one request by one EIP-3009 authorization: `evm` charge and x402 `exact`.

What is durable when:

    nonce, amount and budget     before it is signed
    the credential               before it is sent     (a repetition sends the same one)
    whether it was served        when the answer came

A signature is out of reach once it is sent: the server may settle it until it ends, also if its
answers deny that. So an equal request sends the same credential until the request was served or the
authorization can no longer be settled, by the chain's own clock (F-26, F-75).
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from channel.chain import PayerChain, PayerMeans
from channel.client.funding.signing import Domain, Window, sign_charge
from channel.client.payment.management import Header, Reply
from channel.client.payment.request import PaidRequest, Purchase
from channel.client.policy.charges import ChargeOffer
from channel.client.policy.policy import Policy, TokenLimits, budget_of, require_chain
from channel.client.store.charge import ChargeRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    CannotFundError,
    ChainUnavailableError,
    ChargePendingError,
    OfferRefusedError,
    WireError,
)
from channel.verify.typed_data import CANONICAL_PERMIT2, charge_nonce
from channel.wire.charge import format_charge_credential, parse_charge_receipt
from channel.wire.encoding import format_timestamp
from channel.wire.funding import TransferAuthorization
from channel.wire.x402 import format_payment_signature, parse_payment_response

__all__ = ["ChargePayer", "purchase_of"]

NONCE_BYTES: Final = 32
OVER_S: Final = 120
"""How long after its end an authorization counts as one that cannot be settled: blocks may come
back with an earlier time."""
PAYMENT_REQUIRED_STATUS: Final = 402


def purchase_of(method: str, url: str, content: bytes, key: str | None) -> bytes:
    """Return the digest by which a request is recognised when it is repeated.

    Args:
        method: The HTTP method.
        url: The whole URL.
        content: The body.
        key: The `Idempotency-Key` that the caller chose; None if it chose none.
    """
    parts = (method.encode(), url.encode(), content, b"" if key is None else b"=" + key.encode())
    return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()


class ChargePayer:
    """Signs charges, repeats them, and judges their answers."""

    def __init__(
        self,
        *,
        policy: Policy,
        store: PaymentStore,
        chains: Mapping[int, PayerChain],
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._policy = policy
        self._store = store
        self._chains = chains
        self._now = now
        self._random_bytes = random_bytes
        self._in_flight: set[bytes] = set()
        """The nonces of requests that are not answered: an equal request beside one pays itself."""

    @property
    def is_used(self) -> bool:
        """Whether the policy names a way that this pays by."""
        return any(way != "session" for way in self._policy.pays)

    async def is_first(self, request: PaidRequest) -> bool:
        """Return whether a charge suits a request better than a session, if both are offered."""
        if not self.is_used or request.expectation.is_stream:
            return False
        since = self._now() - self._policy.budget_window_s
        return not await self._store.has_paid(request.origin, since=since)

    async def resume(self, request: PaidRequest) -> Header | None:
        """Return the credential of an equal request that was not served, or None to pay anew.

        Raises:
            ChainUnavailableError: Whether the earlier one can still be settled cannot be read.
        """
        if request.purchase is None or not self.is_used:
            return None
        for record in await self._store.charges_for(request.purchase.digest):
            if record.is_open and record.nonce not in self._in_flight:
                if record.state == "sent" and await self._is_over(record):
                    await self._store.update_charge(replace(record, state="over"))
                    continue
                return self._send(request, record)
        return None

    async def pay(self, request: PaidRequest, offer: ChargeOffer, limits: TokenLimits) -> Header:
        """Sign a payment for the request, and return its header field.

        Raises:
            OfferRefusedError: Another address was paid for this request before a redirect, its body
                cannot be repeated, or the offer ends too soon by the chain's clock.
            BudgetExceededError: It would exceed the budget.
            CannotFundError: The account has too little, or the token takes no authorizations.
        """
        purchase = self._require_one(request)
        chain = require_chain(self._chains, offer.chain_id, request.origin)
        means = await chain.read_means(offer.token, CANONICAL_PERMIT2)
        separator = _require_means(offer, means, chain, request.origin)
        record = ChargeRecord(
            chain_id=offer.chain_id,
            token=offer.token,
            payer=chain.account,
            nonce=self._nonce(offer),
            purchase=purchase.digest,
            origin=request.origin,
            url=request.url,
            way=offer.way,
            payee=offer.recipient,
            amount=offer.amount,
            signed_at=int(self._now()),
            valid_before=offer.valid_before(means.now),
            idempotency_key=request.idempotency_key,
            is_key_given=purchase.is_key_given,
            header=offer.header,
        )
        if record.valid_before <= means.now:
            raise OfferRefusedError(
                field="expires",
                asked=format_timestamp(record.valid_before),
                allowed=f"a time to come, and it is {format_timestamp(means.now)} on the chain",
                origin=request.origin,
            )
        budget = budget_of(self._policy, limits)
        now, context = self._now(), request.context(offer)
        await self._store.add_charge(record, budget=budget, now=now, context=context)
        authorization, signature = await sign_charge(
            chain,
            Domain(separator, record.payee),
            Window(0, record.valid_before),
            amount=record.amount,
            nonce=record.nonce,
        )
        credential = _format(offer, authorization, signature)
        record = replace(record, credential=credential, state="sent")
        await self._store.update_charge(record)
        return self._send(request, record)

    def _require_one(self, request: PaidRequest) -> Purchase:
        if request.purchase is None:
            raise OfferRefusedError(
                field="a charge for",
                asked="a body too long to be sent twice",
                allowed="bodies that can be repeated",
                origin=request.origin,
            )
        if not request.purchase.may_charge:
            raise OfferRefusedError(
                field="a second payment for",
                asked="one request, after a redirect",
                allowed="one",
                origin=request.origin,
            )
        return request.purchase

    def _nonce(self, offer: ChargeOffer) -> bytes:
        if offer.challenge is None:
            return self._random_bytes(NONCE_BYTES)
        return charge_nonce(offer.challenge.id, offer.challenge.realm)

    def _send(self, request: PaidRequest, record: ChargeRecord) -> Header:
        self._in_flight.add(record.nonce)
        request.charge = record
        request.idempotency_key = record.idempotency_key
        request.header = record.header, record.credential
        return request.header

    async def answer(self, record: ChargeRecord, reply: Reply) -> None:
        """Judge an answer that is not a success; return where the caller gets it.

        The request was not served, whether its answer has a receipt or not: an equal one sends the
        same credential.

        Raises:
            ChargePendingError: The server asks to be paid again.
        """
        if reply.status == PAYMENT_REQUIRED_STATUS:
            raise ChargePendingError(
                origin=record.origin,
                amount=record.amount,
                until=format_timestamp(record.valid_before + OVER_S),
                outcome=await self._describe(record),
            )

    async def accept(self, request: PaidRequest, record: ChargeRecord, reply: Reply) -> None:
        """Record that the request was served."""
        request.charge = replace(record, state="done", reference=_reference(reply))
        await self._store.update_charge(request.charge)

    def release(self, request: PaidRequest) -> None:
        """Let an equal request repeat the credential; a second call does nothing."""
        if request.charge is not None:
            self._in_flight.discard(request.charge.nonce)

    async def _is_over(self, record: ChargeRecord) -> bool:
        """Return whether it can no longer be settled, by the chain's clock (F-111)."""
        if self._now() < record.valid_before + OVER_S:
            return False
        chain = require_chain(self._chains, record.chain_id, record.origin)
        means = await chain.read_means(record.token, CANONICAL_PERMIT2)
        return means.head_at >= record.valid_before + OVER_S

    async def _describe(self, record: ChargeRecord) -> str:
        chain = self._chains.get(record.chain_id)
        used: int | None = None
        if chain is not None:
            with suppress(ChainUnavailableError):
                used = await chain.find_use(token=record.token, authorization=record.nonce)
        if used is None:
            return "The chain does not show it as settled, which may change."
        return f"The chain shows it as settled by block {used}."


def _require_means(offer: ChargeOffer, means: PayerMeans, chain: PayerChain, origin: str) -> bytes:
    """Return the token's own EIP-712 domain, which the server's word cannot replace (F-21)."""
    token = f"token 0x{offer.token.hex()}"
    if means.balance < offer.amount:
        need = f"needs {offer.amount} base units of {token}, found {means.balance}"
        raise CannotFundError(account=chain.account, origin=origin, needs={offer.way: need})
    if means.token_domain is None:
        need = f"a token that takes EIP-3009 signatures, which {token} is not"
        raise CannotFundError(account=chain.account, origin=origin, needs={offer.way: need})
    return means.token_domain


def _format(offer: ChargeOffer, authorization: TransferAuthorization, signature: bytes) -> str:
    if offer.challenge is not None:
        return format_charge_credential(
            offer.challenge, authorization, signature, chain_id=offer.chain_id
        )
    if offer.terms is None:
        raise ValueError("an offer answers a challenge or terms of x402")
    return format_payment_signature(offer.terms, authorization, signature)


def _reference(reply: Reply) -> str:
    """Return the payment that an answer names as settled; empty if it names none."""
    with suppress(WireError):
        if reply.settlement is not None:
            return parse_payment_response(reply.settlement) or ""
        if reply.receipt is not None:
            return parse_charge_receipt(reply.receipt)
    return ""
