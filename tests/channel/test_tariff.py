"""Tariffs: exact rates, rounded up once, whatever the parts of a usage."""

import pytest

from channel.errors import ConfigError
from channel.limits import (
    KIND_CHARS_MAX,
    PRICE_TEXT_CHARS_MAX,
    RATE_PER_MAX,
    RATES_MAX,
    USAGE_MAX,
)
from channel.tariff import Rate, RunningCost, Tariff, parse_rate
from channel.types import TokenUnit

USDC = TokenUnit("USDC", 6)


# -- bounds


def test_the_longest_kind_is_one_and_a_longer_is_none() -> None:
    assert Rate("k" * KIND_CHARS_MAX, 1).kind
    with pytest.raises(ConfigError, match="at most 64"):
        Rate("k" * (KIND_CHARS_MAX + 1), 1)


def test_so_many_rates_and_no_more() -> None:
    rates = tuple(Rate(f"k{n}", 1) for n in range(RATES_MAX + 1))
    assert Tariff(rates[:-1]).kinds[-1] == "k31"
    with pytest.raises(ConfigError, match="1 to 32 rates"):
        Tariff(rates)


def test_the_finest_rate_is_one_and_a_finer_is_none() -> None:
    assert Rate("row", 1, RATE_PER_MAX).per == RATE_PER_MAX
    with pytest.raises(ConfigError, match=r"row: expected per"):
        Rate("row", 1, RATE_PER_MAX + 1)


def test_a_request_uses_so_many_units_and_no_more() -> None:
    """RCPT-02: a receipt's numbers are safe integers."""
    cost = RunningCost(Tariff((Rate("row", 1, 10**6),)))
    cost.add({"row": USAGE_MAX - 1})
    assert cost.main_within(10**30) == 1
    cost.add_main(1)
    with pytest.raises(ConfigError, match="row: expected an int from 0 to 0 units, found 1"):
        cost.add({"row": 1})
    with pytest.raises(ConfigError, match="row: expected an int from 0 to 0 units, found 1"):
        cost.add_main(1)
    assert cost.usage == {"row": USAGE_MAX}


def test_the_longest_price_is_read_and_a_longer_is_not() -> None:
    price = "0.15 / 1M"
    assert parse_rate("row", price.rjust(PRICE_TEXT_CHARS_MAX), USDC) == Rate("row", 150000, 10**6)
    with pytest.raises(ConfigError, match="row: expected a price such as"):
        parse_rate("row", price.rjust(PRICE_TEXT_CHARS_MAX + 1), USDC)
