"""Verifies charges and x402 payments with pympp: its challenges, its checks, its receipts.

One of its handlers speaks both: the Machine Payments Protocol's `evm` charge, and x402 version 2
with the scheme `exact`. Both carry the same EIP-3009 authorization. pympp settles through a
callback. Here that callback only reports that the authorization is valid: what is done with it is
decided by `serving`, and recorded by `settlement.charge`.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Final

import msgspec
from mpp import Credential
from mpp.errors import MalformedCredentialError as MppMalformedError
from mpp.errors import PaymentExpiredError
from mpp.methods.evm import challenge_hash
from mpp.methods.evm import server as evm
from mpp.methods.evm.intents import Authorization
from mpp.server.http import PaymentRequired, PaymentVerified, Request, Response
from mpp.server.method import ServerMethod, ValidateContext
from mpp.server.mpp import Mpp
from mpp.x402 import decode_payment_signature

from channel.errors import (
    ChallengeExpiredError,
    InvariantError,
    MalformedCredentialError,
    PeerError,
    VerificationFailedError,
)
from channel.types import Address, TxHash
from channel.verify.typed_data import keccak
from channel.wire.encoding import format_checksum_address
from settlement.charge.transfer import SignedTransfer

__all__ = ["PAYMENT_SIGNATURE", "ChargeTerms", "ChargeVerifier", "Verified"]

PAYMENT_SIGNATURE: Final = "payment-signature"
_RECEIPT_FIELDS: Final = ("payment-receipt", "payment-response")
_BINDING: Final = "mppx"
_X402: Final = "x402:"
"""How pympp begins the id of the challenge that it makes up for an x402 payment."""
_OFFER_FIELDS: Final = ("www-authenticate", "payment-required")

challenge_hash("", "")  # loads its library now, and not while requests are served

_failure: ContextVar[list[Exception]] = ContextVar("rails_failure")
"""Why pympp refused the credential of the running request."""


class ChargeTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a charge pays, in which token, and what its challenges are bound to."""

    chain_id: int
    token: Address
    token_name: str
    """As in the token's EIP-712 domain, like the version."""
    token_version: str
    decimals: int
    payee: Address
    realm: str
    secret: bytes
    """Key of the session's challenges; the charges' key is derived from it."""
    challenge_lifetime_s: int
    credential_header: str | None = None
    x402: bool = True
    """Whether x402 clients may pay."""


class Verified(msgspec.Struct, frozen=True):
    """A payment whose authorization is valid for its request. Nothing is paid yet."""

    transfer: SignedTransfer
    is_private: bool
    """Whether the credential shows more than the chain will. A charge echoes its challenge's id, of
    which the nonce is a hash, and a bound x402 payment its salt. Any other x402 payment is nothing
    but the authorization."""
    challenge_id: str
    result: PaymentVerified

    def receipt_headers(self, tx_hash: TxHash) -> list[tuple[bytes, bytes]]:
        """Return `Payment-Receipt`, and `PAYMENT-RESPONSE` for x402, for a mined transfer."""
        receipt = replace(self.result.receipt, reference="0x" + tx_hash.hex())
        result = replace(self.result, receipt=receipt)
        answer = result.with_receipt(Response())
        return [
            (name.encode(), answer.headers[name].encode("latin-1"))
            for name in _RECEIPT_FIELDS
            if name in answer.headers
        ]


