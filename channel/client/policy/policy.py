"""The agent's limits, and the functions that check an offer against them (pure).

A server can only ask. The limits are set once, when the client is built, and nothing that a server
sends can raise them (CLIENT-01, CLIENT-06, F-91 to F-96). A refusal names the field, what was asked
and what is allowed. Prices are compared in `prices`.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from channel.chain import PayerChain
from channel.client.policy.budget import Budget, LockedBudget
from channel.client.policy.funding_method import usable_types
from channel.client.policy.prices import (
    main_kind,
    read_cap,
    require_minimum,
    require_rates,
    worth,
)
from channel.client.policy.usage import RequestCost
from channel.errors import BudgetExceededError, OfferRefusedError, WireError
from channel.methods.registry import DEFAULT
from channel.types import Address, TokenUnit
from channel.wire.challenge import (
    INTENT,
    PAYMENT_AUTHORIZATION,
    Challenge,
    SessionRequest,
)
from channel.wire.encoding import format_checksum_address, format_timestamp, parse_timestamp

__all__ = [
    "Amounts",
    "Offer",
    "Policy",
    "TokenLimits",
    "amounts_of",
    "budget_of",
    "deposit_size",
    "limits_for",
    "locked_budget_of",
    "require_chain",
    "require_deposit",
    "require_offer",
    "step_units",
    "step_value",
    "top_up_size",
]

HEADERS = ("Authorization", PAYMENT_AUTHORIZATION)
EXPIRY_MARGIN_S = 2
LOCKED_ORIGINS = 4

_NOBODY = Address(bytes(20))
_NO_REQUEST = SessionRequest(
    unit_price=0,
    currency=_NOBODY,
    recipient=_NOBODY,
    chain_id=0,
    escrow=_NOBODY,
    unit_type="",
    credential_types=(),
)


class TokenLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits for one token on one chain. Amounts in base units."""

    chain_id: int
    token: Address
    unit_price_max: Mapping[str, int | str]
    """Greatest price of each kind, its dearest step included: base units for one unit, or money
    such as `"0.60 usdc / 1M"`, which needs `unit`. An offer with an unlisted kind is refused. The
    cap of `request` is also that of a tariff's minimum; without it that is one voucher step."""
    deposit_max: int
    """Greatest deposit of one channel: a cap, never a default (F-92)."""
    budget: int
    """Most that may be signed for one origin within `Policy.budget_window_s` (F-96)."""
    budget_total: int | None = None
    """The same for all origins together: a server with many host names shares one limit. None: no
    bound."""
    locked_max: int | None = None
    """Most that may lie in deposits for one origin at the same time; `budget` if None. A deposit is
    not spent, but if the server vanishes, the payer waits for the grace period and pays the gas."""
    locked_total_max: int | None = None
    """The same for all origins together; `budget_total` if None, and without that four times
    the limit of one origin."""
    cumulative_max: int | None = None
    """Greatest running total of one channel; with None the deposit is the only cap."""
    escrows: frozenset[Address] | None = None
    """Escrows that may hold a deposit; with None only `PayerChain.require_escrow` decides, which
    is asked in either case (F-91)."""
    recipients: frozenset[Address] | None = None
    """Payees that may be paid; None allows every payee."""
    charge_max: int | None = None
    """The most that one payment for one request may be, by a charge or x402; None: no such payment.
    `Policy.pays` must name the way, too. Such payments count towards `budget`."""
    unit: TokenUnit | None = None
    """Symbol and decimals of the token, for prices in money and for the words of a refusal."""

    def __post_init__(self) -> None:
        """Read every cap once.

        Raises:
            ConfigError: A cap cannot be read; the message names its kind.
        """
        for kind, price in self.unit_price_max.items():
            read_cap(kind, price, self.unit)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an agent may agree to."""

    limits: tuple[TokenLimits, ...]
    limits_of: Callable[[str], tuple[TokenLimits, ...]] | None = None
    """Returns the limits for an origin, where they differ; None: `limits` for every origin. It must
    be pure, and names no chain that `limits` does not name."""
    pays: tuple[Literal["session", "charge", "x402"], ...] = ("session",)
    """The ways to pay: a session, a charge for one request, and x402 (`exact`) for one request.
    Where a server offers several, a session pays streams and all but a server's first request."""
    budget_window_s: int = 24 * 3600
    expected_units: int = 1000
    """How many units of the main kind a channel should last for; determines the deposit."""
    voucher_steps: Mapping[str, int] = msgspec.field(default_factory=lambda: {"request": 1})
    """What is signed in advance of what was received: the cost of so many units of the offer's
    main kind, by that kind. At least one base unit."""
    voucher_step: int = 64
    """The same for every kind that `voucher_steps` does not name. It is the most that a server can
    take without delivering; a step below the server's own makes streams pause more."""
    voucher_step_max: int = 4096
    """The most units to which a fast stream's step may grow: up to half a second of it, never more
    than it has delivered, and not where the step is 1."""
    request_units_max: int = 4096
    """Most units of a kind that one answer which is not a stream may cost. Of input it is the
    bytes of the prompt."""
    lost_units_max: int = 256
    """Units of a channel that may be lost to broken connections before it is given up, beside the
    input of the request that is lost."""
    channels_per_origin_max: int = 4
    """Channels with a deposit at the same time, for one origin and token."""
    parallel_streams_max: int = 1
    """Concurrent streams to one payee; each needs its own channel (ACC-06)."""
    allow_loopback_http: bool = False
    """For development: pay over plain http to this machine itself (CORE-13)."""


