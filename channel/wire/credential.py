"""A credential: `Authorization: Payment <base64url of JSON>`, the hot path of the server.

The strict parser, `_read_envelope`, defines what a credential is. Nearly every request carries a
voucher or a close, so msgspec decodes those in one pass straight into structs. msgspec accepts
duplicate keys and skips unknown members, so its result counts only when the text provably holds
nothing else: the number of quotation marks must be exactly the number that these members need.
Any doubt goes to the strict parser. A property test checks that both agree wherever the short way
answers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from channel.errors import (
    BadRequestError,
    MalformedCredentialError,
    MalformedPayloadError,
    WireError,
)
from channel.limits import AUTHORIZATION_BYTES_MAX
from channel.types import Address, ChannelId, Redacted, SignedVoucher
from channel.wire.challenge import SCHEME, Challenge, echo_challenge
from channel.wire.encoding import (
    decode_base64url,
    encode_base64url,
    format_source,
    parse_amount,
    parse_hex,
    parse_json_object,
    parse_source,
)
from channel.wire.fields import optional, parse_name, parse_object, parse_signature, required
from channel.wire.payload import ClosePayload, Payload, VoucherPayload, format_payload

__all__ = [
    "Credential",
    "Envelope",
    "PayloadParser",
    "format_credential",
    "format_envelope",
    "parse_credential",
    "parse_envelope",
    "select_credential",
]

PayloadParser: TypeAlias = Callable[[Mapping[str, Any]], Payload]
"""A method's parser of payloads; raises `MalformedPayloadError`."""

