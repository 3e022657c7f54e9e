"""The wallet's own answers: JSON, and failures in a form that keeps their type."""

from typing import Final

import httpx
import msgspec
from starlette.responses import Response

from channel.errors import ApprovalPendingError, MppSessionError, PolicyRefusedError
from channel.wire.problem import PROBLEM_CONTENT_TYPE
from mpp_session.agent.wallet_errors import encode_failure, status_of
from mpp_session.agent.wallet_wire import FAILURE, WalletProblem

__all__ = ["answer_failure", "answer_json", "problem_of"]

_JSON: Final = "application/json"
_TITLES: Final = {
    400: "Bad Request",
    401: "Unknown Agent",
    403: "Payment Refused",
    404: "Not Found",
    413: "Too Long",
    502: "Target Failed",
    503: "Not Now",
    504: "Outcome Unknown",
}


def answer_json(value: object, status: int = 200) -> Response:
    """Return a value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type=_JSON)


def answer_failure(
    error: MppSessionError | httpx.RequestError, status: int | None = None
) -> Response:
    """Return a failure as a problem; `status` is that of its type if None."""
    problem = problem_of(error, status)
    return Response(
        msgspec.json.encode(problem),
        problem.status,
        headers={FAILURE: problem.failure.name, "Cache-Control": "no-store"},
        media_type=PROBLEM_CONTENT_TYPE,
    )


def problem_of(
    error: MppSessionError | httpx.RequestError, status: int | None = None
) -> WalletProblem:
    """Return a failure as the body of a problem, with what a program decides by at its top."""
    number = status_of(error) if status is None else status
    failure = encode_failure(error)
    fields = failure.fields
    code = fields.get("code")
    if isinstance(error, ApprovalPendingError):
        code = "approval_pending"
    is_number = isinstance(error, PolicyRefusedError)
    return WalletProblem(
        type="about:blank",
        title=_TITLES.get(number, "Payment Failed"),
        status=number,
        detail=failure.message,
        failure=failure,
        code=code,
        field=fields.get("field") or fields.get("limit"),
        asked=_shown(fields.get("asked"), is_number=is_number),
        allowed=_shown(fields.get("allowed"), is_number=is_number),
        rule=fields.get("rule"),
        retry_at=fields.get("retry_at"),
        approval_id=fields.get("approval_id"),
    )


def _shown(value: object, *, is_number: bool) -> int | str | None:
    """Return a number as a number, where the error has numbers, and anything else as words."""
    if value is None or (is_number and isinstance(value, int)):
        return value
    return str(value)
