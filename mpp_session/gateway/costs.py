"""Writes a request's cost into the usage record of its answer, as OpenRouter does (pure).

The cost is a number of whole tokens, such as 0.000242 dollars: exact, and without an exponent.
"""

from typing import Final

import msgspec

from channel.tariff import Usage
from channel.types import TokenUnit

__all__ = ["format_whole", "with_cost"]

_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def format_whole(amount: int, decimals: int) -> str:
    """Return base units as an exact decimal of the whole token: 242 with 6 decimals, `0.000242`."""
    whole, part = divmod(amount, 10**decimals)
    digits = f"{part:0{decimals}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def with_cost(answer: bytes, cost: int, usage: Usage, unit: TokenUnit | None) -> bytes:
    """Return an answer, or the last chunk of a stream, with its cost in its `usage`.

    `usage.cost` is in whole tokens. `usage.cost_details` has the same in base units (`amount`, a
    text as on the wire), the token's symbol (`currency`), and the units that were charged, by kind.
    Without `unit` the token's decimals are not known, and the base units stand alone.

    Args:
        answer: A JSON object. All else in it stays as it is, number for number.
        cost: In base units.
        usage: What was charged, by kind.
        unit: The token's symbol and decimals.

    Raises:
        msgspec.DecodeError: It is not a JSON object.
    """
    fields = _FIELDS.decode(answer)
    try:
        record = _FIELDS.decode(fields.get("usage", b"{}"))
    except msgspec.ValidationError:  # null, or no object
        record = {}
    details: dict[str, object] = {"amount": str(cost), "usage": dict(usage)}
    if unit is not None:
        record["cost"] = msgspec.Raw(format_whole(cost, unit.decimals).encode())
        details["currency"] = unit.symbol
    record["cost_details"] = msgspec.Raw(msgspec.json.encode(details))
    fields["usage"] = msgspec.Raw(msgspec.json.encode(record))
    return msgspec.json.encode(fields)
