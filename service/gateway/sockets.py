"""The socket a gateway listens on."""

import socket

from service.errors import CommandError
from service.settings import Listen

__all__ = ["listen", "listening_url"]

_BACKLOG = 2048


def listen(settings: Listen) -> socket.socket:
    """Bind and listen.

    Raises:
        CommandError: The address cannot be taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise CommandError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from None


def listening_url(listener: socket.socket) -> str:
    """Return the URL under which it is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
