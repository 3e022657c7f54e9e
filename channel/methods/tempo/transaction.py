"""Reads the calls of a signed Tempo transaction (type 0x76).

The payer signs it and the server sends it. Nothing in it is trusted: what it does counts only when
the escrow's events show it. It is read so that a transaction which cannot open or top up the
channel is refused before it is sent.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from channel.errors import WireError
from channel.types import Address

__all__ = ["Call", "read_calls"]

_TYPE: Final = 0x76
_FIELDS: Final = (14, 15)
"""With the sender's signature; an authorization of keys before it is optional."""
_CALLS: Final = 4
_CALL_FIELDS: Final = 3
_DEPTH: Final = 8
_ADDRESS_BYTES: Final = 20
_SHORT: Final = 55
"""The longest RLP item whose length stands in its first byte."""
_STRING: Final = 0x80
_LIST: Final = 0xC0

_Item: TypeAlias = "bytes | list[_Item]"


class Call(msgspec.Struct, frozen=True):
    """One of the calls that a transaction makes, in order."""

    to: Address
    data: bytes


def read_calls(raw: bytes) -> tuple[int, Sequence[Call]]:
    """Return the chain id and the calls of a signed transaction.

    Calls that create a contract are left out.

    Raises:
        WireError: Not a signed transaction of type 0x76.
    """
    if raw[:1] != bytes((_TYPE,)):
        raise WireError("not a transaction of type 0x76")
    item, end = _read_item(raw, 1, len(raw), 0)
    if end != len(raw) or not isinstance(item, list):
        raise WireError("not the RLP of one transaction")
    if len(item) not in _FIELDS or not isinstance(item[0], bytes):
        raise WireError("not a signed transaction of type 0x76")
    listed = item[_CALLS]
    if not isinstance(listed, list):
        raise WireError("a transaction without calls")
    return int.from_bytes(item[0], "big"), [
        Call(Address(to), data) for to, data in map(_read_call, listed) if len(to) == _ADDRESS_BYTES
    ]


def _read_call(item: _Item) -> tuple[bytes, bytes]:
    if isinstance(item, list) and len(item) == _CALL_FIELDS:
        to, _, data = item
        if isinstance(to, bytes) and isinstance(data, bytes):
            return to, data
    raise WireError("a malformed call in a transaction")


def _read_item(raw: bytes, start: int, end: int, depth: int) -> tuple[_Item, int]:
    """Return the RLP item at `start` and where it ends, at most `end`."""
    if start >= end or depth > _DEPTH:
        raise WireError("not the RLP of one transaction")
    head = raw[start]
    if head < _STRING:
        return raw[start : start + 1], start + 1
    base = _LIST if head >= _LIST else _STRING
    size, at = head - base, start + 1
    if size > _SHORT:
        digits = size - _SHORT
        size = int.from_bytes(raw[at : at + digits], "big")
        at += digits
    stop = at + size
    if stop > end:
        raise WireError("a transaction that is cut off")
    if base == _STRING:
        return raw[at:stop], stop
    items: list[_Item] = []
    while at < stop:
        item, at = _read_item(raw, at, stop, depth + 1)
        items.append(item)
    return items, stop
