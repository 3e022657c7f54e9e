"""The `tariff` member of a session request (docs/reference/tariff.md).

It states every rate of a request. A reader that knows only the draft ignores it, and finds the main
rate in `amount` and `unitType`. The challenge id covers it as it covers the whole request.

    {"rates": [{"kind": "output_token", "amount": "400000", "per": 1000000},
               {"kind": "input_token", "amount": "100000", "per": 1000000}],
     "minimum": "1", "maximum": "50000"}

`amount`, `minimum` and `maximum` are base units in decimal digits. `per` and `above` are integers,
1 and 0 when absent. Unlike elsewhere, an unknown member is an error: it might change the price.
"""

from collections.abc import Collection, Mapping
from typing import Any

from channel.errors import ConfigError, WireError
from channel.limits import KIND_CHARS_MAX, RATES_MAX
from channel.tariff import Rate, Tariff, Usage, is_kind
from channel.wire.encoding import format_amount, parse_amount, parse_safe_integer
from channel.wire.fields import optional, parse_name, parse_object, required

__all__ = ["parse_tariff", "parse_usage", "tariff_object", "usage_object"]

_TARIFF = frozenset({"rates", "minimum", "maximum"})
_RATE = frozenset({"kind", "amount", "per", "above"})


def tariff_object(tariff: Tariff) -> dict[str, Any]:
    """Return a tariff with its wire names, without defaults.

    Raises:
        WireError: An amount outside `uint128`.
    """
    wire: dict[str, Any] = {"rates": [_rate_object(rate) for rate in tariff.rates]}
    if tariff.minimum:
        wire["minimum"] = format_amount(tariff.minimum)
    if tariff.maximum is not None:
        wire["maximum"] = format_amount(tariff.maximum)
    return wire


def _rate_object(rate: Rate) -> dict[str, Any]:
    wire: dict[str, Any] = {"kind": rate.kind, "amount": format_amount(rate.amount)}
    if rate.per != 1:
        wire["per"] = rate.per
    if rate.above:
        wire["above"] = rate.above
    return wire


def parse_tariff(value: object) -> Tariff:
    """Return the decoded tariff.

    Raises:
        WireError: A member is missing, malformed or unknown, or the rates contradict each other.
    """
    wire = parse_object(value)
    _require_known(wire, _TARIFF)
    rates = required(wire, "rates", _parse_rates)
    minimum = optional(wire, "minimum", parse_amount) or 0
    maximum = optional(wire, "maximum", parse_amount)
    try:
        return Tariff(rates, minimum, maximum)
    except ConfigError as error:
        raise WireError(str(error)) from error


def _parse_rates(value: object) -> tuple[Rate, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= RATES_MAX:
        raise WireError(f"not a list of 1 to {RATES_MAX} rates")
    return tuple(map(_parse_rate, value))


def _parse_rate(value: object) -> Rate:
    wire = parse_object(value)
    _require_known(wire, _RATE)
    kind = required(wire, "kind", parse_name)
    amount = required(wire, "amount", parse_amount)
    per = optional(wire, "per", parse_safe_integer)
    above = optional(wire, "above", parse_safe_integer)
    try:
        return Rate(kind, amount, 1 if per is None else per, above or 0)
    except ConfigError as error:
        raise WireError(str(error)) from error


def _require_known(wire: Mapping[str, Any], known: Collection[str]) -> None:
    for name in wire:
        if name not in known:
            raise WireError(f"{name[:KIND_CHARS_MAX]!r}: unknown, so the price is not understood")


def usage_object(usage: Usage) -> dict[str, int]:
    """Return a request's usage as a receipt states it; see `parse_usage`.

    Raises:
        WireError: It cannot be stated.
    """
    return parse_usage(dict(usage))


def parse_usage(value: object) -> dict[str, int]:
    """Return units by kind, at most `RATES_MAX` kinds, each an integer from 0 to 2**53 - 1.

    Raises:
        WireError: It is no such object; the message names the kind.
    """
    wire = parse_object(value)
    if len(wire) > RATES_MAX:
        raise WireError(f"more than {RATES_MAX} kinds")
    for kind in wire:
        if not is_kind(kind):
            raise WireError(f"{kind[:KIND_CHARS_MAX]!r}: not a kind")
        required(wire, kind, parse_safe_integer)
    return wire
