"""Prompts without a template: a text, tokens as numbers, or a list of either (pure)."""

from collections.abc import Sequence
from typing import Final

import msgspec

from channel.errors import BadRequestError
from mpp_session.gateway.endpoints.fields import Fields

__all__ = ["Prompts", "read_prompts"]

_Token = int
_PROMPTS: Final = msgspec.json.Decoder(str | list[str | int | list[_Token]])


class Prompts(msgspec.Struct, frozen=True):
    """The prompts of one request."""

    count: int
    texts: Sequence[str]
    tokens: int
    """Those that are numbers."""


def read_prompts(fields: Fields, name: str) -> Prompts:
    """Return the prompts in a field.

    Raises:
        BadRequestError: It holds none, or anything else.
    """
    expected = f"`{name}` must be a text, a list of tokens, or a list of one or more of either."
    try:
        value = _PROMPTS.decode(fields.get(name, b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError(expected) from None
    if isinstance(value, str):
        return Prompts(1, [value], 0)
    if value and all(isinstance(one, int) for one in value):
        return Prompts(1, (), len(value))
    if not value or any(isinstance(one, int) for one in value):  # some servers join a mixed list
        raise BadRequestError(expected)
    texts = [one for one in value if isinstance(one, str)]
    return Prompts(len(value), texts, sum(len(one) for one in value if isinstance(one, list)))
