"""Holds a payment for one request against the limits: `evm` charge and x402 `exact` (pure).

Both are one EIP-3009 transfer. They differ in where the offer stands, how it is bound to an
authorization, and which header carries the payment; the limits are the same.
"""

import re
from typing import Literal

import msgspec

from channel.client.policy.policy import HEADERS, Policy, TokenLimits, limits_for
from channel.errors import OfferRefusedError
from channel.types import Address
from channel.wire.challenge import Challenge
from channel.wire.charge import AUTHORIZATION, CHARGE, METHOD, parse_charge_request
from channel.wire.encoding import format_checksum_address, format_timestamp, parse_timestamp
from channel.wire.x402 import PAYMENT_SIGNATURE, Terms, parse_exact_request

__all__ = [
    "VALID_S",
    "ChargeOffer",
    "describe_terms",
    "read_challenge",
    "read_terms",
    "require_charge",
]

VALID_S = 300
"""The longest that an authorization is valid; an offer may ask for less."""
LEFT_S_MIN = 10
"""The shortest that leaves a server time to send it."""


class ChargeOffer(msgspec.Struct, frozen=True, kw_only=True):
    """An offer to pay for one request."""

    way: Literal["charge", "x402"]
    name: str
    """As a refusal names it."""
    amount: int
    """In base units."""
    token: Address
    recipient: Address
    chain_id: int
    is_payable: bool
    """Whether it takes an authorization, to one recipient."""
    expires: float | None = None
    """Until when the offer can be answered, in Unix seconds; 0 if it does not say, and then it
    cannot. None for x402, which names a span."""
    timeout_s: int = VALID_S
    """For how long the authorization should be valid."""
    challenge: Challenge | None = None
    """What a charge answers."""
    terms: Terms | None = None
    """What an x402 payment answers."""

    @property
    def header(self) -> str:
        """The header field for the payment (CHAL-12)."""
        if self.challenge is None:
            return PAYMENT_SIGNATURE
        return self.challenge.header or HEADERS[0]

    def valid_before(self, now: int) -> int:
        """Return when its authorization ends, in Unix seconds: as soon as offer and bound allow."""
        ends = now + min(self.timeout_s, VALID_S)
        return ends if self.expires is None else min(ends, int(self.expires))


def read_challenge(challenge: Challenge) -> ChargeOffer:
    """Return the offer behind a challenge for an `evm` charge.

    Raises:
        WireError: Its request or expiry cannot be parsed.
    """
    request = parse_charge_request(challenge.request)
    return ChargeOffer(
        way="charge",
        name=f"{METHOD}/{CHARGE}",
        amount=request.amount,
        token=request.currency,
        recipient=request.recipient,
        chain_id=request.chain_id,
        is_payable=AUTHORIZATION in request.credential_types and not request.has_splits,
        expires=0.0 if challenge.expires is None else parse_timestamp(challenge.expires),
        challenge=challenge,
    )


def read_terms(terms: Terms) -> ChargeOffer:
    """Return the offer behind a payment of x402.

    Raises:
        WireError: It is not an `exact` payment by EIP-3009 on an EVM chain, or malformed.
    """
    request = parse_exact_request(terms)
    return ChargeOffer(
        way="x402",
        name=describe_terms(terms),
        amount=request.amount,
        token=request.asset,
        recipient=request.pay_to,
        chain_id=request.chain_id,
        is_payable=True,
        timeout_s=request.timeout_s,
        terms=terms,
    )


def describe_terms(terms: Terms) -> str:
    """Return the name of an x402 payment, in one printable line."""
    return re.sub(r"[^ -~]", "?", f"x402 {terms.name}")[:64]


def require_charge(policy: Policy, offer: ChargeOffer, origin: str, now: float) -> TokenLimits:
    """Return the limits that allow this payment.

    Checked in this order: way, kind of credential, expiry, chain and token, amount, recipient.

    Raises:
        OfferRefusedError: It asks for something that is not allowed.
    """
    if offer.way not in policy.pays:
        raise OfferRefusedError(
            field="a payment by",
            asked=offer.way,
            allowed=" and ".join(policy.pays) or "none",
            origin=origin,
            setting=f"Policy.pays to a tuple with {offer.way!r}",
        )
    if not offer.is_payable:
        raise OfferRefusedError(
            field="a credential",
            asked="other than an authorization, or for several recipients",
            allowed="an EIP-3009 authorization to one",
            origin=origin,
        )
    _require_time(offer, origin, now)
    limits = limits_for(policy, offer.chain_id, offer.token, origin)
    _require_amount(limits, offer, origin)
    return limits


def _require_time(offer: ChargeOffer, origin: str, now: float) -> None:
    if offer.valid_before(int(now)) >= now + LEFT_S_MIN:
        return
    asked = f"a payment within {offer.timeout_s} s"
    if offer.expires is not None:
        asked = "no expiry" if not offer.expires else format_timestamp(offer.expires)
    raise OfferRefusedError(
        field="expires",
        asked=asked,
        allowed=f"{LEFT_S_MIN} s and more after {format_timestamp(now)} by this machine's clock",
        origin=origin,
    )


def _require_amount(limits: TokenLimits, offer: ChargeOffer, origin: str) -> None:
    most = limits.charge_max
    if most is None or not 0 < offer.amount <= most:
        raise OfferRefusedError(
            field="amount for a request",
            asked=offer.amount,
            allowed="none" if most is None else f"1 to {most}",
            origin=origin,
            setting="TokenLimits.charge_max",
        )
    if limits.recipients is not None and offer.recipient not in limits.recipients:
        raise OfferRefusedError(
            field="recipient",
            asked=format_checksum_address(offer.recipient),
            allowed=", ".join(sorted(map(format_checksum_address, limits.recipients))) or "none",
            origin=origin,
            setting="TokenLimits.recipients",
        )
