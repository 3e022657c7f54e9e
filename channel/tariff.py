"""Tariffs: what a request costs, as several exact rates (pure; decision 8).

A rate is a fraction of a base unit for one unit of a kind, because a token of a language model
often costs less than the smallest amount of a token. A request's usage is added up and priced as a
whole, and the result is rounded up once. Only integers are used: both sides compute the same
number, and no rounding can be repeated to a payer's or a seller's harm.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
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
    "cheapest_of",
    "dearest_of",
    "describe_rate",
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
_COUNTS: Final = {"B": 10**9, "M": 10**6, "K": 10**3, "": 1}
_MONEY: Final = re.compile(r"([0-9]+)(?:\.([0-9]+))? ?([^0-9.,].*)?")
_COUNT: Final = "([0-9]+) ?([KMB]?)"
_RATE: Final = re.compile(f"(.+?)(?: ?/ ?{_COUNT})?(?: above {_COUNT})?")


def is_kind(name: str) -> bool:
    """Whether a kind can have this name: lower-case letters, digits and _, a letter first."""
    return len(name) <= KIND_CHARS_MAX and _KIND.fullmatch(name) is not None


class Rate(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
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
        for name, value, least, most in (
            ("amount", self.amount, 0, AMOUNT_MAX),
            ("per", self.per, 1, RATE_PER_MAX),
            ("above", self.above, 0, USAGE_MAX),
        ):
            if not _is_integer(value, least, most):
                raise ConfigError(
                    f"{self.kind}: expected {name} as an int from {least} to {most}, "
                    f"found {value!r}"
                )

    def exceeds(self, other: "Rate") -> bool:
        """Whether a unit costs more under this rate than under the other; exact."""
        return self.amount * other.per > other.amount * self.per


class Tariff(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
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
        if not isinstance(self.rates, tuple) or not 1 <= len(self.rates) <= RATES_MAX:
            raise ConfigError(f"expected a tuple of 1 to {RATES_MAX} rates")
        if self.rates[0].amount == 0:
            raise ConfigError(
                f"{self.rates[0].kind}: the first rate is the main one and must not be free"
            )
        reached: dict[str, int] = {}
        for rate in self.rates:
            last = reached.get(rate.kind)
            if rate.above != 0 if last is None else rate.above <= last:
                raise ConfigError(
                    f"{rate.kind}: expected one rate from the first unit on, then steps in order, "
                    f"found a rate above {rate.above}"
                )
            reached[rate.kind] = rate.above
        least = 0 if self.maximum is None else max(1, self.minimum)
        if not _is_integer(self.minimum, 0, AMOUNT_MAX) or not (
            self.maximum is None or _is_integer(self.maximum, least, AMOUNT_MAX)
        ):
            raise ConfigError(
                f"expected minimum and maximum as ints up to {AMOUNT_MAX} base units, the maximum "
                f"above 0 and no less than the minimum, found {self.minimum!r} and {self.maximum!r}"
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
        is_one = len(self.rates) == 1 and not self.minimum and self.maximum is None
        return is_one and self.main.amount % self.main.per == 0

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
            ConfigError: The tariff has no rate for a kind, a number of units is no int from 0 to
                `USAGE_MAX`, or the cost exceeds what a channel can hold.
        """
        return RunningCost(self).add(usage)

    def rate_of(self, kind: str) -> Rate | None:
        """Return the rate of a kind's first unit; None when the tariff does not price it."""
        return next((rate for rate in self.rates if rate.kind == kind), None)

    def dearest(self, kind: str) -> Rate | None:
        """Return the highest rate that a unit of this kind can reach; None without a rate."""
        rates = [rate for rate in self.rates if rate.kind == kind]
        return dearest_of(rates) if rates else None


def dearest_of(rates: Sequence[Rate]) -> Rate:
    """Return the highest of one or more rates; the first of equal ones."""
    return reduce(lambda found, rate: rate if rate.exceeds(found) else found, rates)


def cheapest_of(rates: Sequence[Rate]) -> Rate:
    """Return the lowest of one or more rates; the first of equal ones."""
    return reduce(lambda found, rate: rate if found.exceeds(rate) else found, rates)


