"""Problem bodies: `application/problem+json` (RFC 9457; REQUIREMENTS section ERR)."""

import msgspec

from channel.errors import ProblemError, WireError
from channel.limits import DESCRIPTION_CHARS_MAX, PROBLEM_BYTES_MAX
from channel.types import ChannelId
from channel.wire.encoding import format_hex, parse_amount, parse_json_object
from channel.wire.fields import parse_channel_id

__all__ = ["PROBLEM_BASE", "PROBLEM_CONTENT_TYPE", "Problem", "format_problem", "parse_problem"]

PROBLEM_CONTENT_TYPE = "application/problem+json"
PROBLEM_BASE = "https://paymentauth.org/problems/"

_AMOUNTS = (
    "requiredCumulative",
    "acceptedCumulative",
    "spent",
    "deposit",
    "minVoucherDelta",
    "depositMin",
)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said went wrong. A hint: amounts in it are the server's word (CLIENT-06)."""

    type: str
    """Relative to `PROBLEM_BASE` when it is one of the protocol's, else as sent."""
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


def format_problem(
    error: ProblemError, *, challenge_id: str | None = None, channel_id: ChannelId | None = None
) -> bytes:
    """Return the body for an error; `status` equals the HTTP status (ERR-01, ERR-03)."""
    body: dict[str, object] = {
        "type": PROBLEM_BASE + error.problem_type,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        **error.members(),
    }
    if challenge_id is not None:
        body["challengeId"] = challenge_id
    if channel_id is not None:
        body["channelId"] = format_hex(channel_id)
    return msgspec.json.encode(body)


def parse_problem(body: bytes) -> Problem | None:
    """Return what can be read of a problem body, or None when it is not one.

    Tolerant, because it only explains a status that already says enough: members that are
    missing or malformed are left out, and nothing is raised.
    """
    try:
        wire = parse_json_object(body, bytes_max=PROBLEM_BYTES_MAX)
    except WireError:
        return None
    status = wire.get("status")
    amounts = [_read_amount(wire.get(name)) for name in _AMOUNTS]
    return Problem(
        type=_read_text(wire.get("type")).removeprefix(PROBLEM_BASE) or "about:blank",
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
