"""The listening socket: bound first, opened to clients after the checks have passed."""

import socket
from typing import Final

from mpp_session.errors import CommandError
from mpp_session.settings import Listen

__all__ = ["bind", "listen", "listening_url"]

_BACKLOG: Final = 2048


def bind(settings: Listen) -> socket.socket:
    """Bind the address. Connections are still refused.

    Raises:
        CommandError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio disables Nagle's algorithm if the protocol is TCP, but not if it is 0.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:  # an invalid name fails before the lookup
        listener.close()
        raise _refused(settings, error) from None
    return listener


def listen(listener: socket.socket, settings: Listen) -> None:
    """Accept connections. They queue until the server accepts them.

    Raises:
        CommandError: Another process listens on the address.
    """
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _refused(settings, error) from None


def listening_url(listener: socket.socket) -> str:
    """Return the URL of the socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _refused(settings: Listen, error: OSError | UnicodeError) -> CommandError:
    reason = error.strerror if isinstance(error, OSError) else error
    return CommandError(f"cannot listen on {settings.host}:{settings.port}: {reason}")
