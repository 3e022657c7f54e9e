"""Refuses requests that a web page may have caused: the proxy spends money for who can reach it.

A page that its user visits can lead a browser to a port of this machine, by its address or by a
name that the page's owner points at it (DNS rebinding). Programs send neither `Origin` nor
`Sec-Fetch-Site`, and name the proxy by its own names.
"""

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from channel.errors import MppSessionError
from mpp_session.wallet.proxy.upstreams import is_loopback

__all__ = ["StrangerError", "own_host", "require_no_page"]

_PAGE: Final = ("origin", "sec-fetch-site")


class StrangerError(MppSessionError):
    """A web page may have caused this request."""


def own_host(headers: Headers, names: Collection[str]) -> str:
    """Return the host by which a request names this proxy, in lower case, without the port.

    `names` are its names beside `localhost`, `NAME.localhost` and loopback addresses.

    Raises:
        StrangerError: It names another host.
    """
    hosts = headers.getlist("host")
    try:
        host = urlsplit(f"//{hosts[0]}").hostname or "" if len(hosts) == 1 else ""
    except ValueError:
        host = ""
    if is_loopback(host) or host in names:
        return host
    raise StrangerError(
        "expected a Host that names this proxy, such as 127.0.0.1; --allow-host adds a name"
    )


def require_no_page(headers: Headers, origins: Collection[str]) -> str | None:
    """Return the web page's origin if it is one of `origins`, None for a program.

    Raises:
        StrangerError: A browser sends this for a page that may not use the proxy.
    """
    origin = headers.get("origin")
    if origin is not None and origin in origins and len(headers.getlist("origin")) == 1:
        return origin
    if any(name in headers for name in _PAGE):
        raise StrangerError(
            "expected a request of a program, found one of a web page; --allow-origin allows a page"
        )
    return None
