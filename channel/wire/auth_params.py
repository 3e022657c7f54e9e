"""Parses and formats the auth-param grammar of RFC 9110 sections 5.6 and 11.

One field line may hold several challenges of several schemes, joined by commas that also separate
the parameters inside each; only a tokenizer can tell them apart (CORE-08, CORE-09, F-08).
"""

import re
from collections.abc import Iterator, Mapping

import msgspec

from channel.errors import WireError

__all__ = ["AuthChallenge", "format_auth_params", "parse_auth_challenges"]

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_BEYOND = r"\x80-\ud7ff\ue000-\U0010ffff"  # obs-text, already decoded; no lone surrogates
_QUOTED = rf'"(?:[\t \x21\x23-\x5b\x5d-\x7e{_BEYOND}]|\\[\t\x20-\x7e{_BEYOND}])*+"'
_SCHEME = re.compile(rf"({_NAME})(?=[ \t,]|\Z)")
_PARAM = re.compile(rf"({_NAME})[ \t]*+=[ \t]*+({_NAME}|{_QUOTED})[ \t]*+(?=,|\Z)")
_TOKEN68 = re.compile(r"[ \t]++([A-Za-z0-9\-._~+/]++=*+)[ \t]*+(?=,|\Z)")
_END = re.compile(r"[ \t]*+(?=,|\Z)")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LATIN1_MAX = 0xFF


class AuthChallenge(msgspec.Struct, frozen=True):
    """One challenge of any scheme, as the field line spells it."""

    scheme: str
    """Lowercase."""
    params: dict[str, str]
    """Keyed by lowercase name; empty when the scheme has a token68 or nothing after it."""
    token68: str | None = None


def parse_auth_challenges(line: str) -> tuple[AuthChallenge, ...]:
    """Return the challenges of one `WWW-Authenticate` field line, in order.

    Raises:
        WireError: Malformed, an unterminated quote, or a repeated parameter.
    """
    return tuple(_scan(line))


def _scan(line: str) -> Iterator[AuthChallenge]:
    position = _skip(line, 0)
    while position < len(line):
        match = _SCHEME.match(line, position)
        if match is None:
            raise WireError("not an authentication challenge")
        scheme, position = match[1].lower(), match.end()
        params, after = _scan_params(line, position)
        token68 = None if params else _TOKEN68.match(line, position)
        if token68 is not None:
            after = _skip(line, token68.end())
        elif not params and _END.match(line, position) is None:
            raise WireError("neither parameters nor a token after an authentication scheme")
        yield AuthChallenge(scheme, params, None if token68 is None else token68[1])
        position = after


def _scan_params(line: str, position: int) -> tuple[dict[str, str], int]:
    params: dict[str, str] = {}
    position = _skip(line, position)
    while (match := _PARAM.match(line, position)) is not None:
        name = match[1].lower()
        if name in params:
            raise WireError("an auth-param is named twice")
        params[name] = _unquote(match[2]) if match[2][0] == '"' else match[2]
        position = _skip(line, match.end())
    return params, position


def _skip(line: str, position: int) -> int:
    while position < len(line) and line[position] in " \t,":
        position += 1
    return position


def _unquote(quoted: str) -> str:
    inner = quoted[1:-1]
    if "\\" not in inner:
        return inner
    text = _ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if len(m[1]) > 1 else m[1], inner)
    if _CONTROL.search(text.replace("\t", "")) is not None:  # an escape may encode one
        raise WireError("a control character in a header value")
    try:  # two escapes may be the halves of one character
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise WireError("a lone surrogate is not text") from error


def format_auth_params(params: Mapping[str, str]) -> str:
    r"""Return `name="value"` pairs joined by commas, every value quoted.

    Escapes quotes and backslashes, and writes characters beyond Latin-1 as `\uXXXX` (F-09).

    Raises:
        WireError: A control character, CR and LF included, or a lone surrogate.
    """
    return ", ".join(f'{name}="{_escape(value)}"' for name, value in params.items())


def _escape(value: str) -> str:
    if _CONTROL.search(value) is not None:
        raise WireError("a control character in a header value")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if escaped.isascii():
        return escaped
    return "".join(c if ord(c) <= _LATIN1_MAX else _escape_wide(c) for c in escaped)


def _escape_wide(character: str) -> str:
    try:
        units = character.encode("utf-16-be")
    except UnicodeEncodeError as error:
        raise WireError("a lone surrogate is not text") from error
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
