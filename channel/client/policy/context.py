"""What money is committed for: a guard decides by it, and the books attribute to it (pure)."""

import msgspec

from channel.client.policy.charges import ChargeOffer
from channel.client.policy.policy import Offer

__all__ = ["PURPOSE", "PaymentContext"]

PURPOSE = "mpp_session.purpose"
"""The extension of an httpx request that holds `PaymentContext.purpose`."""


class PaymentContext(msgspec.Struct, frozen=True, kw_only=True):
    """One request under the offer that it answers."""

    request_id: str
    """Different for each request, and equal for all that is committed for it."""
    origin: str
    method: str
    url: str
    """Without the query, which may hold secrets."""
    offer: Offer | ChargeOffer
    cost_max: int
    """The most that the request may cost before any of it is counted, in base units."""
    is_stream: bool
    purpose: object = None
    """What the caller attached to the request."""
