"""Holds a tariff against the agent's caps, and a fresh one against that of the session (pure).

The dearest step of each kind counts, so no number of units makes a request dearer than its caps. A
refusal names the kind (`tariff.input_token`) and says what to set, in money where the policy names
the token's unit.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from channel.errors import ConfigError, OfferRefusedError
from channel.tariff import Rate, Tariff, format_rate, is_kind, parse_rate
from channel.types import TokenUnit
from channel.wire.challenge import SessionRequest

__all__ = [
    "main_kind",
    "read_cap",
    "require_minimum",
    "require_no_rise",
    "require_rates",
    "worth",
]

BASE_UNITS: Final = TokenUnit("base units", 0)
"""For a token whose unit the policy does not name."""
REQUEST: Final = "request"


@lru_cache(maxsize=1024)
def read_cap(kind: str, price: int | str, unit: TokenUnit | None) -> Rate:
    """Return the greatest rate of a kind: base units for one unit, or a text in money.

    Raises:
        ConfigError: The text cannot be read, has steps, or its token's unit is not known.
    """
    name = kind if is_kind(kind) else "unit"
    if isinstance(price, int):
        return Rate(name, price)
    if unit is None:
        raise ConfigError(
            f"unit_price_max: {kind} is capped in money ({price!r}), and TokenLimits.unit is not "
            'set: give the token\'s unit, such as TokenUnit("USDC", 6), or a whole number of base '
            "units for one unit"
        )
    cap = parse_rate(name, price, unit)
    if cap.above:
        raise ConfigError(
            f"unit_price_max: expected one price for {kind}, found {price!r}: a cap is compared "
            "with the dearest step"
        )
    return cap


def require_rates(
    caps: Mapping[str, int | str],
    request: SessionRequest,
    *,
    unit: TokenUnit | None,
    origin: str,
) -> None:
    """Check every rate of an offer against its cap.

    Raises:
        OfferRefusedError: A kind has no cap, or a rate exceeds its cap.
    """
    if request.tariff is None:
        _require_plain(caps, request, unit, origin)
        return
    for kind in request.tariff.kinds:
        price = caps.get(kind)
        dearest = request.tariff.dearest(kind)
        if dearest is None:
            continue
        asked = format_rate(dearest, unit or BASE_UNITS)
        if price is None:
            raise OfferRefusedError(
                field=f"tariff.{kind}",
                asked=asked,
                allowed=f"{', '.join(sorted(caps)) or 'none'}: cap {kind} in unit_price_max to pay "
                "for it",
                origin=origin,
                setting="TokenLimits.unit_price_max",
            )
        cap = read_cap(kind, price, unit)
        if dearest.exceeds(cap):
            raise OfferRefusedError(
                field=f"tariff.{kind}",
                asked=asked,
                allowed=f"at most {format_rate(cap, unit or BASE_UNITS)} by unit_price_max",
                origin=origin,
                setting="TokenLimits.unit_price_max",
            )


def _require_plain(
    caps: Mapping[str, int | str], request: SessionRequest, unit: TokenUnit | None, origin: str
) -> None:
    price = caps.get(request.unit_type)
    if price is None:
        raise OfferRefusedError(
            field="unitType",
            asked=repr(request.unit_type),
            allowed=", ".join(sorted(caps)) or "none",
            origin=origin,
            setting="TokenLimits.unit_price_max",
        )
    cap = read_cap(request.unit_type, price, unit)
    rate = Rate(cap.kind, request.unit_price)
    if request.unit_price > 0 and not rate.exceeds(cap):
        return
    raise OfferRefusedError(
        field=f"amount per {request.unit_type or 'unit'}",
        asked=request.unit_price if unit is None else format_rate(rate, unit),
        allowed=f"1 to {cap.amount}" if unit is None else f"at most {format_rate(cap, unit)}",
        origin=origin,
        setting="TokenLimits.unit_price_max",
    )


def require_minimum(
    caps: Mapping[str, int | str],
    minimum: int,
    *,
    step: int,
    unit: TokenUnit | None,
    origin: str,
) -> None:
    """Check the least price of a request: against the cap of `request`, else against one step.

    Raises:
        OfferRefusedError: It is higher.
    """
    shown = unit or BASE_UNITS
    if REQUEST not in caps:
        if minimum <= step:
            return
        allowed = f"{shown.format(step)}, one step: cap request in unit_price_max to allow more"
    else:
        cap = read_cap(REQUEST, caps[REQUEST], unit)
        if not Rate(REQUEST, minimum).exceeds(cap):
            return
        allowed = f"at most {format_rate(cap, shown)} by unit_price_max of request"
    raise OfferRefusedError(
        field="tariff.minimum", asked=shown.format(minimum), allowed=allowed, origin=origin
    )


def require_no_rise(
    old: SessionRequest, new: SessionRequest, *, unit: TokenUnit | None, origin: str
) -> None:
    """Check that a fresh challenge of a running request makes nothing dearer (F-95).

    Raises:
        OfferRefusedError: A rate, the minimum or the maximum rises, or a kind is added.
    """
    if old.tariff is None and new.tariff is None:
        if new.unit_price > old.unit_price:
            raise _risen("amount", new.unit_price, old.unit_price, origin)
        return
    before, after, shown = old.pricing, new.pricing, unit or BASE_UNITS
    for kind in after.kinds:
        found = _find_rise(before, after, kind)
        if found is not None:
            earlier, later = found
            was = "not priced" if earlier is None else format_rate(earlier, shown)
            raise _risen(f"tariff.{kind}", format_rate(later, shown), was, origin)
    if after.minimum > before.minimum:
        raise _risen(
            "tariff.minimum", shown.format(after.minimum), shown.format(before.minimum), origin
        )
    top = before.maximum
    if top is not None and (after.maximum is None or after.maximum > top):
        asked = "none" if after.maximum is None else shown.format(after.maximum)
        raise _risen("tariff.maximum", asked, shown.format(top), origin)


def _risen(field: str, asked: object, before: object, origin: str) -> OfferRefusedError:
    return OfferRefusedError(
        field=field, asked=asked, allowed=f"{before}, as it was offered before", origin=origin
    )


def _find_rise(before: Tariff, after: Tariff, kind: str) -> tuple[Rate | None, Rate] | None:
    """Return the rates where a unit of this kind got dearer, or None where it did nowhere."""
    bounds = {
        rate.above for tariff in (before, after) for rate in tariff.rates if rate.kind == kind
    }
    for above in sorted(bounds):
        earlier, later = _rate_above(before, kind, above), _rate_above(after, kind, above)
        if later is not None and (earlier is None or later.exceeds(earlier)):
            return earlier, later
    return None


def _rate_above(tariff: Tariff, kind: str, units: int) -> Rate | None:
    """Return the rate of the unit after the first `units`."""
    steps = [rate for rate in tariff.rates if rate.kind == kind and rate.above <= units]
    return steps[-1] if steps else None


def main_kind(request: SessionRequest) -> str:
    """Return the name of the kind by which steps are counted: a plain price's own unit type."""
    return request.unit_type if request.tariff is None else request.tariff.main.kind


def worth(tariff: Tariff, units: int) -> int:
    """Return what `units` of the main kind cost at their dearest, at least one base unit."""
    rate = tariff.dearest(tariff.main.kind) or tariff.main
    return max(1, -(-units * rate.amount // rate.per)) if units else 0
