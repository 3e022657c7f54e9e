"""Chooses among the offers of a 402, and names every one where none can be taken (pure).

A 402 may offer sessions and charges as challenges, in one header or many, and x402 payments in a
header of its own. Each is held against the policy. Of those that are allowed a session pays streams
and repeated use, and a charge or x402 payment a single request.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from channel.client.policy.charges import (
    ChargeOffer,
    describe_terms,
    read_challenge,
    read_terms,
    require_charge,
)
from channel.client.policy.policy import Offer, Policy, TokenLimits, require_offer
from channel.errors import OfferRefusedError, RefusedOffer, WireError
from channel.methods.registry import DEFAULT
from channel.wire.challenge import INTENT, Challenge, parse_challenges
from channel.wire.charge import CHARGE, METHOD
from channel.wire.encoding import decode_base64url, parse_amount, parse_json_object
from channel.wire.fields import parse_object, parse_text
from channel.wire.x402 import PAYMENT_REQUIRED, Terms, parse_payment_required

__all__ = ["REPEATED", "SINGLE", "Chosen", "accept_payment", "choose_offer", "choose_payment"]

Chosen: TypeAlias = tuple[Offer | ChargeOffer, TokenLimits]
_Way: TypeAlias = Literal["session", "charge", "x402"]

SINGLE: Final[Sequence[_Way]] = ("charge", "x402", "session")
"""The order for one request, which needs no deposit; a charge answers one challenge."""
REPEATED: Final[Sequence[_Way]] = ("session", "charge", "x402")
"""The order for streams and repeated use."""

NAME_CHARS_MAX: Final = 64
"""How much of a name that a server chose a refusal quotes."""
_ALIEN: Final = "method/intent"
"""The field in the refusal of another protocol's offer, which no policy can allow."""
_DISTANCES: Final = {_ALIEN: 2, "a payment by": 1}
"""By the field of a refusal: nothing allows another protocol, one setting another way."""
_PAYS: Final = (
    f"this one pays {DEFAULT.name}/{INTENT}, {METHOD}/{CHARGE} and x402 exact by EIP-3009"
)


class _Stated(NamedTuple):
    """One offer of a 402."""

    name: str
    terms: Mapping[str, Any]
    """What it states, as `RefusedOffer` names it; what cannot be read is left out."""
    read: Callable[[], Chosen]
    """Returns it with the limits that allow it, or raises why not."""


class _Refusal(NamedTuple):
    """An offer that cannot be taken."""

    name: str
    terms: Mapping[str, Any]
    error: OfferRefusedError


def accept_payment(policy: Policy) -> str:
    """Return the `Accept-Payment` of a policy, best first (CORE-11)."""
    intents = [{"session": INTENT, "charge": CHARGE}[way] for way in policy.pays if way != "x402"]
    return ", ".join(
        f"{METHOD}/{intent}" + (f";q=0.{9 - place}" if place else "")
        for place, intent in enumerate(intents)
    )


def choose_offer(
    policy: Policy, header_lines: Iterable[str], origin: str, now: float, *, x402: str | None = None
) -> tuple[Offer, TokenLimits] | None:
    """Return the first session of a 402 that the policy allows; as `choose_payment`."""
    chosen = choose_payment(policy, header_lines, origin, now, x402=x402, order=("session",))
    if chosen is None or isinstance(chosen[0], ChargeOffer):
        return None
    return chosen[0], chosen[1]


def choose_payment(
    policy: Policy,
    header_lines: Iterable[str],
    origin: str,
    now: float,
    *,
    x402: str | None = None,
    order: Sequence[_Way] = REPEATED,
) -> Chosen | None:
    """Return the best offer of a 402 that the policy allows, or None if nothing is offered.

    Args:
        policy: The limits.
        header_lines: The `WWW-Authenticate` lines.
        origin: The server's origin.
        now: Unix seconds.
        x402: The `PAYMENT-REQUIRED` header, if there is one.
        order: The ways of paying that are of use, best first.

    Raises:
        OfferRefusedError: Something is offered and nothing is allowed. One session is explained by
            itself; anything else by a list of the offers, with what each would take.
    """
    allowed: list[Chosen] = []
    refused: list[_Refusal] = []
    read = partial(_challenge_of, policy, origin, now)
    stated = [read(challenge) for challenge in _read_challenges(header_lines, origin)]
    found = _read_terms(x402, origin)
    if not isinstance(found, OfferRefusedError):
        stated += [_terms_of(policy, origin, now, terms) for terms in found]
    for one in stated:
        try:
            chosen = one.read()
            _require_use(chosen[0], order, origin)
            allowed.append(chosen)
        except WireError as error:
            refused.append(_Refusal(one.name, one.terms, _unreadable("request", error, origin)))
        except OfferRefusedError as error:
            refused.append(_Refusal(one.name, one.terms, error))
    if allowed:
        return min(allowed, key=lambda chosen: order.index(_way_of(chosen[0])))
    if refused:
        unreadable = [_Refusal("x402", {}, found)] if isinstance(found, OfferRefusedError) else []
        raise _explain([*refused, *unreadable], origin)
    return None


