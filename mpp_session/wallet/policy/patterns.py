"""Names, origins and paths, and the patterns that they are held against (pure).

A `*` stands for any text, every other character for itself. What could be read in two ways is not
matched but refused: an origin with a user, a host in an odd spelling, a path that a server may take
for another one.
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from channel.errors import ConfigError
from channel.limits import TARGET_BYTES_MAX
from channel.wire.spelling import Unreadable, read_path

__all__ = [
    "is_canonical_path",
    "matches",
    "matches_origin",
    "matches_path",
    "matches_reading",
    "normalise_origin",
    "read_origin_pattern",
    "read_path_pattern",
]

_PORTS: Final = {"http": "80", "https": "443"}
_ORIGIN: Final = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9_.*-]+)(?::([0-9]{1,5}|\*))?")
_HOST: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_SEGMENT: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})*")
_UNRESERVED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)
_DANGEROUS: Final = frozenset(b"/\\%;?#.")
_SPACE: Final = 0x20
_DELETE: Final = 0x7F
PORT_LAST: Final = 65_535
ORIGIN_CHARS: Final = 300
"""A host has at most 253."""
_CACHED: Final = 512


def matches(pattern: str, text: str) -> bool:
    """Whether a text matches; in a time that no pattern makes more than linear in its length."""
    if "*" not in pattern:
        return pattern == text
    first, *middle = pattern.split("*")
    last = middle.pop()
    if not text.startswith(first):
        return False
    place = len(first)
    for part in middle:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return len(text) - place >= len(last) and text.endswith(last)


def normalise_origin(text: str) -> str | None:
    """Return scheme, host and port in their one spelling; None for what is not an origin."""
    return _normalise(text) if len(text) <= ORIGIN_CHARS else None


@lru_cache(maxsize=_CACHED)
def _normalise(text: str) -> str | None:
    found = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if found is None or "*" in text:
        return None
    scheme, host, port = found.groups()
    if not _is_host(host) or (port is not None and not _is_port(port)):
        return None
    return f"{scheme}://{host}:{port or _PORTS[scheme]}"


def _is_port(port: str) -> bool:
    return not port.startswith("0") and 0 < int(port) <= PORT_LAST


def _is_host(host: str) -> bool:
    """Whether it is a name, or an address in its one spelling."""
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1])) == host[1:-1]
        if _NUMERIC.fullmatch(host):
            return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False
    return _HOST.fullmatch(host) is not None


def read_origin_pattern(text: str) -> str:
    """Return a pattern of origins in its one spelling, with its port.

    Raises:
        ConfigError: It is no origin, or a `*` could stand for more than a part of a host.
    """
    if text == "*":
        return text
    found = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    plain = text.lower().replace("*", "x")
    if found is None or normalise_origin(re.sub(":x$", "", plain)) is None:
        raise ConfigError(
            f"expected an origin such as https://api.example or https://*.example, found {text!r}"
            " (scheme and host, without user, path or a slash at the end)"
        )
    scheme, host, port = found.groups()
    return f"{scheme}://{host}:{port or _PORTS[scheme]}"


def matches_origin(pattern: str, origin: str) -> bool:
    """Whether a normalised origin matches, each of scheme, host and port by itself."""
    if pattern == "*":
        return True
    parts, asked = _split(pattern), _split(origin)
    return all(matches(part, one) for part, one in zip(parts, asked, strict=True))


@lru_cache(maxsize=_CACHED)
def _split(origin: str) -> tuple[str, str, str]:
    scheme, _, rest = origin.partition("://")
    host, _, port = rest.rpartition(":")
    return scheme, host, port


def is_canonical_path(path: str) -> bool:
    """Whether every server reads this path alike, and its length is one that servers take.

    It has neither dot segments, doubled slashes, parameters nor a query, and encodes no character
    that is written plainly or that divides a path.
    """
    return len(path) <= TARGET_BYTES_MAX and _is_canonical(path)


@lru_cache(maxsize=_CACHED)
def _is_canonical(path: str) -> bool:
    if not path.startswith("/"):
        return False
    segments = path[1:].split("/")
    if "" in segments[:-1] or not all(map(_SEGMENT.fullmatch, segments)):
        return False
    for segment in segments:
        if not segment.strip("."):
            if segment:
                return False
        elif "%" in segment and not _is_plain(segment):
            return False
    return True


def _is_plain(segment: str) -> bool:
    """Whether its encoded characters need the encoding, and are UTF-8 without control codes."""
    encoded = bytes(int(digits, 16) for digits in re.findall("%(..)", segment))
    if any(
        code in _UNRESERVED or code in _DANGEROUS or code < _SPACE or code == _DELETE
        for code in encoded
    ):
        return False
    try:
        unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def read_path_pattern(text: str) -> str:
    """Return a pattern of paths.

    Raises:
        ConfigError: No path that is accepted could match it.
    """
    if text != "*" and not is_canonical_path(text.replace("*", "x")):
        raise ConfigError(
            f"expected a path such as /search or /extract/*, found {text!r} (it begins with /, "
            "without .., //, ; or a query, and encodes nothing that can be written plainly)"
        )
    return text


def matches_path(patterns: Iterable[str], path: str) -> bool:
    """Whether a path matches, as it is written: for what a rule allows."""
    return any(matches(pattern, path) for pattern in patterns)


def matches_reading(patterns: Iterable[str], path: str) -> bool:
    """Whether a server might take a path for one that matches: for what a rule denies or asks."""
    readings = _readings(path)
    if readings is None:
        return True
    lowered = [pattern.lower() for pattern in patterns]
    return any(matches(pattern, reading) for pattern in lowered for reading in readings)


@lru_cache(maxsize=_CACHED)
def _readings(path: str) -> frozenset[str] | None:
    """Return every path that a server might take this one for; None where that has no bound."""
    try:
        found = {path.lower(), *read_path(path)}
    except Unreadable:
        return None
    # Servers ignore or add a final slash, so a rule about /admin/* is also about /admin.
    return frozenset({*found, *(one.rstrip("/") for one in found), *(f"{one}/" for one in found)})
