"""Reads public lists of prices into rows: LiteLLM's map and OpenRouter's list of models (pure).

Both state dollars for one token. A row states them for a million, exactly. A model whose price a
row cannot state whole is skipped with the reason; an unknown price never becomes 0.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final

import msgspec

from channel.errors import ConfigError
from mpp_session.prices.table import matches
from mpp_session.settings.price_rows import read_price_rows

__all__ = ["Imported", "format_rows", "import_prices"]

_MILLION: Final = 10**6
_PLACES_MAX: Final = 30

_LITELLM: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_reasoning_token": "reasoning",
}
_OPENROUTER: Final = {
    "prompt": "input",
    "completion": "output",
    "input_cache_read": "cached_input",
    "input_cache_write": "cache_write",
    "internal_reasoning": "reasoning",
}
"""Names of the prices of tokens, and the fields of a row."""
_OTHER_TIERS: Final = ("_batches", "_flex", "_priority")
"""Suffixes of prices for another class of service, beside the usual one."""
_ENDPOINTS: Final = {
    "chat": "*",
    "completion": "completions",
    "embedding": "embeddings",
    "responses": "responses",
}
"""LiteLLM's modes that are sold by the token, and the endpoints."""
_MODALITIES: Final = ("text", "image", "audio", "video", "file")


class Imported(msgspec.Struct):
    """What was read."""

    rows: list[dict[str, Any]] = []
    """The rows, as tables of a file."""
    skipped: list[tuple[str, str]] = []
    """Models without a row, and why."""


class _UnsoldError(Exception):
    """Why a model gets no row."""


def import_prices(
    text: bytes,
    *,
    multiplier: Decimal = Decimal(1),
    only: str = "*",
    ignored: Collection[str] = (),
) -> Imported:
    """Return the rows for a list of prices.

    Args:
        text: LiteLLM's `model_prices_and_context_window.json`, or OpenRouter's `/api/v1/models`.
        multiplier: The factor from their prices to the rows'.
        only: A pattern for the models' names.
        ignored: Prices that are left out, such as that of a search which is not sold.

    Raises:
        ConfigError: It is neither of the two.
    """
    try:
        document = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"expected a JSON document, found something else: {error}") from None
    if not multiplier.is_finite() or multiplier <= 0:
        raise ConfigError(f"expected a multiplier above 0, such as 1.2, found {multiplier}")
    imported = Imported()
    for name, entry, read in _entries(document):
        if not matches(only, name):
            continue
        try:
            row = {"model": _name(name), **read(entry, _Prices(multiplier, ignored))}
            read_price_rows([row])
        except _UnsoldError as reason:
            imported.skipped.append((name, str(reason)))
        except ConfigError as error:
            imported.skipped.append((name, str(error).partition("): ")[2] or str(error)))
        else:
            imported.rows.append(row)
    return imported


def format_rows(rows: Collection[Mapping[str, Any]]) -> str:
    """Return rows as TOML."""
    tables = []
    for row in rows:
        lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in row.items()]
        tables.append("\n".join(["[[prices]]", *lines]) + "\n")
    return "\n".join(tables)


def _entries(document: Any) -> Iterator[tuple[str, dict[str, Any], Any]]:
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        for entry in document["data"]:
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                raise ConfigError("expected OpenRouter's list of models, found one without an id")
            yield entry["id"], entry, _read_openrouter
        return
    if not isinstance(document, dict) or not any(
        isinstance(entry, dict) and "litellm_provider" in entry for entry in document.values()
    ):
        raise ConfigError(
            "expected LiteLLM's map of models, or OpenRouter's list, an object with `data`; found "
            "neither"
        )
    for name, entry in document.items():
        if name != "sample_spec" and isinstance(entry, dict):
            yield name, entry, _read_litellm


def _name(name: str) -> str:
    if "*" in name:
        raise _UnsoldError("its name has a *, which would make it a pattern")
    return name