class ChargeVerifier:
    """Offers and checks payments of a fixed amount."""

    def __init__(self, terms: ChargeTerms) -> None:
        self.terms = terms
        method = evm.charge(
            currency=format_checksum_address(terms.token),
            recipient=format_checksum_address(terms.payee),
            chain_id=terms.chain_id,
            decimals=terms.decimals,
            authorization={"name": terms.token_name, "version": terms.token_version},
            settle=_accept,
            route_binding="resource",
            store=_NoClaims(),
        )
        method = replace(method, validate=partial(_validate, method))
        key = hmac.new(terms.secret, b"mpp-session charge", hashlib.sha256).hexdigest()
        self._mpp = Mpp(
            method,
            realm=terms.realm,
            secret_key=key,
            requires_auth=terms.credential_header is not None,
        )
        self._mpp.on_payment_failed(_note_failure)
        self._handler = lru_cache(maxsize=1024)(self._build_handler)

    def _build_handler(self, amount: int) -> Any:
        whole = Decimal(amount).scaleb(-self.terms.decimals)
        return self._mpp.charge(amount=format(whole, "f"))

    async def offer(self, method: str, url: str, amount: int) -> list[tuple[bytes, bytes]]:
        """Return the header lines that offer a payment of `amount` base units for a request."""
        result = await self._handler(amount)(Request(method, url))
        if not isinstance(result, PaymentRequired):
            raise InvariantError("a request without a credential passed as paid")
        fields = _OFFER_FIELDS if self.terms.x402 else _OFFER_FIELDS[:1]
        return [
            (name.encode(), value.encode("latin-1"))
            for name, value in result.challenge.headers.multi_items()
            if name.lower() in fields
        ]

    async def verify(
        self, method: str, url: str, amount: int, *, credential: str | None, signature: str | None
    ) -> Verified:
        """Return the payment that a request carries; nothing is stored, and no node is asked.

        `credential` is the value of the field for Payment credentials, `signature` that of
        `PAYMENT-SIGNATURE`; one of them is given.

        Raises:
            PeerError: It does not pay `amount` base units for this request.
        """
        if credential is not None:
            field = self.terms.credential_header or "Authorization"
            headers = {field: credential}
        else:
            headers = {PAYMENT_SIGNATURE: signature or ""}
        failures: list[Exception] = []
        token = _failure.set(failures)
        try:
            result = await self._handler(amount)(Request(method, url, headers))
        finally:
            _failure.reset(token)
        if not isinstance(result, PaymentVerified):
            raise _explain(failures, result)
        return Verified(
            transfer=_read_transfer(result.credential),
            is_private=signature is None or _is_bound(signature),
            challenge_id=result.credential.challenge.id,
            result=result,
        )


async def _validate(method: ServerMethod, context: ValidateContext) -> Any:
    """Check a credential; clients hash the challenge into the nonce in one of two ways.

    draft-evm-charge-00 hashes id and realm one after the other, as mppx 0.11 does; pympp hashes a
    JSON list of them, and refuses any other. So the draft's hash is checked here, and everything
    else by pympp as for x402, which has no challenge.
    """
    credential, payload = context.credential, _payload_of(context.credential)
    echo = credential.challenge
    older = keccak((echo.id + echo.realm).encode())
    if not echo.id.startswith(_X402) and payload["nonce"].lower() == "0x" + older.hex():
        credential = replace(credential, challenge=replace(echo, id=_X402 + echo.id))
        context = replace(context, credential=credential)
    if method.validate is None:
        raise InvariantError("pympp's charge cannot be validated alone")
    return await method.validate(context)


class _NoClaims:
    """A store for pympp that claims nothing: `settlement.charge` records what was used, durably."""

    async def get(self, key: str) -> None:  # noqa: ARG002 -- pympp's interface
        return None

    async def put(self, key: str, value: object) -> None:
        pass

    async def put_if_absent(self, key: str, value: object) -> bool:  # noqa: ARG002
        return True

    async def delete(self, key: str) -> None:
        pass


async def _accept(authorization: Authorization) -> str:
    """Settle nothing. The reference is replaced by the transaction's hash once there is one."""
    return str(authorization.payload["nonce"])


def _note_failure(event: Mapping[str, Any]) -> None:
    _failure.get([]).append(event["error"])


def _explain(failures: Sequence[Exception], result: PaymentRequired) -> PeerError:
    """Return pympp's refusal as one of the gate's errors: the gate owns the answer."""
    if not failures:
        problem = json.loads(result.challenge.body or b"{}")
        return VerificationFailedError(str(problem.get("detail", "The payment was refused.")))
    error = failures[-1]
    if isinstance(error, PaymentExpiredError):
        return ChallengeExpiredError("The challenge has expired.")
    if isinstance(error, MppMalformedError):
        return MalformedCredentialError(str(error))
    return VerificationFailedError(str(error))


def _is_bound(signature: str) -> bool:
    """Whether a verified x402 payment has a salt: pympp checked that the nonce is its hash."""
    extensions = decode_payment_signature(signature).get("extensions") or {}
    binding = extensions.get(_BINDING) or {}
    return isinstance(binding.get("info", {}).get("nonce"), str)


def _read_transfer(credential: Credential) -> SignedTransfer:
    """Return the authorization of a credential whose form pympp has checked."""
    payload = _payload_of(credential)
    return SignedTransfer(
        payer=Address(_unhex(payload["from"])),
        payee=Address(_unhex(payload["to"])),
        amount=int(payload["value"]),
        valid_after=int(payload["validAfter"]),
        valid_before=int(payload["validBefore"]),
        nonce=_unhex(payload["nonce"]),
        signature=_unhex(payload["signature"]),
    )


def _payload_of(credential: Credential) -> Mapping[str, Any]:
    payload: Any = credential.payload
    if isinstance(payload, Mapping):
        return payload
    dumped: dict[str, Any] = payload.model_dump(mode="json", by_alias=True)
    return dumped


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))
