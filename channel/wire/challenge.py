"""A challenge and its content: `WWW-Authenticate: Payment`, request object, opaque map.

A `Challenge` holds the raw wire strings, because its id is an HMAC over exactly those (CHAL-05).
A `SessionRequest` is its decoded `request` parameter for intent `session`. What a method adds to
its `methodDetails`, the method formats and parses (`channel.methods`).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from channel.errors import ConfigError, WireError
from channel.limits import (
    CHALLENGE_BYTES_MAX,
    CHALLENGES_PER_RESPONSE_MAX,
    REQUEST_PARAM_BYTES_MAX,
)
from channel.tariff import Tariff, plain_tariff
from channel.types import Address, ChannelId
from channel.wire.auth_params import format_auth_params, parse_auth_challenges
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    format_amount,
    format_checksum_address,
    format_hex,
    parse_address,
    parse_amount,
    parse_json_object,
)
from channel.wire.fields import (
    optional,
    parse_bool,
    parse_channel_id,
    parse_name,
    parse_object,
    parse_text,
    required,
)
from channel.wire.tariff import parse_tariff, tariff_object

__all__ = [
    "INTENT",
    "PAYMENT_AUTHORIZATION",
    "SCHEME",
    "Challenge",
    "SessionRequest",
    "echo_challenge",
    "format_challenge",
    "format_opaque",
    "parse_challenges",
    "parse_opaque",
    "parse_session_request_object",
    "session_request_object",
]

INTENT: Final = "session"
"""The one intent that this package speaks."""
SCHEME = "Payment"
PAYMENT_AUTHORIZATION = "Payment-Authorization"
"""The only field besides `Authorization` that a challenge may select, spelled so (CHAL-12)."""

_METHOD = re.compile("[a-z][a-z0-9:_-]*").fullmatch
_INTENT = re.compile("[A-Za-z0-9-]+").fullmatch
_OPTIONAL_SLOTS = ("description", "digest", "expires", "header", "opaque")
_BOUND_SLOTS = ("realm", "method", "intent", "request", "expires", "digest", "header", "opaque")


class Challenge(msgspec.Struct, frozen=True, gc=False):
    """The parameters of a challenge exactly as on the wire; absent ones are None (CRED-01)."""

    id: str
    realm: str
    method: str
    intent: str
    request: str
    """base64url of the canonical JSON of the request object."""
    expires: str | None = None
    digest: str | None = None
    header: str | None = None
    """The header field for the credential when that is not `Authorization` (CHAL-12)."""
    opaque: str | None = None
    description: str | None = None
    """For display only: the id does not cover it, and no decision may use it (CHAL-13)."""


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The price of a session and where it is paid (CHAL-02, CHAL-03). Amounts in base units."""

    unit_price: int
    currency: Address
    """The ERC-20 token."""
    recipient: Address
    """The payee."""
    chain_id: int
    escrow: Address
    unit_type: str
    """The name of one unit, such as `llm_token`; empty when the server gives none."""
    suggested_deposit: int | None = None
    description: str | None = None
    external_id: str | None = None
    channel_id: ChannelId | None = None
    """The payer's channel to continue with."""
    min_voucher_delta: int = 0
    fee_payer: bool = False
    credential_types: tuple[str, ...]
    """The kinds of funding that the server takes, in its order of preference."""
    permit2: Address | None = None
    """The address of Permit2, when it is not the canonical one."""
    tariff: Tariff | None = None
    """All rates; None if `unit_price` is the only one. Its main rate is `unit_price` for each
    `unit_type`, as `Tariff.unit` returns them."""

    @property
    def pricing(self) -> Tariff:
        """The tariff of the session; without one, `unit_price` for each unit."""
        return self.tariff or plain_tariff(self.unit_type, self.unit_price)


def parse_challenges(header_lines: Iterable[str]) -> tuple[Challenge, ...]:
    """Return every Payment challenge of the `WWW-Authenticate` lines; skip other schemes.

    Also skip a challenge that selects a field no draft allows: the client sends nothing (CHAL-12).

    Raises:
        WireError: A Payment challenge is malformed, or the lines are too many or too long.
    """
    lines = list(header_lines)
    if sum(map(len, lines)) > CHALLENGE_BYTES_MAX:
        raise WireError(f"more than {CHALLENGE_BYTES_MAX} bytes of challenges")
    found: list[Challenge] = []
    for line in lines:
        if SCHEME.lower() not in line.lower():
            continue
        found += [
            _read_challenge(challenge.params)
            for challenge in parse_auth_challenges(line)
            if challenge.scheme == SCHEME.lower()
            and challenge.params.get("header", PAYMENT_AUTHORIZATION) == PAYMENT_AUTHORIZATION
        ]
        if len(found) > CHALLENGES_PER_RESPONSE_MAX:
            raise WireError(f"more than {CHALLENGES_PER_RESPONSE_MAX} challenges")
    return tuple(found)


def _read_challenge(params: Mapping[str, str]) -> Challenge:
    try:
        challenge = Challenge(
            id=params["id"],
            realm=params["realm"],
            method=params["method"],
            intent=params["intent"],
            request=params["request"],
            **{name: params[name] for name in _OPTIONAL_SLOTS if name in params},
        )
    except KeyError as error:
        raise WireError(f"a challenge lacks {error.args[0]}") from error
    _require_well_formed(challenge)
    return challenge


