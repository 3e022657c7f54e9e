"""The one spelling of a record: RFC 8785 JSON without floats, and its hash (pure).

Amounts are decimal strings, times are integers of milliseconds, bytes are 0x-prefixed hexadecimal.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from channel.limits import AUDIT_TEXT_CHARS_MAX, JSON_DEPTH_MAX, SAFE_INTEGER_MAX

__all__ = ["AMOUNTS", "ZERO_HASH", "canonical", "cut_text", "hash_record", "milliseconds", "plain"]

AMOUNTS: Final = frozenset(
    {
        "accepted",
        "allowed",
        "amount",
        "asked",
        "cumulative",
        "delta",
        "deposit",
        "left",
        "lost",
        "received",
        "request_max",
        "request_total",
        "returned",
        "settled",
        "signed",
        "spent",
        "total",
    }
)
"""Members that hold base units, at any depth: they are written as decimal strings."""
ZERO_HASH: Final = bytes(32)
"""What the first record holds in place of a hash."""

_LEAF: Final = b"\x00"
_encode: Final = msgspec.json.Encoder(order="sorted").encode
"""Equal to RFC 8785 for values that `plain` returns; a test compares it with `rfc8785`."""


def canonical(record: Mapping[str, Any]) -> bytes:
    """Return the spelling of a record whose values `plain` made."""
    return _encode(record)


def hash_record(text: bytes) -> bytes:
    """Return the hash of a record: that of a leaf in the Merkle tree of RFC 6962."""
    return sha256(_LEAF + text).digest()


def milliseconds(at: float) -> int:
    """Return Unix seconds as the integer that a record holds."""
    return round(at * 1000)


def cut_text(text: str, chars_max: int = AUDIT_TEXT_CHARS_MAX) -> str:
    """Return text that can be stored: valid Unicode, and at most so long."""
    if len(text) > chars_max:
        text = text[: chars_max - 1] + "…"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def plain(value: Any, name: str = "", depth: int = 0) -> Any:
    """Return a value as it is written in a record; text that is too long is cut.

    Raises:
        TypeError: A float, an object that JSON lacks, a key that is not ASCII text, or too deep.
    """
    kind = type(value)
    if kind is str or isinstance(value, str):
        is_whole = len(value) <= AUDIT_TEXT_CHARS_MAX and value.isascii()  # as nearly all are
        return value if is_whole else cut_text(value)
    if value is None or kind is bool:
        return value
    if kind is int or isinstance(value, int):
        is_amount = name in AMOUNTS or not -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX
        return str(value) if is_amount else value
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if depth > JSON_DEPTH_MAX:
        raise TypeError(f"`{name}` is nested deeper than {JSON_DEPTH_MAX} levels")
    if kind is dict or isinstance(value, Mapping):
        return {_key(key): plain(inner, key, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, name, depth + 1) for inner in value]
    raise TypeError(
        f"`{name}`: expected text, an integer, a list or an object, found a "
        f"{type(value).__name__}; write times as milliseconds and amounts as decimal strings"
    )


def _key(key: object) -> str:
    if type(key) is str and key.isascii():
        return key
    if not isinstance(key, str) or not key.isascii():
        raise TypeError(f"expected a key of ASCII text, found {key!r}")
    return key
