"""Finds the paths that a framework may take another spelling for: `//Joke/` for `/joke` (O-40).

Frameworks differ in what they ignore: case, doubled slashes, a final slash, dot segments, a second
layer of percent-encoding, the host of a whole URL. The gate does not know the framework, so it
reads a path in every way that a framework, or a server behind it, might.
"""

import re
from collections.abc import Iterator
from typing import Final
from unicodedata import normalize
from urllib.parse import unquote_to_bytes

from channel.limits import PATH_DECODINGS_MAX, UNICODE_PATH_CHARS_MAX

__all__ = ["Unreadable", "is_regular", "read_path"]

_PLAIN: Final = re.compile(r"(?:/[a-z0-9_~:@!$&'()*+,=-]+(?:\.[a-z0-9_~-]+)*)+/?|/")
_IRREGULAR: Final = re.compile(r"//|/\.{1,2}(?:/|\Z)|[\\%\x00-\x1f\x7f]")
_OVERLONG: Final = re.compile(
    rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}"
)
_HOST: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[^/]*")
_SLASHES: Final = re.compile(r"/{2,}")
_PARAMETERS: Final = re.compile(r";[^/]*")
_PADDING: Final = re.compile(r"(?<=[^/.\s\x00-\x1f])[.\s\x00-\x1f]+(?=/|\Z)|(?<=/)[\s\x00-\x1f]+")
_END: Final = re.compile(r"[?#\x00]")


class Unreadable(ValueError):  # noqa: N818 -- the caller's condition, never shown
    """A path with so many layers of encoding, or odd characters, that no client sends it."""


def read_path(path: str, raw_path: bytes | None = None) -> frozenset[str]:
    """Return every path, in lower case, that a framework may take this one for.

    Args:
        path: As the server decoded it.
        raw_path: As received, if the server provides it. Also read if the server could not decode
            all of it.

    Raises:
        Unreadable: It exceeds the bounds of `channel.limits`.
    """
    if _PLAIN.fullmatch(path):
        return frozenset((path,))
    found = _read(path)
    if raw_path is not None and "\ufffd" in path:
        found |= _read(raw_path.decode("latin-1"))
    return found


def is_regular(path: str) -> bool:
    """Whether a file system or another server would read no part of the path differently."""
    return _IRREGULAR.search(path) is None


def _read(path: str) -> frozenset[str]:
    text = _decode(path).replace("\\", "/")
    whole = {text, _END.split(text, maxsplit=1)[0]}
    whole |= {_HOST.sub("", one, count=1) for one in whole if _HOST.match(one)}
    return frozenset(reading for one in whole for reading in _resolve(one))


def _decode(path: str) -> str:
    """Remove every layer of percent-encoding, overlong UTF-8, compatibility forms, and case."""
    for _ in range(PATH_DECODINGS_MAX):
        octets = unquote_to_bytes(path.encode("utf-8", "surrogatepass"))
        octets = _OVERLONG.sub(_shorten, octets)
        text = octets.decode("utf-8", "replace")
        if not text.isascii():
            if len(text) > UNICODE_PATH_CHARS_MAX:
                raise Unreadable
            text = normalize("NFKC", normalize("NFKC", text).casefold())
        text = text.lower()
        if text == path:
            return text
        path = text
    raise Unreadable


def _shorten(overlong: re.Match[bytes]) -> bytes:
    """Return the character that a lenient decoder reads from an overlong sequence."""
    code = 0
    for octet in overlong[0][1:]:
        code = code << 6 | octet & 0x3F
    lead = overlong[0][0]
    code |= (lead & 0x1F) << 6 if lead < 0xE0 else 0  # noqa: PLR2004
    return chr(code).encode()


def _resolve(text: str) -> Iterator[str]:
    """Yield the path without doubled slashes and dot segments, in the orders in use."""
    text = _PARAMETERS.sub("", text)
    single = _SLASHES.sub("/", text)
    for one in {single, _remove_dots(single), _SLASHES.sub("/", _remove_dots(text))}:
        yield "/" + _PADDING.sub("", one).lstrip("/")


def _remove_dots(path: str) -> str:
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            if len(kept) > 1:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/".join(kept)
