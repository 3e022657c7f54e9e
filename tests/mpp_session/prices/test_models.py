"""The list of models: OpenAI's fields, OpenRouter's prices, and those of the challenges."""

from typing import Any

import pytest

from channel.tariff import Rate
from channel.types import TokenUnit
from mpp_session.prices.models import ServedModel, list_models, per_token
from mpp_session.prices.table import PriceTable
from mpp_session.settings.price_rows import read_price_rows

USDC = TokenUnit("USDC", 6)
CHAT = "chat.completions"


def listed(
    *rows: dict[str, Any], served: tuple[str, ...] = (), unit: TokenUnit | None = USDC
) -> list[dict[str, Any]]:
    table = PriceTable(read_price_rows(rows), unit)
    models = [ServedModel(name, 5, "someone") for name in served]
    return list_models(
        table, [CHAT, "embeddings"], models, at=0, created=9, owner="me", parameters={"top_p"}
    )


def test_an_entry_has_what_both_readers_look_for() -> None:
    (entry,) = listed(
        {
            "model": "m",
            "endpoint": CHAT,
            "input": "0.10",
            "output": "0.40",
            "cached_input": "0.025",
            "reasoning": "0.6",
            "description": "A model",
            "context_length": 8192,
            "max_output": 1024,
            "modalities": ["text", "image"],
        }
    )
    prices = entry.pop("prices")
    assert entry == {
        "id": "m",
        "object": "model",
        "created": 9,
        "owned_by": "me",
        "name": "m",
        "description": "A model",
        "context_length": 8192,
        "max_output_length": 1024,
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "pricing": {
            "prompt": "0.0000001",
            "completion": "0.0000004",
            "request": "0",
            "input_cache_read": "0.000000025",
            "internal_reasoning": "0.0000006",
        },
        "supported_sampling_parameters": ["top_p"],
    }
    assert [one["endpoint"] for one in prices] == [CHAT]
    assert prices[0]["display"].startswith("0.10 USDC / 1M input tokens")


def test_a_pattern_lists_the_models_that_are_served() -> None:
    rows = ({"model": "a", "output": "1"}, {"model": "b*", "output": "2"})
    found = listed(*rows, served=("b2", "a", "c", "b1"))
    assert [one["id"] for one in found] == ["a", "b2", "b1"]
    assert [one["owned_by"] for one in found] == ["someone"] * 3
    assert [one["pricing"]["completion"] for one in found] == ["0.000001", "0.000002", "0.000002"]


def test_each_endpoint_states_its_own_price() -> None:
    rows = (
        {"model": "e", "endpoint": "embeddings", "input": "0.02"},
        {"model": "m", "endpoint": CHAT, "output": "1"},
        {"model": "m", "output": "2"},
    )
    embeddings, chat = listed(*rows)
    assert embeddings["pricing"] == {"prompt": "0.00000002", "completion": "0", "request": "0"}
    assert embeddings["output_modalities"] == ["embeddings"]
    assert [one["display"] for one in chat["prices"]] == [
        "1 USDC / 1M output tokens",
        "2 USDC / 1M output tokens",
    ]


def test_without_decimals_only_base_units_are_stated() -> None:
    (entry,) = listed({"model": "m", "per_unit": 25}, unit=None)
    assert "pricing" not in entry
    assert entry["prices"][0]["display"] == "25 base units / llm token"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (Rate("t", 400_000, 10**6), "0.0000004"),
        (Rate("t", 25), "0.000025"),
        (Rate("t", 10**6), "1"),
        (Rate("t", 0), "0"),
        (Rate("t", 1, 3), "0.000000333333333333333333333334"),
    ],
)
def test_a_price_of_one_token_is_exact(rate: Rate, text: str) -> None:
    assert per_token(rate, USDC) == text
