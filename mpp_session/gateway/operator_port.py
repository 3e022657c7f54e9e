"""Opens the operator's port of a gateway, with everything that is shown there."""

import contextlib
import logging
import sys
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final

from starlette.routing import BaseRoute

from mpp_session.admin.app import build_admin
from mpp_session.admin.serve import serve_admin
from mpp_session.gateway.sockets import bind_admin, listening_url
from mpp_session.settings import Admin, Secret

__all__ = ["open_operator_port"]

_log: Final = logging.getLogger(__name__)


@contextlib.contextmanager
def open_operator_port(
    settings: Admin,
    routes: Sequence[BaseRoute],
    *,
    is_first: bool = True,
    token: Secret | None = None,
) -> Iterator[Mapping[str, Coroutine[Any, Any, None]]]:
    """Open the port, and yield the task that serves it by its name; none if it is switched off.

    Of several workers, only the first one opens it. `token` logs in to its pages: on a terminal a
    link with it is shown. It is never logged.

    Raises:
        CommandError: The address cannot be bound.
    """
    if not settings.enabled or not is_first:
        yield {}
        return
    with bind_admin(settings) as listener:
        app = build_admin(routes, names=(settings.host, *settings.names))
        url = listening_url(listener)
        if token is not None and sys.stdout.isatty():
            sys.stdout.write(f"dashboard: {url}/login#{token.reveal()}\n")
        _log.info("the operator's port: %s", url)
        yield {"serving the operator's port": serve_admin(listener, app)}
