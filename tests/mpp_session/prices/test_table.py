"""The price table: which row a request is sold under."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from channel.errors import ConfigError
from channel.limits import MODEL_CHARS_MAX
from channel.types import TokenUnit
from mpp_session.prices.table import PriceTable
from mpp_session.settings.price_rows import read_price_rows

UNIT = TokenUnit("dUSD", 6)
CHAT = "chat.completions"


def table_of(*rows: dict[str, Any]) -> PriceTable:
    return PriceTable(read_price_rows([{"output": "0.40", **row} for row in rows]), UNIT)


def cost_of(table: PriceTable, model: str, at: float = 0, endpoint: str = CHAT) -> int | None:
    """The price of a million output tokens, or None."""
    found = table.find(endpoint, model, at)
    return None if found is None else found.tariff.cost({"output_token": 10**6})


@pytest.mark.parametrize(
    ("pattern", "model", "fits"),
    [
        ("llama", "llama", True),
        ("llama", "llama-3", False),
        ("llama", "LLAMA", False),
        ("llama-*", "llama-3", True),
        ("llama-*", "llama-", True),
        ("llama-*", "my-llama-3", False),
        ("*-3*b", "llama-3-8b", True),
        ("*-3*b", "llama-3", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*", "", True),
        ("[ab]", "a", False),
        ("a?", "ab", False),
        ("x*y*z", "xzy", False),
    ],
)
def test_a_pattern_fits_these_models(pattern: str, model: str, *, fits: bool) -> None:
    assert (table_of({"model": pattern}).find(CHAT, model, 0) is not None) is fits


def test_the_first_row_that_fits_counts() -> None:
    table = table_of({"model": "big", "output": "2"}, {"model": "b*", "output": "1"})
    assert [cost_of(table, name) for name in ("big", "bit", "c")] == [2 * 10**6, 10**6, None]


def test_a_row_may_be_for_one_endpoint() -> None:
    table = table_of({"endpoint": CHAT, "output": "2"}, {"output": "1"})
    assert cost_of(table, "m") == 2 * 10**6
    assert cost_of(table, "m", endpoint="completions") == 10**6


def test_a_row_counts_from_its_time_on() -> None:
    begins = datetime(2026, 12, 1, tzinfo=UTC)
    table = table_of({"valid_from": begins, "output": "2"}, {"output": "1"})
    assert cost_of(table, "m", begins.timestamp() - 1) == 10**6
    assert cost_of(table, "m", begins.timestamp()) == 2 * 10**6
    assert table.only(CHAT) is None


def test_one_row_for_all_models_needs_no_model() -> None:
    assert table_of({}).only(CHAT) is not None
    assert table_of({"model": "m"}).only(CHAT) is None
    assert table_of({"model": "m"}, {}).only(CHAT) is None
    assert table_of({"endpoint": CHAT}, {"model": "m"}).only("completions") is None


def test_a_name_too_long_for_a_challenge_is_not_sold() -> None:
    """MODEL_CHARS_MAX"""
    table = table_of({})
    assert table.find(CHAT, "m" * MODEL_CHARS_MAX, 0) is not None
    assert table.find(CHAT, "m" * (MODEL_CHARS_MAX + 1), 0) is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (({"model": "b*"}, {"model": "big"}), r"row 2 \(model big\) is never used, because row 1"),
        (({}, {"valid_from": datetime(2026, 12, 1, tzinfo=UTC)}), r"row 2 .* is never used"),
        (({"model": "a"}, {"output": "0.40 EUR"}), r"row 2 \(model \*\): `output`: .*dUSD.*EUR"),
        (({"model": "m", "output": "0"},), r"row 1 .*the first rate .* must not be free"),
        (({"model": "m", "minimum": "0.0000001"},), r"row 1 .*`minimum`: .*at most 6 decimals"),
    ],
)
def test_an_invalid_row_is_named(rows: tuple[dict[str, Any], ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        table_of(*rows)


def test_an_empty_table_sells_nothing_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing would be sold"):
        PriceTable((), UNIT)


def test_a_table_of_thousands_of_models_is_checked_and_searched_quickly() -> None:
    """The gateway checks it in the loop that serves; each row with each would take seconds."""
    rows = [{"model": f"model-{number}"} for number in range(5000)]
    began = time.process_time()
    table = table_of(*rows)
    for number in range(4000):
        assert table.find(CHAT, f"model-{number % 10}", 0) is not None
    assert time.process_time() - began < 2
