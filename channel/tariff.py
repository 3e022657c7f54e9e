"""Tariffs: what a request costs, as several exact rates (pure; decision 8).

A rate is a fraction of a base unit for one unit of a kind, because a token of a language model
often costs less than the smallest amount of a token. A request's usage is added up and priced as a
whole, and the result is rounded up once. Only integers are used: both sides compute the same
number, and no rounding can be repeated to a payer's or a seller's harm.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from math import gcd, lcm
from typing import Final

import msgspec

from channel.errors import ConfigError
from channel.limits import (
    AMOUNT_MAX,
    KIND_CHARS_MAX,
    PRICE_TEXT_CHARS_MAX,
    RATE_PER_MAX,
    RATES_MAX,
    USAGE_MAX,
)
from channel.types import TokenUnit

__all__ = [
    "KINDS",
    "Rate",
    "RunningCost",
    "Tariff",
    "Usage",
    "format_rate",
    "is_kind",
    "parse_money",
    "parse_rate",
    "plain_tariff",
]

Usage = Mapping[str, int]
"""Units by kind: `{"input_token": 200, "output_token": 35}`."""

KINDS: Final = (
    "request",
    "input_token",
    "cached_input_token",
    "cache_write_token",
    "output_token",
    "reasoning_token",
    "audio_token",
    "image",
    "second",
    "byte",
    "row",
)
"""The kinds with a fixed meaning (docs/reference/tariff.md). A seller may use names of its own."""

_KIND: Final = re.compile("[a-z][a-z0-9_]*")
_COUNTS: Final = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_MONEY: Final = re.compile(r"(\d+)(?:\.(\d+))?(?: ?([A-Za-z][A-Za-z0-9.+-]*))?")
_RATE: Final = re.compile(r"([^/]+?)(?: ?/ ?(\d+) ?([KMB]?))?(?: above (\d+) ?([KMB]?))?")


def is_kind(name: str) -> bool:
    """Whether a kind can have this name: lower-case letters, digits and _, a letter first."""
    return len(name) <= KIND_CHARS_MAX and _KIND.fullmatch(name) is not None


class Rate(msgspec.Struct, frozen=True, gc=False):
    """`amount` base units for `per` units of `kind`, from the unit after the first `above`."""

    kind: str
    amount: int
    per: int = 1
    above: int = 0
    """With several rates of one kind, each prices only the units above its own bound."""

    def __post_init__(self) -> None:
        """Refuse a rate that cannot be stated on the wire.

        Raises:
            ConfigError: The kind is no name, or a number is out of range.
        """
        if not is_kind(self.kind):
            raise ConfigError(
                f"expected a kind of at most {KIND_CHARS_MAX} lower-case letters, digits and _, "
                f"such as output_token, found {self.kind[:KIND_CHARS_MAX]!r}"
            )
        if not 0 <= self.amount <= AMOUNT_MAX:
            raise ConfigError(f"{self.kind}: expected an amount of 0 to {AMOUNT_MAX} base units")
        if not 1 <= self.per <= RATE_PER_MAX:
            raise ConfigError(f"{self.kind}: expected a rate for 1 to {RATE_PER_MAX} units")
        if not 0 <= self.above <= USAGE_MAX:
            raise ConfigError(f"{self.kind}: expected a step above 0 to {USAGE_MAX} units")

    def exceeds(self, other: "Rate") -> bool:
        """Whether a unit costs more under this rate than under the other; exact."""
        return self.amount * other.per > other.amount * self.per


class Tariff(msgspec.Struct, frozen=True, gc=False):
    """The price of a request: rates by kind, and bounds of the whole. Amounts in base units."""

    rates: tuple[Rate, ...]
    """The first is the main one: a reader that knows one rate only is shown this one."""
    minimum: int = 0
    """The least that a request costs which used anything."""
    maximum: int | None = None
    """The most that a request costs."""

    def __post_init__(self) -> None:
        """Refuse a tariff that prices nothing or contradicts itself.

        Raises:
            ConfigError: It says what is wrong, and with which kind.
        """
        if not 1 <= len(self.rates) <= RATES_MAX:
            raise ConfigError(f"expected 1 to {RATES_MAX} rates, found {len(self.rates)}")
        if self.rates[0].amount == 0:
            raise ConfigError(
                f"{self.rates[0].kind}: the first rate is the main one and must not be free"
            )
        reached: dict[str, int] = {}
        for rate in self.rates:
            last = reached.get(rate.kind)
            if (last is None) != (rate.above == 0) or (last is not None and rate.above <= last):
                raise ConfigError(
                    f"{rate.kind}: expected one rate from the first unit on, then steps in order, "
                    f"found a step above {rate.above} after {last}"
                )
            reached[rate.kind] = rate.above
        top = AMOUNT_MAX if self.maximum is None else self.maximum
        if not 0 <= self.minimum <= top <= AMOUNT_MAX or top == 0:
            raise ConfigError(
                f"expected a minimum of at most the maximum, and both below {AMOUNT_MAX} base "
                f"units, found {self.minimum} and {self.maximum}"
            )

    @classmethod
    def of(cls, kind: str, unit_price: int) -> "Tariff":
        """Return the tariff with one whole price for one kind."""
        return cls((Rate(kind, unit_price),))

    @property
    def main(self) -> Rate:
        """The rate for a reader that knows one rate only."""
        return self.rates[0]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds with a rate, the main one first."""
        return tuple(dict.fromkeys(rate.kind for rate in self.rates))

    @property
    def is_plain(self) -> bool:
        """Whether one whole price for one kind says everything, as in the draft."""
        return self == Tariff.of(self.main.kind, self.main.amount)

    def unit(self) -> tuple[int, str]:
        """Return the price of one unit of the main rate, and the unit's name.

        The smallest number of units that costs whole base units is one unit:
        `(3, "20_output_tokens")` for 0.15 base units a token.
        """
        shared = gcd(self.main.amount, self.main.per)
        count = self.main.per // shared
        name = self.main.kind if count == 1 else f"{count}_{self.main.kind}s"
        return self.main.amount // shared, name

    def cost(self, usage: Usage) -> int:
        """Return what a request with this usage costs: exact, then rounded up once.

        Nothing used costs nothing; otherwise the minimum and the maximum apply.

        Raises:
            ConfigError: The tariff has no rate for a kind, or a number of units is negative or
                costs more than any channel can hold.
        """
        return RunningCost(self).add(usage)

    def rate_of(self, kind: str) -> Rate | None:
        """Return the rate of a kind's first unit; None when the tariff does not price it."""
        return next((rate for rate in self.rates if rate.kind == kind), None)

    def dearest(self, kind: str) -> Rate | None:
        """Return the highest rate that a unit of this kind can reach; None without a rate."""
        found: Rate | None = None
        for rate in self.rates:
            if rate.kind == kind and (found is None or rate.exceeds(found)):
                found = rate
        return found


