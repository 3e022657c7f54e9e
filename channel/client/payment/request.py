"""One logical request: what was tried for it, and the terms under which it is paid."""

from typing import TYPE_CHECKING

from channel.client.payment.channel_pool import ChannelSlot
from channel.client.payment.management import Header, ManagementClient
from channel.client.payment.tab import Hold, Tab
from channel.client.policy.decisions import RetryState
from channel.client.policy.meter import Expectation
from channel.client.policy.policy import Offer, Policy, TokenLimits
from channel.client.store.record import Scope
from channel.types import Address, ChannelKey

if TYPE_CHECKING:
    from channel.client.payment.voucher_with_deposit import VoucherWithDeposit

__all__ = ["PaidRequest", "Payment", "build_scope"]

REQUEST_UNIT = "request"


class Payment:
    """The terms under which a request is paid: offer, limits, channel, and its hold."""

    def __init__(self, *, offer: Offer, limits: TokenLimits, slot: ChannelSlot, hold: Hold) -> None:
        self.offer = offer
        self.limits = limits
        self.slot = slot
        """The slot of the request's channel."""
        self.hold = hold
        self.challenge_ids = {offer.challenge.id}
        """Every challenge that was answered; a receipt names one of them."""
        self.attached_deposit: VoucherWithDeposit | None = None
        """The voucher and deposit of the request itself, until the deposit is confirmed."""
        self._has_lock = False
        self.spent_before: dict[ChannelKey, int] = {}
        """`spent` as known when this request first used the channel."""

    @property
    def tab(self) -> Tab:
        """The counts of the request's channel."""
        return self.hold.tab

    @property
    def key(self) -> ChannelKey:
        """The channel."""
        return self.hold.key

    async def lock(self) -> None:
        """Prevent other requests of the channel from signing until `unlock`."""
        await self.slot.lock.acquire()
        self._has_lock = True

    def unlock(self) -> None:
        """Let other requests continue; a second call does nothing."""
        self.attached_deposit = None
        if self._has_lock:
            self._has_lock = False
            self.slot.lock.release()

    @property
    def price(self) -> int:
        """The price of one unit, in base units of the token."""
        return self.offer.request.unit_price

    @property
    def source(self) -> tuple[int, Address]:
        """Chain id and address of the payer, as a credential states them (CRED-02)."""
        return self.slot.scope.chain_id, self.slot.scope.payer

    def answer(self, offer: Offer) -> None:
        """Continue under a fresh offer."""
        self.offer = offer
        self.challenge_ids.add(offer.challenge.id)

    @property
    def step(self) -> int:
        """How far a stream's vouchers may exceed its count, in base units."""
        return self.hold.step

    def grow_step(self, value: int) -> None:
        """Use larger steps from now on; a smaller value changes nothing."""
        self.hold.step = max(self.hold.step, value)


class PaidRequest:
    """Lives from the request to the end of its answer; belongs to one task."""

    def __init__(
        self,
        *,
        method: str,
        origin: str,
        url: str,
        management: ManagementClient,
        expectation: Expectation,
        idempotency_key: str,
        is_key_ours: bool,
    ) -> None:
        self.method = method
        self.origin = origin
        self.url = url
        """Without the query, which may hold secrets: it is stored with the channel."""
        self.management = management
        self.expectation = expectation
        self.idempotency_key = idempotency_key
        self.is_key_ours = is_key_ours
        """False if the caller chose the key: the answer may then be that of an earlier request."""
        self.retry = RetryState()
        self.header: Header | None = None
        """The last credential that was sent."""
        self.payment: Payment | None = None

    def send_again(self) -> Header | None:
        """Return the last credential, to be sent once more."""
        if self.payment is not None:
            self.payment.tab.sent(self.payment.hold)
        return self.header

    @property
    def route(self) -> tuple[str, str]:
        """The key for remembering a challenge: close to the server's own idea of a route."""
        return self.method, self.url

    def costs(self, policy: Policy, offer: Offer) -> tuple[int, int]:
        """Return the first and the greatest cost of the answer, in base units.

        A stream is paid as it is delivered. Any other answer whose unit is not the request is paid
        from a reservation for its greatest length, which the request's own body may bound.
        """
        price = offer.request.unit_price
        if self.expectation.is_stream or offer.request.unit_type == REQUEST_UNIT:
            return price, price
        bound = self.expectation.units_max
        if bound is None:
            return price, price * policy.request_units_max
        units = min(bound, policy.request_units_max)
        return price * units, price * units


def build_scope(origin: str, offer: Offer, *, payer: Address) -> Scope:
    """Return the scope of the channels that may pay for an offer."""
    request = offer.request
    return Scope(
        origin, request.chain_id, request.escrow, payer, request.recipient, request.currency
    )
