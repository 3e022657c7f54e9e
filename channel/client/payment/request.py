"""One logical request on its way: what was tried for it, and under which terms it is paid."""

from typing import TYPE_CHECKING

from channel.client.payment.channel_pool import ChannelSlot
from channel.client.payment.presenting import Header, ManagementClient
from channel.client.payment.tab import Hold, Tab
from channel.client.policy.decisions import Tried
from channel.client.policy.meter import Expectation
from channel.client.policy.policy import Offer, Policy, TokenLimits
from channel.client.store.record import Scope
from channel.types import Address, ChannelKey

if TYPE_CHECKING:
    from channel.client.payment.promise import Promise

__all__ = ["Purchase", "Ticket", "build_scope"]

REQUEST_UNIT = "request"


class Ticket:
    """What a request is paid under, once it is paid: offer, limits, channel, and its hold."""

    def __init__(self, *, offer: Offer, limits: TokenLimits, slot: ChannelSlot, hold: Hold) -> None:
        self.offer = offer
        self.limits = limits
        self.slot = slot
        """Where the request's channel is."""
        self.hold = hold
        self.challenge_ids = {offer.challenge.id}
        """Every challenge that was answered: a receipt names one of them."""
        self.ride: Promise | None = None
        """What was promised with a deposit, while that rides on the request itself."""
        self._has_lock = False
        self.spent_before: dict[ChannelKey, int] = {}
        """`spent` as it was known when this request first used the channel."""

    @property
    def tab(self) -> Tab:
        """The account of the request's channel."""
        return self.hold.tab

    @property
    def key(self) -> ChannelKey:
        """The channel."""
        return self.hold.key

    async def lock(self) -> None:
        """Let no other request of the channel sign until `unlock`."""
        await self.slot.lock.acquire()
        self._has_lock = True

    def unlock(self) -> None:
        """Let the others go on; a second time does nothing."""
        self.ride = None
        if self._has_lock:
            self._has_lock = False
            self.slot.lock.release()

    @property
    def price(self) -> int:
        """Of one unit, in base units of the token."""
        return self.offer.request.unit_price

    @property
    def source(self) -> tuple[int, Address]:
        """Chain id and address of the payer, as a credential states them (CRED-02)."""
        return self.slot.scope.chain_id, self.slot.scope.payer

    def answer(self, offer: Offer) -> None:
        """Go on under a fresh offer."""
        self.offer = offer
        self.challenge_ids.add(offer.challenge.id)

    @property
    def step(self) -> int:
        """How far a stream's vouchers may run ahead of its count, in base units."""
        return self.hold.step

    def grow_step(self, value: int) -> None:
        """Take larger steps from now on, if they are larger."""
        self.hold.step = max(self.hold.step, value)


class Purchase:
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
        """Without a query, which may hold secrets: it is stored with the channel."""
        self.management = management
        self.expectation = expectation
        self.idempotency_key = idempotency_key
        self.is_key_ours = is_key_ours
        """False when the caller chose it: the answer may then be one of an earlier request."""
        self.tried = Tried()
        self.header: Header | None = None
        """The credential that was sent last."""
        self.ticket: Ticket | None = None

    def send_again(self) -> Header | None:
        """Return the credential that was sent last, which goes out once more."""
        if self.ticket is not None:
            self.ticket.tab.sent(self.ticket.hold)
        return self.header

    @property
    def route(self) -> tuple[str, str]:
        """What a challenge is remembered by: close to the server's own idea of a route."""
        return self.method, self.url

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
        if bound is None:
            return price, price * policy.request_units_max
        units = min(bound, policy.request_units_max)
        return price * units, price * units


def build_scope(origin: str, offer: Offer, *, payer: Address) -> Scope:
    """Return which channels an offer may be paid from."""
    request = offer.request
    return Scope(
        origin, request.chain_id, request.escrow, payer, request.recipient, request.currency
    )
