"""The operator's port as an ASGI application: pages of other packages behind common checks.

A web page that its user visits can lead a browser to this port (DNS rebinding), and a page of any
site can send it a form. So a request must name this port by one of its own names, and one that
changes something must not come from another site.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["build_admin"]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS: Final = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
"""Sent with every answer that does not set them itself."""


def build_admin(routes: Sequence[BaseRoute], *, names: Iterable[str] = ()) -> ASGIApp:
    """Return the application of the operator's port.

    `routes` answer the requests that pass the checks; the first that matches counts. `names` are
    host names of this port beside `localhost` and loopback addresses.
    """
    router = Router(routes, redirect_slashes=False, default=_not_found)
    return _Checked(router, frozenset(name.lower() for name in names))


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("Not found.\n", 404)(scope, receive, send)


class _Checked:
    """Refuses requests that a stranger's web page may have caused."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        refusal = self._find_refusal(request)
        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        await app(scope, receive, _with_headers(send))

    def _find_refusal(self, request: Request) -> str | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(f"//{hosts[0]}"):
            return "Expected a Host that names this port; see the setting `admin.names`.\n"
        if request.method in _SAFE:
            return None
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower():
            return "Expected a request of this port's own pages.\n"
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return "Expected a request of this port's own pages.\n"
        return None

    def _is_own(self, url: str) -> bool:
        """Whether a URL's host is a name of this port."""
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:
            return False
        if host == "localhost" or host in self._names:
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ())]
            given = {name.lower() for name, _ in headers}
            headers += [pair for pair in _HEADERS.items() if pair[0] not in given]
            message = {**message, "headers": headers}
        await send(message)

    return send_with_headers