class RunningCost:
    """What one request has used and costs so far.

    The sum of what `add` returns is always the cost of the whole usage, whatever its parts.
    """

    __slots__ = ("_bands", "_denominator", "_exact", "_maximum", "_minimum", "charged", "usage")

    def __init__(self, tariff: Tariff) -> None:
        self._denominator, self._bands = _compile(tariff)
        self._minimum = tariff.minimum
        self._maximum = AMOUNT_MAX if tariff.maximum is None else tariff.maximum
        self._exact = 0
        """The exact cost before minimum and maximum, in `_denominator`ths of a base unit."""
        self.charged = 0
        """The cost of `usage`, in base units."""
        self.usage: dict[str, int] = {}

    def price_of(self, more: Usage) -> int:
        """Return by how much the cost rises if this is used, too; see `Tariff.cost`."""
        return self._cost(self._exact + self._added(more), self.usage or more) - self.charged

    def add(self, more: Usage) -> int:
        """Use this, and return by how much the cost rose; see `Tariff.cost`."""
        exact = self._exact + self._added(more)
        usage = self.usage
        cost = self._cost(exact, usage or more)
        rise = cost - self.charged
        self._exact, self.charged = exact, cost
        for kind, units in more.items():
            if units:
                usage[kind] = usage.get(kind, 0) + units
        return rise

    def copy(self) -> "RunningCost":
        """Return a copy that counts on from here."""
        twin: RunningCost = object.__new__(RunningCost)
        twin._denominator, twin._bands = self._denominator, self._bands
        twin._minimum, twin._maximum = self._minimum, self._maximum
        twin._exact, twin.charged, twin.usage = self._exact, self.charged, dict(self.usage)
        return twin

    def _added(self, more: Usage) -> int:
        added = 0
        for kind, units in more.items():
            bands = self._bands.get(kind)
            if bands is None:
                raise ConfigError(
                    f"expected usage of {', '.join(self._bands)}, found {kind!r}: the tariff has "
                    "no rate for it; add one, with 0 if it is free"
                )
            if units < 0:
                raise ConfigError(f"{kind}: expected at least 0 units, found {units}")
            if len(bands) == 1:
                added += units * bands[0][1]
                continue
            start = self.usage.get(kind, 0)
            added += _reach(bands, start + units) - _reach(bands, start)
        return added

    def _cost(self, exact: int, used: Usage) -> int:
        if not exact and not any(used.values()):
            return 0
        cost = min(max(-(-exact // self._denominator), self._minimum), self._maximum)
        if cost > AMOUNT_MAX:
            raise ConfigError("the usage costs more than any channel can hold")
        return cost


_Bands = tuple[tuple[int, int], ...]
"""For one kind, each step's bound and its price, in the tariff's common denominator."""


@lru_cache(maxsize=1024)
def plain_tariff(unit_type: str, unit_price: int) -> Tariff:
    """Return the tariff of one whole price, for a unit of any name; see `Tariff.of`."""
    return Tariff.of(unit_type if is_kind(unit_type) else "unit", unit_price)


@lru_cache(maxsize=1024)
def _compile(tariff: Tariff) -> tuple[int, Mapping[str, _Bands]]:
    denominator = lcm(*(rate.per for rate in tariff.rates))
    bands: dict[str, _Bands] = {}
    for rate in tariff.rates:
        step = (rate.above, rate.amount * (denominator // rate.per))
        bands[rate.kind] = (*bands.get(rate.kind, ()), step)
    return denominator, bands


def _reach(bands: _Bands, units: int) -> int:
    """Return the exact price of the first `units` units of a kind."""
    exact = 0
    ends = (*(above for above, _ in bands[1:]), units)
    for (above, price), end in zip(bands, ends, strict=True):
        exact += max(0, min(units, end) - above) * price
    return exact


def parse_money(text: str, unit: TokenUnit) -> int:
    """Return a decimal of the whole token in base units: `"0.25 usdc"`, `"0.25"`.

    Raises:
        ConfigError: It is no such text, names another token, or is finer than a base unit.
    """
    amount, per = _read_money(text, unit)
    if per != 1:
        raise ConfigError(
            f"expected at most {unit.decimals} decimals of {unit.symbol}, found {text!r}"
        )
    return amount


def parse_rate(kind: str, text: str, unit: TokenUnit) -> Rate:
    """Return the rate of a price as people write it: `"0.15 usdc / 1M"`, `"0.002"`.

    The number is a decimal of the whole token, at any number of decimals. The token's name may be
    left out. Without a `/` the price is for one unit. `above 200K` at the end makes it a step: the
    price of the units after the first 200,000.

    Raises:
        ConfigError: It is no such text, names another token, or is out of range.
    """
    found = _RATE.fullmatch(text.strip()) if len(text) <= PRICE_TEXT_CHARS_MAX else None
    if found is None:
        raise _unreadable(kind, text)
    money, count, multiple, above, above_multiple = found.groups()
    amount, finer = _read_money(money, unit, kind)
    return Rate(
        kind,
        amount,
        int(count or 1) * _COUNTS[multiple or ""] * finer,
        int(above or 0) * _COUNTS[above_multiple or ""],
    )


def format_rate(rate: Rate, unit: TokenUnit) -> str:
    """Return a rate as people read it, exactly: `"0.15 USDC / 1M"`; `parse_rate` reads it.

    Tokens and bytes are quoted by the million. A price that has no end as a decimal is quoted for
    the number of units that it is stated for.
    """
    count, label = (10**6, " / 1M") if rate.kind.endswith(("token", "byte")) else (1, "")
    digits = _decimal(rate.amount * count, rate.per * 10**unit.decimals)
    if digits is None:
        digits = _decimal(rate.amount, 10**unit.decimals) or "0"
        label = f" / {rate.per}"
    step = f" above {rate.above}" if rate.above else ""
    return f"{digits} {unit.symbol}{label}{step}"


def _decimal(numerator: int, denominator: int) -> str | None:
    """Return a fraction as a decimal without zeros at its end; None when it has no end."""
    shared = gcd(numerator, denominator)
    numerator, denominator = numerator // shared, denominator // shared
    places = 0
    while denominator % 10 == 0 or denominator % 2 == 0 or denominator % 5 == 0:
        places += 1
        factor = gcd(denominator, 10)
        numerator, denominator = numerator * (10 // factor), denominator // factor
    if denominator != 1:
        return None
    whole, part = divmod(numerator, 10**places)
    return f"{whole}.{part:0{places}d}" if places else str(whole)


def _read_money(text: str, unit: TokenUnit, kind: str = "amount") -> tuple[int, int]:
    """Return base units as a fraction: the amount and what it is divided by."""
    found = _MONEY.fullmatch(text.strip()) if len(text) <= PRICE_TEXT_CHARS_MAX else None
    if found is None:
        raise _unreadable(kind, text)
    whole, part, symbol = found.groups()
    part = (part or "").rstrip("0")
    if symbol is not None and symbol.lower() != unit.symbol.lower():
        raise ConfigError(f"{kind}: expected a price in {unit.symbol}, found {text!r}")
    finer = max(0, len(part) - unit.decimals)
    amount = int(whole + part) * 10 ** (unit.decimals + finer - len(part))
    return amount, 10**finer


def _unreadable(kind: str, text: str) -> ConfigError:
    return ConfigError(
        f"{kind}: expected a price such as 0.15 / 1M or 0.002, "
        f"found {text[:PRICE_TEXT_CHARS_MAX]!r}"
    )
