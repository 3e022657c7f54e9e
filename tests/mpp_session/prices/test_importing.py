"""Public lists of prices become rows, exactly, or are skipped with the reason."""

import json
import tomllib
from decimal import Decimal
from typing import Any

import pytest

from channel.errors import ConfigError
from channel.types import TokenUnit
from mpp_session.prices.importing import Imported, format_rows, import_prices
from mpp_session.prices.table import PriceTable
from mpp_session.settings.price_rows import read_price_rows

CHAT = {"litellm_provider": "openai", "mode": "chat"}


def litellm(text: str, **options: Any) -> Imported:
    """Import the one model of a map, whose numbers stand in `text` as they are."""
    document = '{"sample_spec": {"input_cost_per_token": 0}, "m": ' + text + "}"
    return import_prices(document.encode(), **options)


def priced(**more: Any) -> str:
    prices = {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07}
    return json.dumps(CHAT | prices | more)


def openrouter(pricing: Any, **more: Any) -> Imported:
    return import_prices(json.dumps({"data": [{"id": "m", "pricing": pricing, **more}]}).encode())


def test_litellms_map_is_read() -> None:
    found = litellm(
        priced(
            cache_read_input_token_cost=7.5e-08,
            cache_creation_input_token_cost=1.875e-07,
            output_cost_per_reasoning_token=9e-07,
            input_cost_per_token_batches=7.5e-08,
            output_cost_per_token_priority=1e-06,
            max_input_tokens=128000,
            max_output_tokens=16384,
            supports_vision=True,
            supports_function_calling=True,
        )
    )
    assert found.skipped == []
    assert found.rows == [
        {
            "model": "m",
            "input": "0.15",
            "output": "0.6",
            "cached_input": "0.075",
            "cache_write": "0.1875",
            "reasoning": "0.9",
            "context_length": 128000,
            "max_output": 16384,
            "modalities": ["text", "image"],
        }
    ]


def test_openrouters_list_is_read() -> None:
    found = openrouter(
        {
            "prompt": "0.00000015",
            "completion": "6E-7",
            "request": "0",
            "image": "0",
            "internal_reasoning": "0",
            "input_cache_read": "0.000000075",
        },
        context_length=32768,
        top_provider={"max_completion_tokens": 8192},
        architecture={"input_modalities": ["image", "text"]},
    )
    assert found.skipped == []
    assert found.rows == [
        {
            "model": "m",
            "input": "0.15",
            "output": "0.6",
            "cached_input": "0.075",
            "context_length": 32768,
            "max_output": 8192,
            "modalities": ["text", "image"],
        }
    ]


def test_prices_are_multiplied_exactly() -> None:
    """No binary fraction on the way: 0.1 * 3 is 0.3."""
    text = json.dumps(CHAT)[:-1] + ', "input_cost_per_token": 1e-7, "output_cost_per_token": '
    found = litellm(text + "1.234567890123456789e-6}", multiplier=Decimal(3))
    assert found.rows[0]["input"] == "0.3"
    assert found.rows[0]["output"] == "3.703703670370370367"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (json.dumps(CHAT), "`input_cost_per_token` is missing"),
        (priced(output_cost_per_token=None), "`output_cost_per_token` is missing"),
        (priced(input_cost_per_token=0), "`input_cost_per_token` is 0, which may mean"),
        (priced(output_cost_per_token=-1), "`output_cost_per_token` is -1"),
        (priced(output_cost_per_token="free"), "'free', which is no number"),  # noqa: S106 -- no password
        (priced(input_cost_per_token_above_200k_tokens=3e-07), "above_200k_tokens`, which a row"),
        (priced(tiered_pricing=[{"range": [0, 1]}]), "`tiered_pricing`, which a row cannot"),
        (priced(search_context_cost_per_query={"high": 1}), "`search_context_cost_per_query`"),
        (priced(input_cost_per_audio_token=1e-05), "`input_cost_per_audio_token`"),
        (priced(mode="image_generation"), "its mode is 'image_generation'"),
        (priced(input_cost_per_token=1e-40), "more than 30 decimals"),
    ],
)
def test_what_a_row_cannot_state_is_skipped_and_said(entry: str, said: str) -> None:
    """An unknown price is never 0."""
    found = litellm(entry)
    assert found.rows == []
    ((name, reason),) = found.skipped
    assert name == "m"
    assert said in reason


@pytest.mark.parametrize(
    ("pricing", "said"),
    [
        (None, "`pricing` is missing"),
        ({"prompt": "0.1"}, "`completion` is missing"),
        ({"prompt": "0", "completion": "0"}, "`prompt` is 0"),
        ({"prompt": "-1", "completion": "-1"}, "`prompt` is -1"),
        ({"prompt": "NaN", "completion": "1"}, "`prompt` is NaN"),
        ({"prompt": "1e-7", "completion": "1e-7", "request": "0.01"}, "`request`"),
        ({"prompt": "1e-7", "completion": "1e-7", "web_search": "0.01"}, "`web_search`"),
    ],
)
def test_neither_does_openrouters_list_give_away_what_it_does_not_price(
    pricing: Any, said: str
) -> None:
    found = openrouter(pricing)
    assert found.rows == []
    assert said in found.skipped[0][1]


def test_an_operator_may_leave_out_a_price_of_what_is_not_sold() -> None:
    entry = priced(search_context_cost_per_query={"high": 1})
    assert litellm(entry, ignored=["search_context_cost_per_query"]).skipped == []
    assert litellm(priced(input_cost_per_token=0), ignored=["input_cost_per_token"]).rows == []


def test_embeddings_are_priced_by_their_input() -> None:
    text = json.dumps(
        {
            "litellm_provider": "openai",
            "mode": "embedding",
            "input_cost_per_token": 2e-08,
            "output_cost_per_token": 0.0,
        }
    )
    assert litellm(text).rows == [{"model": "m", "endpoint": "embeddings", "input": "0.02"}]


def test_names_are_chosen_by_a_pattern() -> None:
    document = {"a-1": json.loads(priced()), "b-1": json.loads(priced()), "a*": CHAT | {"x": 1}}
    found = import_prices(json.dumps(document).encode(), only="a-*")
    assert [row["model"] for row in found.rows] == ["a-1"]


def test_a_name_never_becomes_a_pattern() -> None:
    found = import_prices(json.dumps({"a*": json.loads(priced())}).encode())
    assert found.skipped == [("a*", "its name has a *, which would make it a pattern")]


def test_rows_are_written_as_a_file_that_is_read_back() -> None:
    written = format_rows([*litellm(priced()).rows, {"model": 'a "b"\\', "output": "1"}])
    rows = read_price_rows(tomllib.loads(written)["prices"])
    table = PriceTable(rows, TokenUnit("USDC", 6))
    assert [one.row.model for one in table.listings] == ["m", 'a "b"\\']


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"a": 1}', b'{"data": [1]}', b"[" * 10**5])
def test_another_document_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="expected"):
        import_prices(text)


@pytest.mark.parametrize("multiplier", ["0", "-1", "NaN", "Infinity"])
def test_a_multiplier_is_above_0(multiplier: str) -> None:
    with pytest.raises(ConfigError, match="expected a multiplier above 0"):
        litellm(priced(), multiplier=Decimal(multiplier))