class _Prices:
    """Reads the prices of one model."""

    def __init__(self, multiplier: Decimal, ignored: Collection[str]) -> None:
        self._multiplier = Fraction(multiplier)
        self._ignored = ignored

    def read(
        self, found: Mapping[str, Any], names: Mapping[str, str], needed: Collection[str]
    ) -> dict[str, str]:
        """Return the prices of a million tokens by field.

        Raises:
            _UnsoldError: One is missing, is 0 or no number; or a row cannot state another one.
        """
        prices: dict[str, str] = {}
        for name, field in names.items():
            if name in self._ignored and field not in needed:
                continue
            value = self._number(name, found.get(name))
            if field in needed and not value:
                shown = "missing" if value is None else "0, which may mean that it is not known"
                raise _UnsoldError(f"`{name}` is {shown}")
            if value:
                prices[field] = self._per_million(name, value)
        for name, other in found.items():
            if name in names or name in self._ignored or name.endswith(_OTHER_TIERS):
                continue
            if isinstance(other, dict | list) or self._number(name, other):
                raise _UnsoldError(f"it also has the price `{name}`, which a row cannot state")
        return prices

    def _number(self, name: str, value: Any) -> Decimal | None:
        if value is None:
            return None
        try:
            number = value if isinstance(value, Decimal) else Decimal(str(value))
        except InvalidOperation:
            raise _UnsoldError(f"`{name}` is {value!r:.40}, which is no number") from None
        if not number.is_finite() or number < 0:
            raise _UnsoldError(f"`{name}` is {number}: the price is not known")
        return number

    def _per_million(self, name: str, value: Decimal) -> str:
        price = Fraction(value) * _MILLION * self._multiplier
        for places in range(_PLACES_MAX + 1):
            scaled = price * 10**places
            if scaled.denominator == 1:
                whole, part = divmod(scaled.numerator, 10**places)
                return f"{whole}.{part:0{places}d}" if places else str(whole)
        raise _UnsoldError(f"`{name}` has more than {_PLACES_MAX} decimals for a million tokens")


def _read_litellm(entry: Mapping[str, Any], prices: _Prices) -> dict[str, Any]:
    mode = entry.get("mode", "chat")
    if mode not in _ENDPOINTS:
        raise _UnsoldError(f"its mode is {mode!r:.40}, which is not sold by the token")
    endpoint = _ENDPOINTS[mode]
    found = {name: value for name, value in entry.items() if "cost" in name or "pricing" in name}
    names = dict(_LITELLM)
    needed = {"input", "output"}
    if endpoint == "embeddings":
        needed = {"input"}
        if not found.get("output_cost_per_token"):
            found.pop("output_cost_per_token", None)
    row: dict[str, Any] = {} if endpoint == "*" else {"endpoint": endpoint}
    row |= prices.read(found, names, needed)
    row |= _tokens("context_length", entry.get("max_input_tokens"))
    row |= _tokens("max_output", entry.get("max_output_tokens"))
    if entry.get("supports_vision") is True:
        row["modalities"] = ["text", "image"]
    return row


def _read_openrouter(entry: Mapping[str, Any], prices: _Prices) -> dict[str, Any]:
    found = entry.get("pricing")
    if not isinstance(found, dict):
        raise _UnsoldError("`pricing` is missing")
    row: dict[str, Any] = prices.read(found, _OPENROUTER, {"input", "output"})
    row |= _tokens("context_length", entry.get("context_length"))
    provider = entry.get("top_provider")
    if isinstance(provider, dict):
        row |= _tokens("max_output", provider.get("max_completion_tokens"))
    architecture = entry.get("architecture")
    inputs = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    known = [one for one in _MODALITIES if isinstance(inputs, list) and one in inputs]
    if known not in ([], ["text"]):
        row["modalities"] = known
    return row


def _tokens(field: str, value: Any) -> dict[str, int]:
    """Return a number of tokens for display, if it is one."""
    is_whole = isinstance(value, Decimal) and value == value.to_integral_value()
    return {field: int(value)} if is_whole and 1 <= value <= 10**9 else {}
