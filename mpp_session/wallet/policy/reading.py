"""Reads the text of a policy file; an error names the path of what is wrong, such as `rule[2].cap`.

Nothing is guessed: an unknown key, a number where an amount is expected and an empty list are
errors, because each of them could be taken for "no limit".
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from channel.errors import ConfigError
from mpp_session.wallet.policy.file import FORMS, PolicyFile

__all__ = ["read_file", "read_text"]

_MAY_BE_EMPTY: Final = frozenset({"may_approve", "rule", "warn_at"})
_IS_DECIMAL: Final = "warn_at"
_FILE: Final = inspect.type_info(PolicyFile)


def read_file(path: Path) -> str:
    """Return the file's text.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def read_text(text: str, source: str) -> PolicyFile:
    """Return what the text states. `source` names it in errors.

    Raises:
        ConfigError: It is not TOML, or a key or a value is wrong; one line with its path.
    """
    try:
        tables = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    for complaint in _complaints(tables, _FILE, ""):
        where = _where(complaint[0], tables)
        raise ConfigError(f"{source}: {where}: {complaint[1]}")
    try:
        return msgspec.convert(tables, PolicyFile)
    except msgspec.ValidationError as error:
        said, _, path = str(error).rpartition(" - at `$")
        where = _where(path.removesuffix("`").lstrip("."), tables) if said else "the file"
        raise ConfigError(f"{source}: {where}: {_reword(said or str(error))}") from None


def _complaints(value: Any, kind: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield what msgspec would not refuse, or not name: unknown keys, numbers, empty lists."""
    key = path.rpartition(".")[2].partition("[")[0]
    if isinstance(value, Decimal) and key != _IS_DECIMAL:
        yield path, f'{value} is a number: write amounts as text, such as "{value} usdc"'
    elif isinstance(value, list):
        if not value and key not in _MAY_BE_EMPTY:
            yield path, "[] matches nothing: name what is meant, or leave the key out"
        inner = _member(kind, (inspect.VarTupleType,))
        for place, one in enumerate(value):
            yield from _complaints(one, getattr(inner, "item_type", None), f"{path}[{place}]")
    elif isinstance(value, dict):
        yield from _of_table(value, kind, path)


def _of_table(table: Mapping[str, Any], kind: Any, path: str) -> Iterator[tuple[str, str]]:
    found = _member(kind, (inspect.StructType, inspect.DictType))
    if isinstance(found, inspect.DictType):
        for name, inner in table.items():
            yield from _complaints(inner, found.value_type, _join(path, name))
    elif isinstance(found, inspect.StructType):
        fields = {field.encode_name: field for field in found.fields}
        for name, inner in table.items():
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
                hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(fields)}"
                yield _join(path, name), f"unknown key; {hint}"
            else:
                yield from _complaints(inner, fields[name].type, _join(path, name))
        for name, field in fields.items():
            if field.required and name not in table:
                yield _join(path, name), "missing"
            # msgspec names no key of a mapping in its errors, so each entry is read by itself
            if isinstance(table.get(name), dict) and _is_named(field.type):
                yield from _of_entries(table[name], field.type, _join(path, name))


def _is_named(kind: Any) -> bool:
    found = _member(kind, (inspect.DictType,))
    return found is not None and isinstance(found.value_type, inspect.StructType)


def _of_entries(table: Mapping[str, Any], kind: Any, path: str) -> Iterator[tuple[str, str]]:
    inner = _member(kind, (inspect.DictType,)).value_type.cls
    for name, value in table.items():
        try:
            msgspec.convert(value, inner)
        except msgspec.ValidationError as error:
            said, _, rest = str(error).rpartition(" - at `$")
            yield f"{_join(path, name)}{rest.removesuffix('`')}", _reword(said or str(error))


def _reword(said: str) -> str:
    """Return what msgspec expects, in words where it gives a pattern."""
    words = next((words for form, words in FORMS.items() if f"{form!r}" in said), None)
    if said.startswith("Expected `str") and said.endswith("got `int`"):
        words = 'text, found a number: write it in quotes, an amount as "5.00 usdc"'
    return said if words is None else f"expected {words}"


def _member(kind: Any, wanted: tuple[type, ...]) -> Any:
    """Return the part of a type that a list or a table can be."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        return next((found for one in kind.types if (found := _member(one, wanted))), None)
    return kind if isinstance(kind, wanted) else None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _where(path: str, tables: Mapping[str, Any]) -> str:
    """Return a path for people: with the name of the rule, since places count from 0."""
    head, _, rest = path.partition("]")
    place = head.removeprefix("rule[")
    if rest and place.isdigit():
        rule = tables["rule"][int(place)]
        if isinstance(rule, dict) and isinstance(rule.get("name"), str):
            return f"`{path}` (rule {rule['name']:.64})"
    return f"`{path}`"
