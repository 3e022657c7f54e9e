"""Problem bodies: `application/problem+json` (RFC 9457; REQUIREMENTS section ERR)."""

from collections.abc import Mapping, Sequence

import msgspec

from channel.errors import ProblemError, WireError
from channel.limits import DESCRIPTION_CHARS_MAX, PROBLEM_BYTES_MAX
from channel.types import ChannelId
from channel.wire.encoding import format_hex, parse_amount, parse_json_object
from channel.wire.fields import parse_channel_id

__all__ = [
    "OWN_BASE",
    "PROBLEM_BASE",
    "PROBLEM_CONTENT_TYPE",
    "REGISTERED",
    "Problem",
    "format_problem",
    "parse_problem",
    "problem_uri",
]

PROBLEM_CONTENT_TYPE = "application/problem+json"
PROBLEM_BASE = "https://paymentauth.org/problems/"
OWN_BASE = "tag:mpp-session,2026:problems/"
"""The prefix of types that no draft registers: this project may not extend the registry (O-56)."""

REGISTERED = frozenset(
    {
        # draft-httpauth-payment-02, "Error Codes"
        "bad-request",
        "internal-payment-error",
        "invalid-challenge",
        "invalid-payload",
        "malformed-credential",
        "method-unsupported",
        "payment-action-required",
        "payment-expired",
        "payment-insufficient",
        "payment-required",
        "verification-failed",
        # draft-evm-session-00, "Problem Type Registration"
        "session/amount-exceeds-deposit",
        "session/challenge-not-found",
        "session/channel-finalized",
        "session/channel-not-found",
        "session/delta-too-small",
        "session/insufficient-balance",
        "session/invalid-signature",
        "session/signer-mismatch",
        "session/transaction-reverted",
    }
)

PAYMENT_REQUIRED = 402
SERVER_ERROR = 500

_AMOUNTS = (
    "requiredCumulative",
    "acceptedCumulative",
    "spent",
    "deposit",
    "minVoucherDelta",
    "depositMin",
)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A problem as the server states it. A hint: its amounts are not verified (CLIENT-06)."""

    type: str
    """Relative to `PROBLEM_BASE` or `OWN_BASE` when it has one of these prefixes, else as sent."""
    title: str = ""
    detail: str = ""
    status: int | None = None
    challenge_id: str | None = None
    channel_id: ChannelId | None = None
    required_cumulative: int | None = None
    accepted: int | None = None
    spent: int | None = None
    deposit: int | None = None
    min_voucher_delta: int | None = None
    deposit_min: int | None = None


def problem_uri(name: str) -> str:
    """Return the `type` of a problem; registered names get the registry's prefix."""
    return (PROBLEM_BASE if name in REGISTERED else OWN_BASE) + name


def format_problem(
    error: ProblemError,
    *,
    challenge_id: str | None = None,
    channel_id: ChannelId | None = None,
    detail: str | None = None,
    price: Sequence[Mapping[str, object]] = (),
    names_error: bool = False,
) -> bytes:
    """Return the body for an error; `status` equals the HTTP status (ERR-01, ERR-03).

    `detail` replaces the error's own detail, and `price` lists what is asked. With `names_error`
    the body repeats both as `error`, where clients of model servers look (O-43).
    """
    detail = error.detail if detail is None else detail
    body: dict[str, object] = {
        "type": problem_uri(error.problem_type),
        "title": error.title,
        "status": error.status,
        "detail": detail,
        **error.members(),
    }
    if price:
        body["price"] = price
    if challenge_id is not None:
        body["challengeId"] = challenge_id
    if channel_id is not None:
        body["channelId"] = format_hex(channel_id)
    if names_error:
        body["error"] = {
            "message": detail,
            "type": _kind(error.status),
            "code": error.problem_type,
            "param": None,
        }
    return msgspec.json.encode(body)


def _kind(status: int) -> str:
    """Return the kind of an error as OpenAI's protocol names it."""
    if status == PAYMENT_REQUIRED:
        return "payment_required"
    return "server_error" if status >= SERVER_ERROR else "invalid_request_error"


def parse_problem(body: bytes) -> Problem | None:
    """Return what can be read of a problem body, or None when it is not one.

    Tolerant, because the body only explains the HTTP status: missing or malformed members are
    left out, and nothing is raised.
    """
    try:
        wire = parse_json_object(body, bytes_max=PROBLEM_BYTES_MAX)
    except WireError:
        return None
    status = wire.get("status")
    amounts = [_read_amount(wire.get(name)) for name in _AMOUNTS]
    return Problem(
        type=_read_type(wire.get("type")),
        title=_read_text(wire.get("title")),
        detail=_read_text(wire.get("detail")),
        status=status if type(status) is int else None,
        challenge_id=_read_text(wire.get("challengeId")) or None,
        channel_id=_read_channel_id(wire.get("channelId")),
        required_cumulative=amounts[0],
        accepted=amounts[1],
        spent=amounts[2],
        deposit=amounts[3],
        min_voucher_delta=amounts[4],
        deposit_min=amounts[5],
    )


def _read_type(value: object) -> str:
    text = _read_text(value)
    return text.removeprefix(PROBLEM_BASE).removeprefix(OWN_BASE) or "about:blank"


def _read_text(value: object) -> str:
    return value[:DESCRIPTION_CHARS_MAX] if isinstance(value, str) else ""


def _read_amount(value: object) -> int | None:
    try:
        return parse_amount(value)
    except WireError:
        return None


def _read_channel_id(value: object) -> ChannelId | None:
    try:
        return parse_channel_id(value)
    except WireError:
        return None
