"""A paid request and its answer, keyed by channel, route, idempotency key (decision 7, AMB-11).

The ledger writes the row in the transaction that reserves the amount, and again in the one that
spends it. So no key can be charged twice or lost between the two (IDEM-05, F-28).
"""

import msgspec

from channel.errors import IdempotencyConflictError, OutcomeUnknownError, RequestInFlightError
from channel.state.channel_state import ChannelState

__all__ = ["RequestClaim", "RequestRecord", "StoredResponse", "decide_request"]


class StoredResponse(msgspec.Struct, frozen=True, gc=False):
    """An answer for repeats: status, headers and body as they were sent."""

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
    """Not deleted before then; while the row exists, it counts (O-90)."""


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """What the ledger stores about a claimed request."""

    claim: RequestClaim
    response: StoredResponse | None


def decide_request(
    record: RequestRecord | None, claim: RequestClaim, state: ChannelState | None
) -> StoredResponse | None:
    """Return the stored answer to repeat, or None when the request must be served.

    Raises:
        IdempotencyConflictError: The key was used for another request (422).
        RequestInFlightError: It is being served now (409 with Retry-After).
        OutcomeUnknownError: The process that served it died; it is not charged again (409).
    """
    if record is None:  # never used or deleted: the row decides, not a clock
        return None
    if record.claim.request_digest != claim.request_digest:
        raise IdempotencyConflictError("This idempotency key was used for another request.")
    if record.response is not None:
        return record.response
    if state is not None and state.find_reservation(record.claim.reservation_id) is not None:
        raise RequestInFlightError("A request with this idempotency key is being served.")
    raise OutcomeUnknownError("The answer to this request was lost; it will not be charged again.")
