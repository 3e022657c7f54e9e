"""The list of models with their prices, as OpenAI's clients and OpenRouter read it (pure).

It has OpenAI's fields (`id`, `object`, `created`, `owned_by`), those of OpenRouter's list of
providers, and `prices`: what each endpoint charges, exactly as its challenges state it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import msgspec

from channel.tariff import Rate, Tariff
from channel.types import TokenUnit
from channel.wire.tariff import tariff_object
from mpp_session.prices.table import Listing, PriceTable
from mpp_session.settings import describe_tariff

__all__ = ["ServedModel", "list_models", "per_token"]

_PRICING: Final = (
    ("input_cache_read", "cached_input_token"),
    ("input_cache_write", "cache_write_token"),
    ("internal_reasoning", "reasoning_token"),
)
"""OpenRouter's names of the prices that a tariff may leave out, and our kinds of usage."""
_EMBEDDINGS: Final = "embeddings"


class ServedModel(msgspec.Struct, frozen=True):
    """A model, as the model server lists it."""

    id: str
    created: int | None = None
    owned_by: str | None = None


def list_models(
    table: PriceTable,
    endpoints: Sequence[str],
    served: Sequence[ServedModel],
    *,
    at: float,
    created: int,
    owner: str,
    parameters: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return an entry for each model that is sold, in the order of the table.

    Args:
        table: Its rows name models, or patterns for those that are served.
        endpoints: The endpoints that are sold.
        served: The model server's own list.
        at: The time for which prices are listed, in seconds since 1970.
        created: For a model of which the model server does not say it.
        owner: As `created`.
        parameters: The sampling parameters that reach the model server.
    """
    known = {one.id: one for one in served}
    entries = []
    for name in _names(table, endpoints, served, at):
        listings = {
            endpoint: found
            for endpoint in endpoints
            if (found := table.find(endpoint, name, at)) is not None
        }
        if listings:
            model = known.get(name) or ServedModel(name)
            entry = {
                "id": name,
                "object": "model",
                "created": created if model.created is None else model.created,
                "owned_by": model.owned_by or owner,
            }
            entries.append(entry | _describe(name, listings, table.unit, parameters))
    return entries


def _names(
    table: PriceTable, endpoints: Sequence[str], served: Sequence[ServedModel], at: float
) -> Iterator[str]:
    """Yield the rows' names, and in place of a pattern the served ones that fit; each once."""
    seen = set()
    for listing in table.listings:
        if listing.row.path is not None or not listing.counts_at(at):
            continue
        names = [one.id for one in served] if listing.is_pattern else [listing.row.model]
        for name in names:
            is_covered = any(listing.covers(endpoint, name) for endpoint in endpoints)
            if name not in seen and is_covered:
                seen.add(name)
                yield name


def _describe(
    name: str,
    listings: Mapping[str, Listing],
    unit: TokenUnit | None,
    parameters: Collection[str],
) -> dict[str, Any]:
    first = next(iter(listings.values()))
    row = first.row
    entry: dict[str, Any] = {"name": name}
    if row.description is not None:
        entry["description"] = row.description
    if row.context_length is not None:
        entry["context_length"] = row.context_length
    if row.max_output is not None:
        entry["max_output_length"] = row.max_output
    entry["input_modalities"] = list(row.modalities)
    entry["output_modalities"] = ["embeddings" if [*listings] == [_EMBEDDINGS] else "text"]
    if unit is not None:
        entry["pricing"] = _pricing(first.tariff, unit)
    if parameters:
        entry["supported_sampling_parameters"] = sorted(parameters)
    entry["prices"] = [
        {
            "endpoint": endpoint,
            "display": describe_tariff(one.tariff, unit),
            "tariff": tariff_object(one.tariff),
        }
        for endpoint, one in listings.items()
    ]
    return entry


def _pricing(tariff: Tariff, unit: TokenUnit) -> dict[str, str]:
    """Return OpenRouter's form: whole tokens for one unit, as decimal strings.

    A kind that the tariff prices as the wider one is left out: then it costs what that costs. A
    tariff without a price for the prompt does not charge it, which is the one 0 beside `request`.
    """
    rates = {rate.kind: rate for rate in tariff.rates}
    prompt = rates.get("input_token")
    completion = None if tariff.main is prompt else tariff.main
    prices = {
        "prompt": "0" if prompt is None else per_token(prompt, unit),
        "completion": "0" if completion is None else per_token(completion, unit),
        "request": "0",
    }
    prices |= {name: per_token(rates[kind], unit) for name, kind in _PRICING if kind in rates}
    return prices


def per_token(rate: Rate, unit: TokenUnit) -> str:
    """Return a price of one unit as an exact decimal of the whole token: `0.0000004`.

    A rate whose decimal has no end is rounded up at the 30th place: never below the price.
    """
    price = Fraction(rate.amount, rate.per * 10**unit.decimals)
    places = 0
    while places < _PLACES_MAX and (price * 10**places).denominator != 1:
        places += 1
    scaled = price * 10**places
    whole, part = divmod(-(-scaled.numerator // scaled.denominator), 10**places)
    return f"{whole}.{part:0{places}d}" if places else str(whole)


_PLACES_MAX: Final = 30
