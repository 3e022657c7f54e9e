"""Between the plain JSON of MCP and the strings of HTTP: challenges, credentials, receipts.

The engine, the gate and the client know the protocol as header fields. Over JSON-RPC the same
values travel as objects: `request` is plain JSON, and its canonical form (RFC 8785) is what the
challenge's id covers (MCP-02, MCP-03). What is malformed here raises `WireError`; everything else
is judged by the parsers of the header fields.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from channel.errors import WireError
from channel.limits import AUTHORIZATION_BYTES_MAX, RECEIPT_BYTES_MAX
from channel.methods.registry import DEFAULT
from channel.wire.challenge import INTENT, SCHEME, Challenge, format_opaque
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    parse_json_object,
)
from channel.wire.fields import parse_name, parse_object, required

__all__ = [
    "CAPABILITY",
    "CREDENTIAL",
    "IDEMPOTENCY_KEY",
    "MANAGEMENT",
    "PAYMENT_REQUIRED",
    "PAYMENT_REQUIRED_CODE",
    "RECEIPT",
    "VERIFICATION_FAILED_CODE",
    "challenge_object",
    "credential_object",
    "format_credential_header",
    "format_receipt_header",
    "parse_challenge_object",
    "receipt_object",
]

CREDENTIAL: Final = "org.paymentauth/credential"
RECEIPT: Final = "org.paymentauth/receipt"
PAYMENT_REQUIRED: Final = "org.paymentauth/payment-required"
"""In the `_meta` of a result with `isError`: what servers send whose SDK hides errors (MCP-16)."""
IDEMPOTENCY_KEY: Final = "mpp-session/idempotency-key"
"""In the `_meta` of a request. The draft has no such key, so it is under a name of our own."""
MANAGEMENT: Final = "mpp-session/management"
"""True in the `_meta` of a request that manages a channel and must run nothing: what HEAD is in
HTTP. The draft has no such thing; servers that know it say so in their `CAPABILITY`."""
PAYMENT_REQUIRED_CODE: Final = -32042
VERIFICATION_FAILED_CODE: Final = -32043
CAPABILITY: Final[Mapping[str, Any]] = {
    "methods": {DEFAULT.name: {"intents": [INTENT], "management": MANAGEMENT}}
}
"""What a server advertises as `capabilities.experimental.payment` (MCP-10)."""

_STRINGS = ("id", "realm", "method", "intent")
_OPTIONAL = ("expires", "digest", "header", "description")


def challenge_object(challenge: Challenge) -> dict[str, Any]:
    """Return a challenge as an object of plain JSON.

    Raises:
        WireError: Its request is not base64url of a JSON object.
    """
    members = {name: getattr(challenge, name) for name in (*_STRINGS, *_OPTIONAL, "opaque")}
    members["request"] = parse_json_object(decode_base64url(challenge.request))
    return {name: value for name, value in members.items() if value is not None}


def parse_challenge_object(value: object) -> Challenge:
    """Return the challenge in an object; other members are ignored.

    Raises:
        WireError: A member is missing or malformed.
    """
    members = _with_strings(parse_object(value))
    return Challenge(
        **{name: required(members, name, parse_name) for name in (*_STRINGS, "request")},
        **{
            name: required(members, name, parse_name)
            for name in (*_OPTIONAL, "opaque")
            if name in members
        },
    )


def format_credential_header(value: object) -> str:
    """Return a credential of a request's `_meta` as an `Authorization` field would carry it.

    Raises:
        WireError: It exceeds the bound, or it or its challenge is not an object.
    """
    envelope = parse_object(value)
    _require_size(envelope, AUTHORIZATION_BYTES_MAX)
    challenge = _with_strings(required(envelope, "challenge", parse_object))
    return f"{SCHEME} " + encode_base64url(_encode({**envelope, "challenge": challenge}))


def credential_object(header_value: str) -> dict[str, Any]:
    """Return a credential of an `Authorization` field as an object of plain JSON.

    Raises:
        WireError: It is not a Payment credential.
    """
    scheme, _, token = header_value.partition(" ")
    if scheme != SCHEME:
        raise WireError(f"not of scheme {SCHEME}")
    envelope = parse_json_object(decode_base64url(token))
    challenge = required(envelope, "challenge", parse_object)
    request = parse_json_object(decode_base64url(required(challenge, "request", parse_name)))
    return {**envelope, "challenge": {**challenge, "request": request}}


def receipt_object(header_value: str) -> dict[str, Any]:
    """Return a `Payment-Receipt` field as an object of plain JSON.

    Raises:
        WireError: It is not base64url of a JSON object.
    """
    return parse_json_object(decode_base64url(header_value), bytes_max=RECEIPT_BYTES_MAX)


def format_receipt_header(value: object) -> str:
    """Return a receipt of a result's `_meta` as a `Payment-Receipt` field would carry it.

    Raises:
        WireError: It is not an object, or exceeds the bound.
    """
    receipt = parse_object(value)
    _require_size(receipt, RECEIPT_BYTES_MAX)
    return encode_base64url(_encode(receipt))


def _with_strings(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return a challenge's members with `request` and `opaque` as HTTP has them.

    `opaque` is a string in some SDKs and an object in others (MCP-02).
    """
    request = required(members, "request", parse_object)
    strings = {**members, "request": encode_base64url(canonical_json(request))}
    if isinstance(members.get("opaque"), Mapping):
        strings["opaque"] = format_opaque(members["opaque"])
    return strings


def _require_size(value: Mapping[str, Any], bytes_max: int) -> None:
    if len(_encode(value)) > bytes_max:
        raise WireError(f"over {bytes_max} bytes")


def _encode(value: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (RecursionError, TypeError, UnicodeEncodeError) as error:
        raise WireError("no JSON that can be written again") from error
