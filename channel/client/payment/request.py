"""One request that is paid for: what was tried, under which terms, and what it has in flight."""

import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from channel.client.payment.management import Header, ManagementClient
from channel.client.policy.charges import ChargeOffer
from channel.client.policy.context import PaymentContext
from channel.client.policy.decisions import RetryState
from channel.client.policy.meter import Expectation
from channel.client.policy.policy import Amounts, Offer, TokenLimits
from channel.client.policy.usage import RequestCost
from channel.types import Address, ChannelKey

if TYPE_CHECKING:
    from channel.client.payment.channel_pool import ChannelSlot, Tab
    from channel.client.payment.vouchers import VoucherWithDeposit
    from channel.client.store.charge import ChargeRecord

__all__ = ["PaidRequest", "Purchase"]

ID_BYTES: Final = 8


class Purchase(NamedTuple):
    """One request as a charge pays for it."""

    digest: bytes
    """By which a repetition of the request is recognised."""
    is_key_given: bool
    """Whether the request itself named its `Idempotency-Key`."""
    may_charge: bool
    """False after a redirect from an address that got a charge for the same request."""


class PaidRequest:
    """Lives from the request to the end of its answer; belongs to one task."""

    offer: Offer
    """The offer that was answered last; this and what follows are set when it enters a slot."""
    limits: TokenLimits
    amounts: Amounts
    """What it costs under the offer."""
    usage: RequestCost
    """What is counted of it, by kind. A stream keeps the tariff with which it began."""
    source: tuple[int, Address]
    """Chain id and address of the payer, as a credential states them (CRED-02)."""
    slot: "ChannelSlot"
    tab: "Tab"
    """The counts of the channel that pays, set with `has_channel`. The slot may use another channel
    already: this one may end while the request continues."""

    def __init__(  # noqa: PLR0913 -- what a request is, once
        self,
        *,
        method: str,
        origin: str,
        url: str,
        management: ManagementClient,
        expectation: Expectation,
        idempotency_key: str,
        is_key_ours: bool,
        purchase: "Purchase | None" = None,
        purpose: object = None,
    ) -> None:
        self.id = secrets.token_hex(ID_BYTES)
        self.purpose = purpose
        """What the caller attached to it, for a guard of the store."""
        self.origin = origin
        self.url = url
        """Without the query, which may hold secrets: it is stored with the channel."""
        self.route = method, url, expectation.model
        """The key for remembering a challenge: close to the server's own idea of a route, which may
        sell several models under one address, at different prices."""
        self.management = management
        self.expectation = expectation
        self.idempotency_key = idempotency_key
        self.is_key_ours = is_key_ours
        """False if the caller chose the key: the answer may then be that of an earlier request."""
        self.purchase = purchase
        """What a charge would pay for; None if the body cannot be repeated."""
        self.charge: ChargeRecord | None = None
        """What pays for it instead of a channel, once that is signed."""
        self.retry = RetryState()
        self.header: Header | None = None
        """The last credential that was sent."""
        self.is_prepaid = False
        """Whether the first offer that it answered was remembered from an earlier request."""
        self.is_streaming = False
        """Whether its answer is a stream that has begun."""
        self.is_waiting = False
        """Whether it waits for the others of its channel, which then need not wait for it."""
        self.has_slot = False
        """Whether it is in a slot, which it leaves once."""
        self.has_lock = False
        """Whether it holds the slot's lock."""
        self.reset()

    def reset(self) -> None:
        """Forget everything about earlier slots and channels."""
        self.has_channel = False
        self.challenge_ids: set[str] = set()
        """Every challenge that was answered; a receipt names one of them."""
        self.spent_before: dict[ChannelKey, int] = {}
        """`spent` as known when this request first used the channel."""
        self.attached_deposit: VoucherWithDeposit | None = None
        """The voucher and deposit of the request itself, until the deposit is confirmed."""
        self.cost = self.ahead = self.cost_max = 0
        """What it has in flight, in base units: its first cost; what the limits may allow beside
        that for input; and the most it may cost. From the moment that what arrives is counted it is
        only the input of a stream that may still be stated."""
        self.step = 0
        """How far its vouchers may exceed the count, in base units."""
        self.is_sent = False
        """Whether a credential was sent for it and its answer is not counted yet."""
        self.was_shared = False
        """Whether another request was in flight on the channel since this one was sent."""

    def context(self, charge: ChargeOffer | None = None) -> PaymentContext:
        """Return what the store's guard decides by: this request under its offer, or a charge."""
        method, url, _ = self.route
        return PaymentContext(
            request_id=self.id,
            origin=self.origin,
            method=method,
            url=url,
            offer=charge or self.offer,
            cost_max=charge.amount if charge else self.amounts.cost_max,
            is_stream=self.expectation.is_stream,
            purpose=self.purpose,
        )

    def begin_counting(self) -> None:
        """Stop being in flight, except for input: what arrives is counted from now on."""
        self.cost = self.ahead = 0
        self.cost_max = self.usage.in_flight
        self.is_sent = False
