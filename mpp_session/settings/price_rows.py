"""Reads the `[[prices]]` tables of a file: all of them, or an error that names row and field."""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from channel.errors import ConfigError
from mpp_session.settings.serving import PriceRow
from mpp_session.settings.values import decode_value

__all__ = ["name_row", "read_price_file", "read_price_rows"]


def read_price_rows(tables: Any) -> tuple[PriceRow, ...]:
    """Return checked rows.

    Raises:
        ConfigError: They are no array of tables, or one of them is not valid.
    """
    if not isinstance(tables, Sequence) or isinstance(tables, str) or not tables:
        raise ConfigError("`prices`: expected an array of tables, each under `[[prices]]`")
    return tuple(_read_row(number, table) for number, table in enumerate(tables, 1))


def read_price_file(path: Path) -> tuple[PriceRow, ...]:
    """Return the rows of a file that holds nothing else.

    Raises:
        ConfigError: It cannot be read, is not TOML, or holds something else or nothing.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"`prices.file`: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    others = tables.keys() - {"prices"}
    if others:
        raise ConfigError(
            f"{path}: expected `[[prices]]` tables only, found `{min(others)}`: put other settings "
            "into the file that names this one"
        )
    try:
        return read_price_rows(tables.get("prices"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def name_row(number: int, row: PriceRow) -> str:
    """Return how errors name a row: by its place, counted from 1, and its model or path."""
    return f"`prices` row {number} ({row.sold_path or f'model {row.model}'})"


def _read_row(number: int, table: Any) -> PriceRow:
    if not isinstance(table, dict):
        raise ConfigError(
            f"`prices` row {number} (model ?): expected a table under `[[prices]]`, "
            f"found {table!r:.80}"
        )
    model, path = table.get("model", "*"), table.get("path")
    where = f"`prices` row {number} ({f'model {model!s:.80}' if path is None else f'{path!s:.80}'})"
    unknown = sorted(table.keys() - PriceRow.__struct_fields__)
    if unknown:
        near = difflib.get_close_matches(unknown[0], PriceRow.__struct_fields__, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(f"{where}: unknown field `{unknown[0]}`{hint}")
    try:
        return msgspec.convert(table, PriceRow, dec_hook=decode_value)
    except msgspec.ValidationError as error:
        text, _, field = str(error).rpartition(" - at `$.")
        raise ConfigError(
            f"{where}: `{field.rstrip('`')}`: {text}" if text else f"{where}: {error}"
        ) from None