def _way_of(offer: Offer | ChargeOffer) -> _Way:
    return offer.way if isinstance(offer, ChargeOffer) else "session"


def _require_use(offer: Offer | ChargeOffer, order: Sequence[_Way], origin: str) -> None:
    way = _way_of(offer)
    if way not in order:
        allowed = f"{' or '.join(order)} where the use repeats"
        raise OfferRefusedError(field="a payment by", asked=way, allowed=allowed, origin=origin)


def _challenge_of(policy: Policy, origin: str, now: float, challenge: Challenge) -> _Stated:
    def read() -> Chosen:
        if (challenge.method, challenge.intent) == (METHOD, CHARGE):
            charge = read_challenge(challenge)
            return charge, require_charge(policy, charge, origin, now)
        offer = Offer.from_challenge(challenge)
        return offer, require_offer(policy, offer, origin, now)

    name = f"{challenge.method}/{challenge.intent}"[:NAME_CHARS_MAX]
    return _Stated(name, _describe_request(challenge), read)


def _terms_of(policy: Policy, origin: str, now: float, terms: Terms) -> _Stated:
    def read() -> Chosen:
        try:
            offer = read_terms(terms)
        except WireError as error:
            raise OfferRefusedError(
                field=_ALIEN, asked=describe_terms(terms), allowed=str(error), origin=origin
            ) from error
        return offer, require_charge(policy, offer, origin, now)

    accepted = terms.accepted
    stated = _describe(accepted, token="asset", recipient="payTo")  # noqa: S106 -- a field's name
    return _Stated(describe_terms(terms), stated, read)


def _describe_request(challenge: Challenge) -> dict[str, Any]:
    """Return what a challenge of any method states of its price, as far as it can be read."""
    try:
        wire = parse_json_object(decode_base64url(challenge.request))
        details = parse_object(wire.get("methodDetails", {}))
    except WireError:
        return {}
    stated = _describe(wire, token="currency", recipient="recipient")  # noqa: S106 -- as above
    chain_id = details.get("chainId")
    return stated | ({"chain_id": chain_id} if type(chain_id) is int else {})


def _describe(wire: Mapping[str, Any], *, token: str, recipient: str) -> dict[str, Any]:
    stated: dict[str, Any] = {}
    fields = {"amount": ("amount", parse_amount), "token": (token, _parse_printable)}
    fields["recipient"] = (recipient, _parse_printable)
    for name, (field, parse) in fields.items():
        try:
            stated[name] = parse(wire.get(field))
        except WireError:
            continue
    return stated


def _parse_printable(value: object) -> str:
    text = parse_text(value)
    if not (text.isascii() and text.isprintable()):
        raise WireError("not printable")
    return text[:NAME_CHARS_MAX]


def _read_challenges(header_lines: Iterable[str], origin: str) -> tuple[Challenge, ...]:
    try:
        return parse_challenges(header_lines)
    except WireError as error:
        raise _unreadable("WWW-Authenticate", error, origin) from error


def _read_terms(header: str | None, origin: str) -> tuple[Terms, ...] | OfferRefusedError:
    """Return the x402 payments of a 402, or why its header cannot be read."""
    if header is None:
        return ()
    try:
        return parse_payment_required(header)
    except WireError as error:
        return _unreadable(PAYMENT_REQUIRED, error, origin)


def _unreadable(field: str, error: WireError, origin: str) -> OfferRefusedError:
    return OfferRefusedError(
        field=field, asked=f"something unreadable ({error})", allowed="challenges", origin=origin
    )


def _explain(refused: Sequence[_Refusal], origin: str) -> OfferRefusedError:
    """Return the refusal of a 402: of the offer that came closest, and of each."""
    name, _, first = min(refused, key=lambda refusal: _DISTANCES.get(refusal.error.field, 0))
    if len(refused) == 1 and first.field != _ALIEN and name == f"{DEFAULT.name}/{INTENT}":
        return first
    return OfferRefusedError(
        field=first.field,
        asked=first.asked,
        allowed=first.allowed,
        origin=origin,
        setting=first.setting,
        offers=[
            RefusedOffer(method=name, **terms, needs=_needs(error), setting=error.setting)
            for name, terms, error in refused
        ],
    )


def _needs(error: OfferRefusedError) -> str:
    if error.field == _ALIEN:
        why = "" if error.allowed == f"{DEFAULT.name}/{INTENT}" else f" ({error.allowed})"
        return f"takes a client that pays so{why}; {_PAYS}"
    return f"asks for {error.field} {error.asked}; the policy allows {error.allowed}"
