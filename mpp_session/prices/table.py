"""The table of prices: which row a request is sold under, and its tariff (pure).

The first row counts that fits endpoint, model and time. A request that no row fits is not sold.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from channel.errors import ConfigError
from channel.limits import MODEL_CHARS_MAX
from channel.tariff import Tariff
from channel.types import TokenUnit
from mpp_session.settings import PriceRow, describe_tariff
from mpp_session.settings.price_rows import name_row

__all__ = ["Listing", "PriceTable", "matches"]

_SHOWN_MAX: Final = 5
_KNOWN: Final = 4096


class Listing(msgspec.Struct, frozen=True):
    """A row of the table, and its price in base units of the token."""

    row: PriceRow
    tariff: Tariff

    @property
    def is_pattern(self) -> bool:
        """Whether it prices the models of a pattern, and not one model by its name."""
        return self.row.path is None and "*" in self.row.model

    @property
    def name(self) -> str:
        """What it prices, for people: a model, a pattern of models, or a path."""
        return self.row.sold_path or self.row.model

    def is_for(self, endpoint: str) -> bool:
        """Whether it prices this endpoint; a path of another server is one of its own."""
        path = self.row.sold_path
        return self.row.endpoint in ("*", endpoint) if path is None else path == endpoint

    def covers(self, endpoint: str, model: str) -> bool:
        """Whether it prices this endpoint and model; a pattern is covered by a wider one."""
        return self.is_for(endpoint) and matches(self.row.model, model)

    def counts_at(self, at: float) -> bool:
        """Whether it counts at this time, in seconds since 1970."""
        return self.row.valid_from is None or self.row.valid_from.timestamp() <= at


class PriceTable:
    """All prices of a gateway. An instance exists only if every row is valid."""

    def __init__(self, rows: Sequence[PriceRow], unit: TokenUnit | None) -> None:
        """Compute the tariffs, in base units of the token with this unit.

        Raises:
            ConfigError: There is no row, a price does not fit the token, or a row is never used
                because one before it fits the same requests. The error names row and field.
        """
        if not rows:
            raise ConfigError("`prices`: no row: nothing would be sold")
        self.unit = unit
        self.listings = tuple(
            Listing(row, _tariff(number, row, unit, is_short=len(rows) == 1))
            for number, row in enumerate(rows, 1)
        )
        self._known: dict[tuple[str, str], tuple[Listing, ...]] = {}
        """The listings of models that were asked for lately."""
        self._require_use()

    def _require_use(self) -> None:
        patterns: list[tuple[int, Listing]] = []
        literals: dict[str, list[tuple[int, Listing]]] = {}
        for number, later in enumerate(self.listings, 1):
            same = literals.setdefault(later.name, [])
            for before, earlier in (*patterns, *same):
                if _hides(earlier, later):
                    raise ConfigError(
                        f"{name_row(number, later.row)} is never used, because row {before} comes "
                        "first and prices the same requests: put the narrower one first, or "
                        "remove one"
                    )
            (patterns if later.is_pattern else same).append((number, later))

    def describe(self) -> str:
        """Return the prices as people read them, of the first few models."""
        shown = self.listings[:_SHOWN_MAX]
        if len(self.listings) == 1 and shown[0].name == "*":
            return describe_tariff(shown[0].tariff, self.unit)
        parts = [f"{one.name}: {describe_tariff(one.tariff, self.unit)}" for one in shown]
        left = len(self.listings) - len(shown)
        return "; ".join([*parts, f"{left} more"] if left else parts)

    def find(self, endpoint: str, model: str, at: float) -> Listing | None:
        """Return the price of a model's requests at a time; None if it is not sold.

        `model` is the name in the request; empty if it names none, which only `*` prices.
        """
        if len(model) > MODEL_CHARS_MAX:
            return None
        fitting = self._known.get((endpoint, model))
        if fitting is None:
            fitting = tuple(one for one in self.listings if one.covers(endpoint, model))
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[endpoint, model] = fitting
        return next((one for one in fitting if one.counts_at(at)), None)

    def at(self, endpoint: str, at: float) -> list[Listing]:
        """Return the listings of an endpoint that count at a time, in order."""
        return [one for one in self.listings if one.is_for(endpoint) and one.counts_at(at)]

    def only(self, endpoint: str) -> Listing | None:
        """Return the price of an endpoint that has one for all models and times; or None."""
        fitting = (one for one in self.listings if one.is_for(endpoint))
        first = next(fitting, None)
        is_only = first is not None and first.row.model == "*" and first.row.valid_from is None
        return first if is_only else None

    def next_change(self, after: float) -> float:
        """Return when the next row begins to count, in seconds since 1970, or infinity."""
        times = [
            one.row.valid_from.timestamp()
            for one in self.listings
            if one.row.valid_from is not None and not one.counts_at(after)
        ]
        return min(times, default=math.inf)

    def name_of(self, model: str) -> str | None:
        """Return the name or pattern of the first row for a model or path; None if none is."""
        return next(
            (
                one.name
                for one in self.listings
                if (matches(one.name, model) if one.row.path is None else one.name == model)
            ),
            None,
        )

    def paths(self) -> tuple[str, ...]:
        """Return methods and paths of another server that have a price at any time, in order."""
        paths = (one.row.sold_path for one in self.listings)
        return tuple(dict.fromkeys(path for path in paths if path is not None))

    def sells_models(self) -> bool:
        """Whether any row is for models."""
        return any(one.row.path is None for one in self.listings)

    def models(self, endpoint: str, at: float) -> tuple[str, ...]:
        """Return the names and patterns that are sold under an endpoint at a time."""
        return tuple(dict.fromkeys(one.row.model for one in self.at(endpoint, at)))


def _tariff(number: int, row: PriceRow, unit: TokenUnit | None, *, is_short: bool) -> Tariff:
    try:
        return row.tariff(unit)
    except ConfigError as error:
        if is_short and row.path is None and row.model == "*":  # `[price]`, as the error says
            raise
        text = str(error).replace("`price.", "`").removeprefix("`price`: ")
        raise ConfigError(f"{name_row(number, row)}: {text}") from None


def _hides(earlier: Listing, later: Listing) -> bool:
    first, second = earlier.row, later.row
    if first.path is not None or second.path is not None:
        is_same = first.sold_path == second.sold_path
        return is_same and _begins_before(first, second)
    return (
        _begins_before(first, second)
        and first.endpoint in ("*", second.endpoint)
        and matches(first.model, second.model)
    )


def _begins_before(first: PriceRow, second: PriceRow) -> bool:
    return first.valid_from is None or (
        second.valid_from is not None and first.valid_from <= second.valid_from
    )


def matches(pattern: str, model: str) -> bool:
    """Whether a name fits a pattern, in which `*` stands for any characters.

    The parts between the stars are looked for one by one, so a long name costs no more than its
    length for each part.
    """
    first, *others = pattern.split("*")
    if not others:
        return model == pattern
    if not model.startswith(first):
        return False
    at = len(first)
    for part in others[:-1]:
        found = model.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return model.endswith(others[-1]) and at + len(others[-1]) <= len(model)
