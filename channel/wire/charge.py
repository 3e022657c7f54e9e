"""`evm` charge: one transfer for one request, paid by an EIP-3009 authorization.

A server offers it as a challenge with intent `charge`; the client answers with the payer's
signature of `TransferWithAuthorization`, which the server sends to the token (draft-evm-charge-01).
"""

from typing import Final

import msgspec

from channel.errors import WireError
from channel.limits import RECEIPT_BYTES_MAX, REQUEST_PARAM_BYTES_MAX
from channel.types import Address
from channel.wire.challenge import Challenge
from channel.wire.credential import format_envelope
from channel.wire.encoding import (
    decode_base64url,
    format_amount,
    format_checksum_address,
    format_hex,
    parse_address,
    parse_amount,
    parse_json_object,
    parse_safe_integer,
)
from channel.wire.fields import optional, parse_names, parse_object, parse_text, required
from channel.wire.funding import TransferAuthorization

__all__ = [
    "AUTHORIZATION",
    "CHARGE",
    "METHOD",
    "ChargeRequest",
    "authorization_object",
    "format_charge_credential",
    "parse_charge_receipt",
    "parse_charge_request",
]

METHOD: Final = "evm"
"""The method of the charges that this package reads."""
CHARGE: Final = "charge"
AUTHORIZATION: Final = "authorization"
"""The type of credential that this package makes for a charge."""
DEFAULT_TYPES: Final = ("transaction", "hash")


class ChargeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The price of one request and where it is paid."""

    amount: int
    """In base units."""
    currency: Address
    """The ERC-20 token."""
    recipient: Address
    chain_id: int
    credential_types: tuple[str, ...] = DEFAULT_TYPES
    """The kinds of credential that the server takes, in its order of preference."""
    has_splits: bool = False
    """Whether several parties are paid, which an authorization cannot do."""


def parse_charge_request(request: str) -> ChargeRequest:
    """Return the decoded `request` parameter of an `evm` charge; unknown fields are ignored.

    Raises:
        WireError: A field is missing or malformed; the message names it.
    """
    wire = parse_json_object(decode_base64url(request), bytes_max=REQUEST_PARAM_BYTES_MAX)
    details = required(wire, "methodDetails", parse_object)
    return ChargeRequest(
        amount=required(wire, "amount", parse_amount),
        currency=required(wire, "currency", parse_address),
        recipient=required(wire, "recipient", parse_address),
        chain_id=required(details, "chainId", parse_safe_integer),
        credential_types=optional(details, "credentialTypes", parse_names) or DEFAULT_TYPES,
        has_splits=bool(details.get("splits")),
    )


def authorization_object(authorization: TransferAuthorization) -> dict[str, str]:
    """Return an EIP-3009 authorization with its wire names, as charge and x402 spell it."""
    return {
        "from": format_checksum_address(authorization.funder),
        "to": format_checksum_address(authorization.to),
        "value": format_amount(authorization.value),
        "validAfter": str(authorization.valid_after),
        "validBefore": str(authorization.valid_before),
        "nonce": format_hex(authorization.nonce),
    }


def format_charge_credential(
    challenge: Challenge, authorization: TransferAuthorization, signature: bytes, *, chain_id: int
) -> str:
    """Return the value of the credential's field for a charge."""
    payload = {
        "type": AUTHORIZATION,
        **authorization_object(authorization),
        "signature": format_hex(signature),
    }
    source = f"did:pkh:eip155:{chain_id}:{format_checksum_address(authorization.funder)}"
    return format_envelope(challenge, payload, source)


def parse_charge_receipt(text: str) -> str:
    """Return the reference of a successful charge's `Payment-Receipt`, such as a transaction hash.

    Raises:
        WireError: It cannot be parsed, or is not a success of this method.
    """
    if len(text) > RECEIPT_BYTES_MAX:
        raise WireError(f"a receipt over {RECEIPT_BYTES_MAX} bytes")
    wire = parse_json_object(decode_base64url(text))
    said = required(wire, "method", parse_text), required(wire, "status", parse_text)
    if said != (METHOD, "success"):
        raise WireError(f"expected a success of {METHOD}, found {' '.join(said)}")
    return required(wire, "reference", parse_text)