class RunningCost:
    """What one request has used and costs so far.

    The sum of what `add` returns is always the cost of the whole usage, in any parts. A call
    that raises changes nothing; see `Tariff.cost` for what raises.
    """

    __slots__ = ("_exact", "_prices", "charged", "usage")

    def __init__(self, tariff: Tariff) -> None:
        self._prices = _compile(tariff)
        self._exact = 0
        """The exact cost before minimum and maximum; `_Prices.denominator` is one base unit."""
        self.charged = 0
        """The cost of `usage`, in base units."""
        self.usage: dict[str, int] = {}
        """The units so far, without kinds of which none was used."""

    @property
    def main_units(self) -> int:
        """The units of the main kind so far."""
        return self.usage.get(self._prices.main, 0)

    @property
    def left(self) -> int:
        """By how much the cost can still rise, in base units."""
        return self._prices.maximum - self.charged

    def price_of(self, more: Usage) -> int:
        """Return by how much the cost rises if this is used, too."""
        return self._cost(self._exact_with(more), more) - self.charged

    def add(self, more: Usage) -> int:
        """Use this, and return by how much the cost rose."""
        exact = self._exact_with(more)
        cost = self._cost(exact, more)
        rise = cost - self.charged
        self._exact, self.charged = exact, cost
        usage = self.usage
        for kind, units in more.items():
            if units:
                usage[kind] = usage.get(kind, 0) + units
        return rise

    def add_main(self, units: int) -> int:
        """Use units of the main kind, as `add` does; faster, because streams count this way."""
        prices = self._prices
        used = self.usage.get(prices.main, 0)
        if not prices.flat or type(units) is not int or not 0 < units <= USAGE_MAX - used:
            return self.add({prices.main: units})
        exact = self._exact + units * prices.flat
        cost = -(-exact // prices.denominator)
        if not prices.minimum <= cost <= prices.maximum:
            cost = self._cost(exact, {prices.main: units})
        rise = cost - self.charged
        self._exact, self.charged = exact, cost
        self.usage[prices.main] = used + units
        return rise

    def main_within(self, amount: int) -> int:
        """Return how many units of the main kind, used now, cost at most `amount` more."""
        prices = self._prices
        used = self.main_units
        budget = self.charged + amount
        if prices.is_capped and budget >= prices.maximum:
            return USAGE_MAX - used
        if budget < prices.minimum and not self.usage:
            return 0
        exact, total = budget * prices.denominator - self._exact, used
        for _, end, price in prices.bands[prices.main]:
            if total >= end:
                continue
            fitting = end - total if price == 0 else min(end - total, exact // price)
            total += fitting
            exact -= fitting * price
            if total < end:
                break
        return total - used

    def copy(self) -> "RunningCost":
        """Return a copy that counts on from here."""
        twin: RunningCost = object.__new__(RunningCost)
        twin._prices, twin._exact = self._prices, self._exact
        twin.charged, twin.usage = self.charged, self.usage.copy()
        return twin

    def _exact_with(self, more: Usage) -> int:
        exact, usage, all_bands = self._exact, self.usage, self._prices.bands
        for kind, units in more.items():
            bands = all_bands.get(kind)
            if bands is None:
                raise ConfigError(
                    f"expected usage of {', '.join(all_bands)}, found {kind!r}: the tariff has "
                    "no rate for it; add one, with 0 if it is free"
                )
            start = usage.get(kind, 0)
            if type(units) is not int or not 0 <= units <= USAGE_MAX - start:
                raise ConfigError(
                    f"{kind}: expected an int from 0 to {USAGE_MAX - start} units, found {units!r}"
                )
            if len(bands) == 1:
                exact += units * bands[0][2]
            else:
                exact += _between(bands, start, start + units)
        return exact

    def _cost(self, exact: int, more: Usage) -> int:
        prices = self._prices
        cost = -(-exact // prices.denominator)
        if cost < prices.minimum and (self.usage or any(more.values())):
            cost = prices.minimum
        if cost <= prices.maximum:
            return cost
        if prices.is_capped:
            return prices.maximum
        raise ConfigError("the usage costs more than any channel can hold")


_Bands = tuple[tuple[int, int, int], ...]
"""The steps of one kind: from above which unit, to which unit, and the price of each, in the
tariff's common denominator."""


class _Prices(msgspec.Struct, frozen=True, gc=False):
    """A tariff in whole numbers, computed once for all its requests."""

    denominator: int
    bands: Mapping[str, _Bands]
    main: str
    flat: int
    """The exact price of a unit of the main kind; 0 when its rate has steps."""
    minimum: int
    maximum: int
    is_capped: bool


@lru_cache(maxsize=1024)
def plain_tariff(unit_type: str, unit_price: int) -> Tariff:
    """Return the tariff of one whole price, for a unit of any name; see `Tariff.of`."""
    return Tariff.of(unit_type if is_kind(unit_type) else "unit", unit_price)


@lru_cache(maxsize=1024)
def _compile(tariff: Tariff) -> _Prices:
    # In lowest terms: 0.40 / 1M at six decimals counts in fifths, within a machine word.
    denominator = lcm(*(rate.per // gcd(rate.amount, rate.per) for rate in tariff.rates))
    bands: dict[str, _Bands] = {}
    for kind in tariff.kinds:
        rates = [rate for rate in tariff.rates if rate.kind == kind]
        ends = [*(rate.above for rate in rates[1:]), USAGE_MAX]
        bands[kind] = tuple(
            (rate.above, end, rate.amount * denominator // rate.per)
            for rate, end in zip(rates, ends, strict=True)
        )
    main = bands[tariff.main.kind]
    return _Prices(
        denominator=denominator,
        bands=bands,
        main=tariff.main.kind,
        flat=main[0][2] if len(main) == 1 else 0,
        minimum=tariff.minimum,
        maximum=AMOUNT_MAX if tariff.maximum is None else tariff.maximum,
        is_capped=tariff.maximum is not None,
    )


def _between(bands: _Bands, start: int, end: int) -> int:
    """Return the exact price of the units of a kind after the first `start`, up to `end`."""
    return sum(
        (min(end, last) - max(start, above)) * price
        for above, last, price in bands
        if above < end and start < last
    )


def _is_integer(value: object, least: int, most: int) -> bool:
    """Whether it is an int in this range; a bool, a float or a numpy number is none."""
    return type(value) is int and least <= value <= most


def parse_money(text: str, unit: TokenUnit) -> int:
    """Return a decimal of the whole token in base units: `"0.25 usdc"`, `"0.25"`.

    Raises:
        ConfigError: It is no such text, names another token, is finer than a base unit, or is
            out of range.
    """
    amount, per = _read_money(text, unit)
    if per != 1 or amount > AMOUNT_MAX:
        raise ConfigError(
            f"expected an amount with at most {unit.decimals} decimals of {unit.symbol}, "
            f"within a channel's range, found {text!r}"
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
    """Return a rate exactly, as `parse_rate` reads it: `"0.15 USDC / 1M"`.

    Tokens and bytes are quoted by the million. A price that has no end as a decimal is quoted for
    the number of units that it is stated for.
    """
    digits, count = _quote(rate, unit)
    label = "" if count == 1 else f" / {_format_count(count)}"
    return f"{digits} {unit.symbol}{label}{_format_step(rate)}"


def describe_rate(rate: Rate, unit: TokenUnit) -> str:
    """Return a rate as people read it, exactly: `"0.40 USDC / 1M output tokens"`."""
    digits, count = _quote(rate, unit)
    kind = rate.kind.replace("_", " ")
    label = kind if count == 1 else f"{_format_count(count)} {kind}s"
    return f"{digits} {unit.symbol} / {label}{_format_step(rate)}"


def _quote(rate: Rate, unit: TokenUnit) -> tuple[str, int]:
    """Return a price as a decimal of the whole token, and for how many units it is."""
    count = 10**6 if rate.kind.endswith(("token", "byte")) else 1
    finer = 0
    while count * 10**finer <= RATE_PER_MAX:
        amount, rest = divmod(rate.amount * count * 10**finer, rate.per)
        if not rest and amount <= AMOUNT_MAX:
            return _format_decimal(amount, unit.decimals + finer), count
        finer += 1
    return _format_decimal(rate.amount, unit.decimals), rate.per


def _format_decimal(amount: int, places: int) -> str:
    """Return a decimal without needless zeros, and not with a single place: `0.40`, `0.002`."""
    whole, part = divmod(amount, 10**places)
    digits = f"{part:0{places}d}".rstrip("0") if part else ""
    return f"{whole}.{digits:0<2}" if digits else str(whole)


def _format_count(count: int) -> str:
    label, multiple = next(entry for entry in _COUNTS.items() if count % entry[1] == 0)
    return f"{count // multiple}{label}"


def _format_step(rate: Rate) -> str:
    return f" above {_format_count(rate.above)}" if rate.above else ""


def _read_money(text: str, unit: TokenUnit, kind: str = "amount") -> tuple[int, int]:
    """Return base units as a fraction: the amount and what it is divided by."""
    found = _MONEY.fullmatch(text.strip()) if len(text) <= PRICE_TEXT_CHARS_MAX else None
    if found is None:
        raise _unreadable(kind, text)
    whole, part, symbol = found.groups()
    part = (part or "").rstrip("0")
    if symbol is not None and symbol.lower() != unit.symbol.lower():
        what = "an amount" if kind == "amount" else "a price"
        raise ConfigError(f"{kind}: expected {what} in {unit.symbol}, found {text!r}")
    finer = max(0, len(part) - unit.decimals)
    amount = int(whole + part) * 10 ** (unit.decimals + finer - len(part))
    return amount, 10**finer


def _unreadable(kind: str, text: str) -> ConfigError:
    what = "an amount such as 0.25" if kind == "amount" else "a price such as 0.15 / 1M or 0.002"
    return ConfigError(f"{kind}: expected {what}, found {text[:PRICE_TEXT_CHARS_MAX]!r}")