_PREFIX = f"{SCHEME} "
_QUOTED = re.compile(r'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_ELEMENT = re.compile(rf"(?:^|,)[ \t]*({SCHEME}(?:[ \t][^,]*)?)(?=,|$)", re.IGNORECASE)
_OPTIONAL_SLOTS = ("expires", "digest", "header", "opaque", "description")


class Credential(Redacted, frozen=True):
    """A client's answer to a challenge."""

    challenge: Challenge
    """As the client echoed it: the HMAC is checked over exactly these strings."""
    payload: Payload
    source: tuple[int, Address] | None = None
    """Chain id and address of the payer, as the client states them (CRED-02, CRED-03)."""


class Envelope(Redacted, frozen=True):
    """A credential of any method: its payload is not understood."""

    challenge: Challenge
    payload: Mapping[str, Any]
    source: str | None = None


class _RawVoucher(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="voucher"):
    channelId: str  # noqa: N815
    cumulativeAmount: str  # noqa: N815
    signature: str


class _RawClose(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="close"):
    channelId: str  # noqa: N815
    cumulativeAmount: str  # noqa: N815
    signature: str


class _RawEnvelope(msgspec.Struct, frozen=True, gc=False):
    challenge: Challenge
    payload: _RawVoucher | _RawClose
    source: str | None = None


_decode_raw = msgspec.json.Decoder(_RawEnvelope).decode
# A member needs two marks for its key and, when it is a string, two for its value.
_MARKS_OF_ENVELOPE = 2 + 2
_MARKS_OF_CHALLENGE = 5 * 4
_MARKS_OF_PAYLOAD = 4 * 4
_MARKS_ALWAYS = _MARKS_OF_ENVELOPE + _MARKS_OF_CHALLENGE + _MARKS_OF_PAYLOAD
_MARKS_MOST = _MARKS_ALWAYS + 4 * (len(_OPTIONAL_SLOTS) + 1)


def select_credential(header_values: Sequence[str]) -> str | None:
    """Return the one Payment credential among the values of the credential's header field(s).

    Credentials of other schemes are ignored. Two Payment credentials are refused, whether they
    are in two lines, in one line joined by a comma, or in two fields (CORE-10).

    Raises:
        MalformedCredentialError: The values are longer than the bound (CORE-14).
        BadRequestError: More than one Payment credential.
    """
    if sum(map(len, header_values)) > AUTHORIZATION_BYTES_MAX:
        raise MalformedCredentialError(f"A credential over {AUTHORIZATION_BYTES_MAX} bytes.")
    found: list[str] = []
    for value in header_values:
        if value.startswith(_PREFIX) and "," not in value:
            found.append(value)
        else:
            found += _ELEMENT.findall(_QUOTED.sub('""', value))
    if len(found) > 1:
        raise BadRequestError("More than one Payment credential in a request.")
    return found[0] if found else None


def parse_credential(header_value: str, parse_payload: PayloadParser) -> Credential:
    """Return the meaning of a credential, whose payload `parse_payload` reads.

    Raises:
        MalformedCredentialError: The envelope is malformed: scheme, base64url, JSON, challenge
            (CORE-03).
        MalformedPayloadError: The payload or the source inside it is malformed (CRED-02, CRED-04).
    """
    try:
        text = decode_base64url(_require_token(header_value))
        quick = _read_quickly(text)
        return _read_envelope(text, parse_payload) if quick is None else quick
    except WireError as error:
        raise MalformedCredentialError(f"credential: {error}") from error


def _require_token(header_value: str) -> str:
    if len(header_value) > AUTHORIZATION_BYTES_MAX:
        raise WireError(f"over {AUTHORIZATION_BYTES_MAX} bytes")
    if header_value.startswith(_PREFIX):
        return header_value[len(_PREFIX) :].strip(" \t")
    scheme, _, token = header_value.strip(" \t").partition(" ")
    if scheme.lower() != SCHEME.lower():
        raise WireError(f"not of scheme {SCHEME}")
    return token.strip(" \t")


def _read_quickly(text: bytes) -> Credential | None:
    """Return a voucher or close credential, or None when the strict parser must decide."""
    marks = text.count(b'"')
    if marks > _MARKS_MOST or b"[" in text:  # bounds the nesting of what msgspec skips
        return None
    try:
        raw = _decode_raw(text)
        if marks != _count_marks(raw):
            return None
        voucher = SignedVoucher(
            ChannelId(parse_hex(raw.payload.channelId, 32)),
            parse_amount(raw.payload.cumulativeAmount),
            parse_signature(raw.payload.signature),
        )
        source = None if raw.source is None else parse_source(raw.source)
    except (msgspec.DecodeError, UnicodeDecodeError, WireError):
        return None
    payload = (
        VoucherPayload(voucher) if isinstance(raw.payload, _RawVoucher) else ClosePayload(voucher)
    )
    return Credential(raw.challenge, payload, source)


def _count_marks(raw: _RawEnvelope) -> int:
    """Count the quotation marks of a text that holds exactly these members, once each."""
    challenge = raw.challenge
    present = (
        (challenge.expires is not None)
        + (challenge.digest is not None)
        + (challenge.header is not None)
        + (challenge.opaque is not None)
        + (challenge.description is not None)
        + (raw.source is not None)
    )
    return _MARKS_ALWAYS + 4 * present


def parse_envelope(header_value: str) -> Envelope:
    """Return a credential of any method, or raise `WireError`."""
    envelope = parse_json_object(decode_base64url(_require_token(header_value)))
    return Envelope(
        _read_challenge(envelope),
        required(envelope, "payload", parse_object),
        optional(envelope, "source", parse_name),
    )


def _read_challenge(envelope: Mapping[str, Any]) -> Challenge:
    echoed = required(envelope, "challenge", parse_object)
    return Challenge(
        id=required(echoed, "id", parse_name),
        realm=required(echoed, "realm", parse_name),
        method=required(echoed, "method", parse_name),
        intent=required(echoed, "intent", parse_name),
        request=required(echoed, "request", parse_name),
        **{name: required(echoed, name, parse_name) for name in _OPTIONAL_SLOTS if name in echoed},
    )


def _read_envelope(text: bytes, parse_payload: PayloadParser) -> Credential:
    """Return the meaning of a credential's JSON. This parser defines what is valid."""
    envelope = parse_json_object(text)
    challenge = _read_challenge(envelope)
    payload = parse_payload(required(envelope, "payload", parse_object))
    try:
        source = optional(envelope, "source", parse_source)
    except WireError as error:
        raise MalformedPayloadError(str(error)) from error
    if source is None and payload.needs_source:
        raise MalformedPayloadError("source: missing")
    return Credential(challenge, payload, source)


def format_credential(credential: Credential) -> str:
    """Return the value of an `Authorization: Payment` field.

    Raises:
        WireError: An amount outside `uint128`.
    """
    source = None if credential.source is None else format_source(*credential.source)
    return format_envelope(credential.challenge, format_payload(credential.payload), source)


def format_envelope(
    challenge: Challenge, payload: Mapping[str, object], source: str | None = None
) -> str:
    """Return the value of an `Authorization: Payment` field with a payload of any method."""
    envelope: dict[str, object] = {"challenge": echo_challenge(challenge), "payload": payload}
    if source is not None:
        envelope["source"] = source
    return _PREFIX + encode_base64url(msgspec.json.encode(envelope))
