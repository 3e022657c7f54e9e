"""Serves what a service publishes, in front of its gate: free, and without any work.

Every answer is written when the service starts. A path counts only as it is spelt here; every
other spelling goes to the gate, which refuses it.
"""

import logging
from collections.abc import Sequence
from typing import Final

from channel.errors import ConfigError, OtherSpellingError
from channel.http.asgi import ASGIApp, Headers, Receive, Scope, Send
from channel.http.pricing import RouteTable
from mpp_session.discovery.forms import JSON, served_forms
from mpp_session.discovery.page import PAGE_POLICY, service_page
from mpp_session.discovery.service import Service

__all__ = ["DiscoverySite", "published_paths"]

_log: Final = logging.getLogger(__name__)

_PAGE: Final = "/"
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


def published_paths(compat: Sequence[str]) -> list[str]:
    """Return the paths that are answered with the setting `discovery.compat`."""
    return [*(path for path, _ in served_forms(compat)), _PAGE]


class DiscoverySite:
    """Answers GET and HEAD of `published_paths`, and passes on everything else."""

    def __init__(self, app: ASGIApp, service: Service, table: RouteTable) -> None:
        """Write the answers.

        Raises:
            ConfigError: One of the paths has a price, or a form needs an address that is not set.
        """
        for path in published_paths(service.compat):
            _require_unsold(table, path)
        self._app = app
        self.publish(service)

    def publish(self, service: Service) -> None:
        """Write the answers anew, for example when prices have changed.

        Raises:
            ConfigError: A form needs an address that is not set.
        """
        self.service = service
        self._answers: dict[str, tuple[Headers, bytes]] = {
            _PAGE: (_HTML, service_page(service).encode())
        }
        for path, form in served_forms(service.compat):
            document = form.render(service)
            if form.content_type == JSON and len(document) > _CRAWLED_BYTES_MAX:
                _log.warning(
                    "%s has %d bytes, and registries read no more than %d",
                    path,
                    len(document),
                    _CRAWLED_BYTES_MAX,
                )
            headers = ((b"content-type", form.content_type.encode()), *_ANY_ORIGIN)
            self._answers[path] = (headers, document)

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
