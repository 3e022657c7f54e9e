"""A paid request and its answer, by (channel, route, idempotency key) (decision 7, AMB-11).

The row is written in the transaction that reserves the money, and again in the one that spends
it, so a key can neither be charged twice nor forgotten between the two (IDEM-05, F-28).
"""

import msgspec

from channel.errors import IdempotencyConflictError, OutcomeUnknownError, RequestInFlightError
from channel.state.channel_state import ChannelState

__all__ = ["RequestClaim", "RequestRecord", "StoredResponse", "decide_request"]


class StoredResponse(msgspec.Struct, frozen=True, gc=False):
    """An answer that can be given again: status, headers and body as they were sent."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class RequestClaim(msgspec.Struct, frozen=True, gc=False):
    """A request that is about to be paid for and served."""

    route: str
    idempotency_key: str
    request_digest: bytes
    """SHA-256 over method, target and body: the same key with another digest is refused."""
    reservation_id: bytes
    claimed_at: int
    expires_at: int
    """Before that it is not forgotten; until it is, it counts (O-90)."""


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """What the ledger knows of a claimed request."""

    claim: RequestClaim
    response: StoredResponse | None


def decide_request(
    record: RequestRecord | None, claim: RequestClaim, state: ChannelState | None
) -> StoredResponse | None:
    """Return the stored answer to repeat, or None when the request is to be served.

    Raises:
        IdempotencyConflictError: The key was used for another request (422).
        RequestInFlightError: It is being served right now (409 with Retry-After).
        OutcomeUnknownError: Whoever served it died; it is not charged again (409).
    """
    if record is None:  # never used, or forgotten: what is kept counts, whatever a clock says
        return None
    if record.claim.request_digest != claim.request_digest:
        raise IdempotencyConflictError("This idempotency key was used for another request.")
    if record.response is not None:
        return record.response
    if state is not None and state.find_reservation(record.claim.reservation_id) is not None:
        raise RequestInFlightError("A request with this idempotency key is being served.")
    raise OutcomeUnknownError("The answer to this request was lost; it will not be charged again.")