class Offer(msgspec.Struct, frozen=True):
    """A challenge and its decoded request."""

    challenge: Challenge
    request: SessionRequest

    def is_fresh(self, now: float) -> bool:
        """Return whether the challenge can still be answered; one without an expiry cannot."""
        if self.challenge.expires is None:
            return False
        try:
            return now + EXPIRY_MARGIN_S < parse_timestamp(self.challenge.expires)
        except WireError:
            return False

    @property
    def header(self) -> str:
        """The header field for the credential (CHAL-12)."""
        return self.challenge.header or HEADERS[0]

    @classmethod
    def from_challenge(cls, challenge: Challenge) -> "Offer":
        """Return the offer behind a challenge; for another method, only enough to refuse it.

        Raises:
            WireError: It is for this method, and its request cannot be parsed.
        """
        if (challenge.method, challenge.intent) != (DEFAULT.name, INTENT):
            return cls(challenge, _NO_REQUEST)
        return cls(challenge, DEFAULT.parse_request(challenge.request))


class Amounts(msgspec.Struct, frozen=True, gc=False):
    """What one request costs under an offer, in base units."""

    unit: int
    """The price of one unit of the main kind, at least one."""
    cost: int
    """The first cost, which is signed before the request is served."""
    ahead: int
    """The same with all that the prompt may cost, signed where the limits allow it."""
    cost_max: int
    """The most it may cost before any of it is counted."""
    step: int
    """How far a voucher may exceed the agent's count (F-94, F-95)."""
    step_max: int
    """How far the step of a fast stream may grow."""
    lost_max: int
    """What the channel may lose to broken connections."""


def require_offer(policy: Policy, offer: Offer, origin: str, now: float) -> TokenLimits:
    """Return the limits that allow this offer; its description is never read (CLIENT-01).

    Checked in this order: method and intent, expiry, header field, kind of funding, chain and
    token, escrow, recipient, unit type and price, minimum increase of a voucher.

    Raises:
        OfferRefusedError: It asks for something that is not allowed.
    """
    challenge, request = offer.challenge, offer.request
    if (challenge.method, challenge.intent) != (DEFAULT.name, INTENT):
        asked = f"{challenge.method}/{challenge.intent}"
        raise OfferRefusedError(
            field="method/intent", asked=asked, allowed=f"{DEFAULT.name}/{INTENT}", origin=origin
        )
    if "session" not in policy.pays:
        raise OfferRefusedError(
            field="a payment by",
            asked="session",
            allowed=" and ".join(policy.pays) or "none",
            origin=origin,
            setting="Policy.pays to a tuple with 'session'",
        )
    if not offer.is_fresh(now):
        raise OfferRefusedError(
            field="expires",
            asked=challenge.expires,
            allowed=f"a time to come, and it is {format_timestamp(now)} by this machine's clock",
            origin=origin,
        )
    if challenge.header not in (None, PAYMENT_AUTHORIZATION):  # CHAL-12: spelt exactly so
        raise OfferRefusedError(
            field="header", asked=offer.header, allowed=" or ".join(HEADERS), origin=origin
        )
    if not usable_types(request):
        raise OfferRefusedError(
            field="credentialTypes",
            asked=f"{', '.join(request.credential_types)}, and pays no gas",
            allowed="hash, or authorization or permit2 at the server's cost",
            origin=origin,
        )
    limits = limits_for(policy, request.chain_id, request.currency, origin)
    _require_parties(limits, request, origin)
    _require_price(policy, limits, request, origin)
    return limits


def require_chain(chains: Mapping[int, PayerChain], chain_id: int, origin: str) -> PayerChain:
    """Return the chain with this id, or raise `OfferRefusedError` if none is configured."""
    chain = chains.get(chain_id)
    if chain is None:
        allowed = ", ".join(map(str, chains)) or "none"
        raise OfferRefusedError(
            field="chainId",
            asked=chain_id,
            allowed=allowed,
            origin=origin,
            setting="the client's chains",
        )
    return chain


def limits_for(policy: Policy, chain_id: int, token: Address, origin: str) -> TokenLimits:
    """Return the limits for a token on a chain, or raise `OfferRefusedError` if there are none."""
    known = policy.limits if policy.limits_of is None else policy.limits_of(origin)
    for limits in known:
        if (limits.chain_id, limits.token) == (chain_id, token):
            return limits
    raise OfferRefusedError(
        field="chainId and currency",
        asked=_spelt(chain_id, token),
        allowed=", ".join(_spelt(limits.chain_id, limits.token) for limits in known) or "none",
        origin=origin,
        setting="Policy.limits",
    )


