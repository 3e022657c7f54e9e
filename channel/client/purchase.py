"""One logical request on its way: what was offered, tried and held for it."""

from typing import TYPE_CHECKING

from channel.client.account import Scope
from channel.client.decisions import Tried
from channel.client.meter import Expectation, UnitMeter
from channel.client.policy import Offer, Policy, TokenLimits, step_value
from channel.client.presenting import Courier, Header
from channel.types import ZERO_ADDRESS, Address, ChannelKey, ChannelTerms

if TYPE_CHECKING:
    from channel.client.lanes import Hold

__all__ = ["Purchase", "build_scope"]

REQUEST_UNIT = "request"


class Purchase:
    """Lives from the request to the end of its answer; belongs to one task."""

    def __init__(
        self,
        *,
        method: str,
        origin: str,
        url: str,
        courier: Courier,
        expectation: Expectation,
        idempotency_key: str,
        is_key_ours: bool,
    ) -> None:
        self.method = method
        self.origin = origin
        self.url = url
        self.courier = courier
        self.expectation = expectation
        self.idempotency_key = idempotency_key
        self.is_key_ours = is_key_ours
        """False when the caller chose it: the answer may then be one of an earlier request."""
        self.tried = Tried()
        self.offer: Offer | None = None
        self.limits: TokenLimits | None = None
        self.hold: Hold | None = None
        self.header: Header | None = None
        self.challenge_ids: set[str] = set()
        self.spent_before: dict[ChannelKey, int] = {}
        """`spent` as it was known when this request first used the channel."""
        self.meter = UnitMeter()
        self.pending_units = 0
        """Units of a stream that arrived and are not in the purse yet."""
        self.has_end_receipt = False
        self.idle_needs = 0
        """How often in a row the stream asked for a voucher without delivering anything."""

    @property
    def route(self) -> tuple[str, str]:
        """What a challenge is remembered by: close to the server's own idea of a route."""
        return self.method, self.url.partition("?")[0]

    def costs(self, policy: Policy, offer: Offer) -> tuple[int, int]:
        """Return first cost and greatest cost of the answer, in base units.

        A stream is paid for as it goes. An answer in one piece that is priced by another unit
        than the request is paid for from a reservation of its greatest length, which the
        request's own body bounds where it names one.
        """
        price = offer.request.unit_price
        if self.expectation.is_stream or offer.request.unit_type == REQUEST_UNIT:
            return price, price
        bound = self.expectation.units_max
        units_max = policy.request_units_max if bound is None else bound
        units = 1 if bound is None else bound
        units_max = min(units_max, policy.request_units_max)
        return price * min(units, units_max), price * units_max

    def allowance(self, policy: Policy) -> int:
        """Return how far vouchers may be ahead of the count now: all in flight and one step."""
        if self.offer is None or self.hold is None:
            raise RuntimeError("a purchase without an offer allows nothing")
        return self.hold.lane.in_flight_max + step_value(policy, self.offer.request)


def build_scope(origin: str, offer: Offer, *, payer: Address, signer: Address) -> Scope:
    """Return which channels an offer may be paid from."""
    request = offer.request
    authorized = ZERO_ADDRESS if signer == payer else signer
    terms = ChannelTerms(
        payer=payer,
        payee=request.recipient,
        token=request.currency,
        authorized_signer=authorized,
    )
    return Scope(origin, request.chain_id, request.escrow, terms)
