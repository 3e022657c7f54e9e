"""The servers behind the proxy, and which of them a request is for (pure).

A request names its upstream by its path (`/NAME/...`), by its host (`NAME.localhost`), or as
programs ask a forward proxy (`GET http://host/...`). Everything else goes to the upstream without a
name.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

import httpx
import msgspec

from channel.client.http.transport import is_safe
from channel.errors import ConfigError, MppSessionError
from mpp_session.settings import Secret

__all__ = ["Target", "UnknownTargetError", "Upstream", "Upstreams", "is_loopback", "parse_upstream"]

_NAME: Final = re.compile("[a-z0-9](?:[a-z0-9-]*[a-z0-9])?").fullmatch
_VERSION: Final = re.compile("v[0-9]+").fullmatch
_ABSOLUTE: Final = re.compile(rb"https?://", re.IGNORECASE).match
_PORTS: Final = {"http": 80, "https": 443}
_LOCAL: Final = ".localhost"


class UnknownTargetError(MppSessionError):
    """A request names no upstream of this proxy, or a path outside it."""


class Upstream(msgspec.Struct, frozen=True):
    """One server whose answers are paid for."""

    name: str
    """Empty for the one that needs no name."""
    url: httpx.URL
    """Its base; the path has no slash at its end."""
    key: Secret | None = None
    """What the server itself wants as its API key."""

    @property
    def base(self) -> bytes:
        """The path that every path of this upstream begins with; may be empty."""
        return self.url.raw_path.rstrip(b"/")


class Target(msgspec.Struct, frozen=True):
    """What one request is for."""

    upstream: Upstream
    url: httpx.URL
    prefix: str = ""
    """What stands before the upstream's paths in the client's view."""

    def localize(self, location: str) -> str:
        """Return where a redirect leads, as the client must ask it: through the proxy again.

        A redirect to any other server is returned as it is.
        """
        try:
            url = self.url.join(location)
        except httpx.InvalidURL:
            return location
        base = self.upstream.base
        is_here = _place(url) == _place(self.url)
        if not is_here or not _is_under(url.raw_path.partition(b"?")[0], base):
            return location
        path = url.raw_path[len(base) :].decode("ascii")
        return self.prefix + (path if path.startswith("/") else f"/{path}")


def parse_upstream(text: str, key: Secret | None = None) -> Upstream:
    """Return the upstream of `URL` or `NAME=URL`.

    Raises:
        ConfigError: The name or the URL cannot be used.
    """
    name, is_named, address = text.partition("=")
    if not is_named or "/" in name:
        name, address = "", text
    elif _NAME(name) is None or _VERSION(name) is not None:
        raise ConfigError(
            f"--upstream {text}: expected a name of lower-case letters, digits and hyphens, and "
            f"not a version as v1, found {name!r}"
        )
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--upstream {text}: {error}") from None
    if url.scheme not in _PORTS or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigError(
            f"--upstream {text}: expected https://HOST or https://HOST/PATH, without user, query "
            "and fragment"
        )
    if not is_safe(url, allow_loopback_http=True):
        raise ConfigError(
            f"--upstream {text}: payments travel by https alone, but for servers of this machine"
        )
    return Upstream(name, url.copy_with(raw_path=url.raw_path.rstrip(b"/") or b"/"), key)


class Upstreams:
    """All servers behind the proxy."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        """Take them in any order.

        Raises:
            ConfigError: There are none, or two have one name.
        """
        self._by_name = {one.name: one for one in upstreams}
        if not upstreams:
            raise ConfigError("expected at least one upstream: give --upstream URL")
        if len(self._by_name) != len(upstreams):
            raise ConfigError(
                "two upstreams have one name: give --upstream NAME=URL, with a name for each"
            )
        # of two on one host, the longer base is the closer match
        self._longest = sorted(upstreams, key=lambda one: -len(one.base))

    @property
    def usual_prefix(self) -> str:
        """What stands before the paths of the upstream without a name, or else of the first."""
        return "" if "" in self._by_name else f"/{next(iter(self._by_name))}"

    def find(self, path: bytes, query: bytes, host: str) -> Target:
        """Return what a request is for.

        Args:
            path: The request's target as it was sent, without its query: a path, or a whole URL.
            query: Its query.
            host: The host of its `Host` field, in lower case, without the port.

        Raises:
            UnknownTargetError: There is no such upstream, or the path leads out of it.
        """
        if _ABSOLUTE(path):
            return self._find_listed(path, query)
        if not path.startswith(b"/"):
            raise UnknownTargetError(
                "expected a path or http://HOST/PATH. A tunnel (CONNECT) carries what this proxy "
                "cannot read, and so cannot pay: set the program's base URL to this proxy instead"
            )
        _require_plain(path)
        if host.endswith(_LOCAL):
            return self._find_named(host.removesuffix(_LOCAL), path, query, prefix="")
        first, _, rest = path[1:].partition(b"/")
        name = first.decode("latin-1")
        if name in self._by_name and name:
            return self._find_named(name, b"/" + rest, query, prefix=f"/{name}")
        return self._find_named("", path, query, prefix="")

    def _find_named(self, name: str, path: bytes, query: bytes, *, prefix: str) -> Target:
        upstream = self._by_name.get(name)
        if upstream is None:
            raise UnknownTargetError(
                f"expected an upstream of this proxy, found {name or 'none'!r}: ask for one of "
                f"{self._names()}, or start the proxy with --upstream URL"
            )
        return Target(upstream, _join(upstream, upstream.base + path, query), prefix)

    def _find_listed(self, target: bytes, query: bytes) -> Target:
        try:
            url = httpx.URL(target.decode("ascii"))
        except (httpx.InvalidURL, UnicodeDecodeError):
            raise UnknownTargetError("the request's URL cannot be read") from None
        path = url.raw_path
        _require_plain(path)
        for one in self._longest:
            is_meant = url.host == one.url.host and _port(url) in (_port(one.url), 80)
            if is_meant and not url.userinfo and _is_under(path, one.base):
                prefix = f"{url.scheme}://{url.netloc.decode('ascii')}{one.base.decode('ascii')}"
                return Target(one, _join(one, path, query), prefix)
        raise UnknownTargetError(
            f"{url.host} is not a server that this proxy may pay at that path: it passes requests "
            f"on to {', '.join(str(one.url) for one in self._longest)}"
        )

    def _names(self) -> str:
        return ", ".join(f"/{one.name}/" if one.name else "/" for one in self._by_name.values())


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    if host == "localhost" or host.endswith(_LOCAL):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _join(upstream: Upstream, path: bytes, query: bytes) -> httpx.URL:
    return upstream.url.copy_with(raw_path=path + (b"?" + query if query else b""))


def _require_plain(path: bytes) -> None:
    """Refuse what a server may read as a path above the upstream's base."""
    if any(part in (b".", b"..") for part in re.split(rb"[/\\]", unquote_to_bytes(path))):
        raise UnknownTargetError("expected a path without `.` and `..`")


def _is_under(path: bytes, base: bytes) -> bool:
    return path == base or path.startswith(base + b"/")


def _port(url: httpx.URL) -> int:
    return url.port or _PORTS.get(url.scheme, 0)


def _place(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, _port(url)