def _spelt(chain_id: int, token: Address) -> str:
    return f"{chain_id}:{format_checksum_address(token)}"


def _require_parties(limits: TokenLimits, request: SessionRequest, origin: str) -> None:
    for field, asked, allowed, setting in (
        ("escrowContract", request.escrow, limits.escrows, "TokenLimits.escrows"),
        ("recipient", request.recipient, limits.recipients, "TokenLimits.recipients"),
    ):
        if allowed is not None and asked not in allowed:
            raise OfferRefusedError(
                field=field,
                asked=format_checksum_address(asked),
                allowed=", ".join(sorted(map(format_checksum_address, allowed))) or "none",
                origin=origin,
                setting=setting,
            )


def _require_price(
    policy: Policy, limits: TokenLimits, request: SessionRequest, origin: str
) -> None:
    caps, unit = limits.unit_price_max, limits.unit
    require_rates(caps, request, unit=unit, origin=origin)
    step = step_value(policy, request)
    require_minimum(caps, request.pricing.minimum, step=step, unit=unit, origin=origin)
    delta_max = worth(request.pricing, 1) + step
    if request.min_voucher_delta > delta_max:
        raise OfferRefusedError(
            field="minVoucherDelta",
            asked=request.min_voucher_delta,
            allowed=f"at most {delta_max}, by the voucher step",
            origin=origin,
            setting="Policy.voucher_steps",
        )


def step_units(policy: Policy, request: SessionRequest) -> int:
    """Return how many units of the main kind are paid ahead of the agent's count."""
    return policy.voucher_steps.get(main_kind(request), policy.voucher_step)


def step_value(policy: Policy, request: SessionRequest) -> int:
    """Return how far a voucher may exceed the agent's count, in base units (F-94, F-95)."""
    return worth(request.pricing, step_units(policy, request))


def amounts_of(policy: Policy, request: SessionRequest, cost: RequestCost) -> Amounts:
    """Return what a request costs under an offer.

    A stream is paid as it is delivered. Any other answer is paid from a reservation for its
    greatest length, which the request's own body may bound.
    """
    tariff, step = request.pricing, step_value(policy, request)
    grows = step_units(policy, request) > 1
    return Amounts(
        unit=worth(tariff, 1),
        cost=cost.first,
        ahead=cost.first_known,
        cost_max=cost.greatest,
        step=step,
        step_max=max(step, worth(tariff, policy.voucher_step_max)) if grows else step,
        lost_max=worth(tariff, policy.lost_units_max) + cost.first_known - cost.first,
    )


def budget_of(policy: Policy, limits: TokenLimits) -> Budget:
    """Return the budget for signing a token, as the store applies it."""
    return Budget(
        origin_max=limits.budget,
        total_max=limits.budget_total,
        window_s=policy.budget_window_s,
    )


def locked_budget_of(limits: TokenLimits) -> LockedBudget:
    """Return the budget for deposits of a token, as the store applies it."""
    origin_max = limits.budget if limits.locked_max is None else limits.locked_max
    total_max = limits.locked_total_max
    if total_max is None:
        total_max = limits.budget_total
    if total_max is None:
        total_max = LOCKED_ORIGINS * origin_max
    return LockedBudget(origin_max=origin_max, total_max=total_max)


def deposit_size(
    policy: Policy, limits: TokenLimits, request: SessionRequest, needed: int, *, ahead: int = 0
) -> int:
    """Return the deposit for a new channel: the least of suggestion, expectation and cap (F-92).

    Never below `needed`, which the caller has already checked against the cap. The expectation is
    of the main kind, so `ahead`, what the first request may cost for input, comes on top.
    """
    expected = worth(request.pricing, policy.expected_units)
    suggested = expected if request.suggested_deposit is None else request.suggested_deposit
    return max(needed, min(min(suggested, expected) + ahead, limits.deposit_max))


def top_up_size(
    policy: Policy, limits: TokenLimits, request: SessionRequest, *, deposit: int, needed: int
) -> int:
    """Return how much to add to `deposit`, so that a voucher for `needed` and some more fit."""
    more = deposit_size(policy, limits, request, 0)
    return max(needed - deposit, min(more, limits.deposit_max - deposit))


def require_deposit(limits: TokenLimits, needed: int, origin: str) -> None:
    """Check that a channel may grow until a voucher for `needed` is covered.

    Raises:
        BudgetExceededError: `needed` exceeds `deposit_max` or `cumulative_max`.
    """
    if limits.cumulative_max is not None and needed > limits.cumulative_max:
        raise BudgetExceededError(
            limit="cumulative_max", asked=needed, allowed=limits.cumulative_max, origin=origin
        )
    if needed > limits.deposit_max:
        raise BudgetExceededError(
            limit="deposit_max", asked=needed, allowed=limits.deposit_max, origin=origin
        )
