"""x402 version 2: `PAYMENT-REQUIRED`, `PAYMENT-SIGNATURE`, `PAYMENT-RESPONSE`.

Each header is base64 of a JSON object. A 402 offers a list of payments; the client echoes the one
that it makes, with the server's resource and extensions unchanged. Of the schemes only `exact` on
an EVM chain by EIP-3009 is understood; others stay readable so that a refusal can name them.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from channel.errors import WireError
from channel.limits import CHALLENGES_PER_RESPONSE_MAX, REQUEST_PARAM_BYTES_MAX
from channel.types import Address
from channel.wire.charge import authorization_object
from channel.wire.encoding import (
    format_hex,
    parse_address,
    parse_amount,
    parse_json_object,
    parse_safe_integer,
)
from channel.wire.fields import optional, parse_bool, parse_object, parse_text, required
from channel.wire.funding import TransferAuthorization

__all__ = [
    "PAYMENT_REQUIRED",
    "PAYMENT_RESPONSE",
    "PAYMENT_SIGNATURE",
    "ExactRequest",
    "Terms",
    "format_payment_signature",
    "parse_exact_request",
    "parse_payment_required",
    "parse_payment_response",
]

PAYMENT_REQUIRED: Final = "PAYMENT-REQUIRED"
PAYMENT_SIGNATURE: Final = "PAYMENT-SIGNATURE"
PAYMENT_RESPONSE: Final = "PAYMENT-RESPONSE"

VERSION: Final = 2
EXACT: Final = "exact"
EIP3009: Final = "eip3009"
_NETWORK = re.compile(r"eip155:([1-9][0-9]{0,15})").fullmatch


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """One payment that a 402 offers, as on the wire."""

    accepted: Mapping[str, Any]
    resource: Mapping[str, Any] | None
    extensions: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """Scheme and network, for a refusal; shortened by its reader."""
        return f"{self.accepted.get('scheme')} on {self.accepted.get('network')}"


class ExactRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The price of one request by scheme `exact`, and where it is paid."""

    amount: int
    """In base units."""
    asset: Address
    """The ERC-20 token."""
    pay_to: Address
    chain_id: int
    timeout_s: int
    """For how long the server may still send the payment."""


def parse_payment_required(header: str) -> tuple[Terms, ...]:
    """Return the payments that a `PAYMENT-REQUIRED` header offers, of any scheme.

    Raises:
        WireError: Not base64 of such an object, of another version, or larger than the bound.
    """
    wire = _decode(header)
    if required(wire, "x402Version", parse_safe_integer) != VERSION:
        raise WireError(f"x402Version: not {VERSION}")
    offers = wire.get("accepts")
    if not isinstance(offers, list) or not 0 < len(offers) <= CHALLENGES_PER_RESPONSE_MAX:
        raise WireError(f"accepts: not a list of 1 to {CHALLENGES_PER_RESPONSE_MAX} payments")
    resource = None if wire.get("resource") is None else required(wire, "resource", parse_object)
    named = wire.get("extensions")
    extensions = None if named is None else required(wire, "extensions", parse_object)
    return tuple(
        Terms(accepted=parse_object(offer), resource=resource, extensions=extensions)
        for offer in offers
    )


def parse_exact_request(terms: Terms) -> ExactRequest:
    """Return the meaning of an `exact` payment by EIP-3009 on an EVM chain.

    Raises:
        WireError: It is another scheme, network or way of transfer, or malformed.
    """
    wire = terms.accepted
    if required(wire, "scheme", parse_text) != EXACT:
        raise WireError(f"scheme: not {EXACT}")
    chain = _NETWORK(required(wire, "network", parse_text))
    if chain is None:
        raise WireError("network: not eip155:<chain id>")
    extra = optional(wire, "extra", parse_object) or {}
    way = optional(extra, "assetTransferMethod", parse_text) or EIP3009
    if way != EIP3009:
        raise WireError(f"extra.assetTransferMethod: not {EIP3009}")
    return ExactRequest(
        amount=required(wire, "amount", parse_amount),
        asset=required(wire, "asset", parse_address),
        pay_to=required(wire, "payTo", parse_address),
        chain_id=parse_safe_integer(int(chain[1])),
        timeout_s=required(wire, "maxTimeoutSeconds", parse_safe_integer),
    )


def format_payment_signature(
    terms: Terms, authorization: TransferAuthorization, signature: bytes
) -> str:
    """Return the value of `PAYMENT-SIGNATURE` that makes the payment of these terms."""
    payload: dict[str, Any] = {
        "x402Version": VERSION,
        "accepted": terms.accepted,
        "payload": {
            "authorization": authorization_object(authorization),
            "signature": format_hex(signature),
        },
    }
    if terms.resource is not None:
        payload["resource"] = terms.resource
    if terms.extensions is not None:
        payload["extensions"] = terms.extensions
    return base64.b64encode(msgspec.json.encode(payload)).decode("ascii")


def parse_payment_response(header: str) -> str | None:
    """Return the transaction of a successful settlement; None if it was not successful.

    Raises:
        WireError: Not base64 of a settlement response.
    """
    wire = _decode(header)
    if not required(wire, "success", parse_bool):
        return None
    return required(wire, "transaction", parse_text)


def _decode(header: str) -> dict[str, Any]:
    if len(header) > 2 * REQUEST_PARAM_BYTES_MAX:
        raise WireError(f"over {2 * REQUEST_PARAM_BYTES_MAX} bytes")
    try:
        text = base64.b64decode(header, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError("not base64") from error
    return parse_json_object(text)
