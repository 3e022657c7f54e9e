"""The token by which an agent names itself to the wallet, in the fields that SDKs send keys in."""

import base64
import binascii
from typing import Final

from starlette.datastructures import Headers

from channel.errors import MppSessionError

__all__ = ["TOKEN_PREFIX", "TokenError", "take_token"]

TOKEN_PREFIX: Final = "mpp_"  # noqa: S105 -- how every token begins

_BEARER: Final = ("proxy-authorization", "authorization")
_KEYS: Final = ("x-api-key", "api-key", "x-goog-api-key")
"""Of the SDKs of Anthropic, Azure and Google."""


class TokenError(MppSessionError):
    """The request has no token of a wallet, or several."""


def take_token(headers: Headers) -> tuple[str | None, frozenset[str]]:
    """Return the request's token, and the fields that hold it and must not be passed on.

    `Proxy-Authorization` is of this proxy alone, and never passed on. In `Basic`, as a proxy's URL
    gives it (`http://agent:TOKEN@127.0.0.1:8402`), the password is the token.

    Raises:
        TokenError: The fields hold different tokens.
    """
    found: dict[str, str] = {}
    for name in _BEARER:
        for value in headers.getlist(name):
            token = _read_authorization(value)
            if token.startswith(TOKEN_PREFIX):
                found[name] = _same(found, token)
    for name in _KEYS:
        for value in headers.getlist(name):
            if value.startswith(TOKEN_PREFIX):
                found[name] = _same(found, value)
    return next(iter(found.values()), None), frozenset({*found, "proxy-authorization"})


def _same(found: dict[str, str], token: str) -> str:
    if any(other != token for other in found.values()):
        raise TokenError("expected one token, found two that differ")
    return token


def _read_authorization(value: str) -> str:
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            text = base64.b64decode(rest.strip(), validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            return ""
        return text.partition(":")[2] or text
    return ""
