"""Serves what a service publishes, in front of its gate: free, and without any work.

Every answer is written when the service starts. A path counts only as it is spelt here; every
other spelling goes to the gate, which refuses it.
"""

import logging
from typing import Final

import msgspec

from channel.errors import ConfigError, OtherSpellingError
from channel.http.asgi import ASGIApp, Headers, Receive, Scope, Send
from channel.http.pricing import RouteTable
from mpp_session.discovery.llms import llms_text
from mpp_session.discovery.openapi import openapi_document
from mpp_session.discovery.page import PAGE_POLICY, service_page
from mpp_session.discovery.service import Service

__all__ = ["PATHS", "DiscoverySite"]

_log: Final = logging.getLogger(__name__)

PATHS: Final = ("/openapi.json", "/llms.txt", "/")
"""What is published; nothing with a price can have one of these paths."""

_CRAWLED_BYTES_MAX: Final = 64 * 1024
"""Registries read no longer document (DISC-09)."""
_READS: Final = frozenset({"GET", "HEAD"})
_CACHED: Headers = (
    (b"cache-control", b"max-age=300"),
    (b"x-content-type-options", b"nosniff"),
)
_ANY_ORIGIN: Headers = ((b"access-control-allow-origin", b"*"),)
_HTML: Headers = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
)
_JSON: Headers = ((b"content-type", b"application/json"), *_ANY_ORIGIN)
_TEXT: Headers = ((b"content-type", b"text/plain; charset=utf-8"), *_ANY_ORIGIN)


class DiscoverySite:
    """Answers GET and HEAD of `PATHS`, and passes on everything else."""

    def __init__(self, app: ASGIApp, service: Service, table: RouteTable) -> None:
        """Write the answers.

        Raises:
            ConfigError: One of the paths has a price.
        """
        for path in PATHS:
            _require_unsold(table, path)
        self._app = app
        self.publish(service)

    def publish(self, service: Service) -> None:
        """Write the answers anew, for example when prices have changed."""
        self.service = service
        document = msgspec.json.encode(openapi_document(service))
        if len(document) > _CRAWLED_BYTES_MAX:
            _log.warning(
                "/openapi.json has %d bytes, and registries read no more than %d",
                len(document),
                _CRAWLED_BYTES_MAX,
            )
        self._answers: dict[str, tuple[Headers, bytes]] = {
            "/openapi.json": (_JSON, document),
            "/llms.txt": (_TEXT, llms_text(service).encode()),
            "/": (_HTML, service_page(service).encode()),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http" or scope["method"] not in _READS:
            await self._app(scope, receive, send)
            return
        answer = self._answers.get(_path(scope))
        if answer is None:
            await self._app(scope, receive, send)
            return
        headers, body = answer
        length = (b"content-length", str(len(body)).encode())
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [*headers, *_CACHED, length],
        }
        await send(start)
        sent = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": sent})


def _require_unsold(table: RouteTable, path: str) -> None:
    try:
        if not table.sells({"path": path}):
            return
    except OtherSpellingError:
        pass
    raise ConfigError(
        f"{path} has a price, and the service publishes its description there: sell another path, "
        "or set `discovery.enabled = false`"
    )


def _path(scope: Scope) -> str:
    """Return the path below the application's mount."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
