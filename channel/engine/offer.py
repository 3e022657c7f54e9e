"""The offer of a route, and whether a challenge still matches it (CHAL-06, F-31)."""

import msgspec

from channel.errors import ChallengeNotFoundError
from channel.wire.challenge import SessionRequest

__all__ = ["Offer"]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """The price of one route. Two offers with the same scope are one offer with two prices."""

    request: SessionRequest
    http_method: str
    route: str
    """Mount and path template: one channel may pay for everything under it (CHAL-10)."""
    variant: str = ""
    """Other parts of the request that the price depends on, such as a model's name."""
    units: int = 1
    """The units of the main kind of a request at a fixed price. A challenge keeps them."""

    @property
    def scope(self) -> tuple[str, str, str]:
        """Return what a challenge of this offer is bound to besides its request."""
        return self.http_method, self.route, self.variant

    def require_pinned(self, asked: SessionRequest, *, is_sale: bool = True) -> None:
        """Check that a challenge of this offer asks for what the offer asks for now.

        The rates and `min_voucher_delta` may differ: the challenge is proven to be this server's,
        for this scope and unexpired, so the server promised its price (decision 6). Everything
        that decides where money goes and how it is proven must be unchanged, and the challenge
        must price every kind that is sold now; without `is_sale` nothing is.

        Raises:
            ChallengeNotFoundError: The route has changed since; a fresh challenge shows how.
        """
        now = self.request
        same = (
            asked.currency == now.currency
            and asked.recipient == now.recipient
            and asked.chain_id == now.chain_id
            and asked.escrow == now.escrow
            and (not is_sale or _prices_the_same(asked, now))
            and asked.fee_payer == now.fee_payer
            and asked.credential_types == now.credential_types
            and asked.permit2 == now.permit2
        )
        if not same:
            raise ChallengeNotFoundError("The offer of this route has changed.")


def _prices_the_same(asked: SessionRequest, now: SessionRequest) -> bool:
    """Whether a request priced as `asked` can be charged for everything that is sold `now`."""
    if asked.tariff is None and now.tariff is None:
        return asked.unit_type == now.unit_type
    then, today = asked.pricing, now.pricing
    return then.main.kind == today.main.kind and set(today.kinds) <= set(then.kinds)