def _require_well_formed(challenge: Challenge) -> None:
    if not challenge.id:
        raise WireError("a challenge with an empty id")
    if _METHOD(challenge.method) is None or _INTENT(challenge.intent) is None:
        raise WireError("a challenge has a malformed method or intent")
    if not challenge.request or len(challenge.request) > REQUEST_PARAM_BYTES_MAX:
        raise WireError(
            f"a challenge has a request that is empty or over {REQUEST_PARAM_BYTES_MAX} bytes"
        )
    for name in _BOUND_SLOTS:
        if "|" in (getattr(challenge, name) or ""):
            raise WireError(f"a challenge has | in its {name}")  # CHAL-09: `|` separates the slots


def format_challenge(challenge: Challenge) -> str:
    """Return the value of a `WWW-Authenticate` line.

    Raises:
        WireError: A slot is malformed or holds a `|` or a control character (CHAL-09, F-09).
    """
    _require_well_formed(challenge)
    if challenge.header not in (None, PAYMENT_AUTHORIZATION):
        raise WireError(f"a challenge names a header other than {PAYMENT_AUTHORIZATION}")
    params = {
        "id": challenge.id,
        "realm": challenge.realm,
        "method": challenge.method,
        "intent": challenge.intent,
        "request": challenge.request,
    }
    for name in _OPTIONAL_SLOTS:
        value = getattr(challenge, name)
        if value is not None:
            params[name] = value
    return f"{SCHEME} {format_auth_params(params)}"


def echo_challenge(challenge: Challenge) -> dict[str, str]:
    """Return the challenge's parameters exactly as on the wire, absent ones left out (CRED-01)."""
    return {
        name: value
        for name in challenge.__struct_fields__
        if (value := getattr(challenge, name)) is not None
    }


def session_request_object(
    request: SessionRequest, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the request with its wire names, without defaults.

    `details` are the members of `methodDetails` that only the request's method has.

    Raises:
        ConfigError: The price is not positive (CHAL-02).
        WireError: The wire cannot carry one of the values.
    """
    if request.unit_price <= 0:
        raise ConfigError(
            f"expected a unit price above 0, found {request.unit_price}; set a positive price"
        )
    wire: dict[str, Any] = {
        "amount": format_amount(request.unit_price),
        "currency": format_checksum_address(request.currency),
        "recipient": format_checksum_address(request.recipient),
        "methodDetails": _format_details(request) | dict(details or {}),
    }
    if request.unit_type:
        wire["unitType"] = request.unit_type
    if request.suggested_deposit is not None:
        wire["suggestedDeposit"] = format_amount(request.suggested_deposit)
    if request.description is not None:
        wire["description"] = request.description
    if request.external_id is not None:
        wire["externalId"] = request.external_id
    if request.tariff is not None:
        wire["tariff"] = tariff_object(request.tariff)
    return wire


def _format_details(request: SessionRequest) -> dict[str, Any]:
    details: dict[str, Any] = {
        "chainId": request.chain_id,
        "escrowContract": format_checksum_address(request.escrow),
    }
    if request.channel_id is not None:
        details["channelId"] = format_hex(request.channel_id)
    if request.min_voucher_delta:
        details["minVoucherDelta"] = format_amount(request.min_voucher_delta)
    if request.fee_payer:
        details["feePayer"] = True
    return details


def parse_session_request_object(
    wire: Mapping[str, Any],
    read_details: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> SessionRequest:
    """Return the decoded request object; unknown fields are ignored.

    `read_details` returns the fields that the method itself reads from `methodDetails`:
    `chain_id`, `credential_types`, and any other that only this method has.

    Raises:
        WireError: A field is missing or malformed; the message names it.
    """
    details = required(wire, "methodDetails", parse_object)
    request = SessionRequest(
        unit_price=required(wire, "amount", parse_amount),
        currency=required(wire, "currency", parse_address),
        recipient=required(wire, "recipient", parse_address),
        escrow=required(details, "escrowContract", parse_address),
        unit_type=optional(wire, "unitType", parse_text) or "",
        suggested_deposit=optional(wire, "suggestedDeposit", parse_amount),
        description=optional(wire, "description", parse_text),
        external_id=optional(wire, "externalId", parse_text),
        channel_id=optional(details, "channelId", parse_channel_id),
        min_voucher_delta=optional(details, "minVoucherDelta", parse_amount) or 0,
        fee_payer=optional(details, "feePayer", parse_bool) or False,
        tariff=optional(wire, "tariff", parse_tariff),
        **read_details(details),
    )
    _require_main_rate(request)
    return request


def _require_main_rate(request: SessionRequest) -> None:
    """Refuse a tariff whose main rate differs from `unit_price`, which other clients read."""
    if request.tariff is None:
        return
    main = request.tariff.unit()
    if main != (request.unit_price, request.unit_type):
        price, name = main
        raise WireError(
            f"tariff: its main rate is {price} for each {name}, but the request names "
            f"{request.unit_price} for each {request.unit_type or 'unit'}"
        )


def parse_opaque(opaque: str) -> dict[str, str]:
    """Return the flat string map that a server put into its challenge (CHAL-10).

    Raises:
        WireError: Not base64url of a JSON object of strings, or larger than the bound.
    """
    if len(opaque) > REQUEST_PARAM_BYTES_MAX:
        raise WireError(f"an opaque map over {REQUEST_PARAM_BYTES_MAX} bytes")
    entries = parse_json_object(decode_base64url(opaque), bytes_max=REQUEST_PARAM_BYTES_MAX)
    return {name: required(entries, name, parse_name) for name in entries}


def format_opaque(entries: Mapping[str, str]) -> str:
    """Return base64url of the canonical JSON of a flat string map; see `parse_opaque`."""
    return encode_base64url(canonical_json(entries))
