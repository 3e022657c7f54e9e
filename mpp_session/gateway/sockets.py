"""The listening socket: bound first, opened to clients after the checks have passed.

systemd may hold it instead (`mpp-session.socket` in docs/deploy): clients that connect while the
gateway restarts then wait for the new process.
"""

import socket
from typing import Final

from mpp_session.errors import CommandError
from mpp_session.settings import ADMIN_PORT, Admin, Listen
from mpp_session.settings.config import take_passed_sockets

__all__ = ["bind", "bind_admin", "listen", "listening_url"]

_BACKLOG: Final = 2048
_ADMIN_BACKLOG: Final = 100
_INHERITED_FD: Final = 3
"""Where systemd passes the first socket: `sd_listen_fds(3)`."""


def bind_admin(settings: Admin) -> socket.socket:
    """Open the operator's port; if the settings name none, its usual one or else a free one.

    Connections queue until the server accepts them.

    Raises:
        CommandError: The address cannot be bound.
    """
    if settings.port is not None:
        return _open(settings.host, settings.port)
    try:
        return _open(settings.host, ADMIN_PORT)
    except CommandError:
        return _open(settings.host, 0)


def _open(host: str, port: int) -> socket.socket:
    listener = _bind(host, port)
    try:
        listener.listen(_ADMIN_BACKLOG)
    except OSError as error:
        listener.close()
        raise _refused(host, port, error) from None
    return listener


def bind(settings: Listen) -> socket.socket:
    """Bind the address. Connections are still refused, unless systemd passes the socket.

    Raises:
        CommandError: The address cannot be bound, or systemd passes something else.
    """
    inherited = _inherit()
    return _bind(settings.host, settings.port) if inherited is None else inherited


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm if the protocol is TCP, but not if it is 0.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:  # an invalid name fails before the lookup
        listener.close()
        raise _refused(host, port, error) from None
    return listener


def _inherit() -> socket.socket | None:
    """Return the socket that systemd passes to this process; None without one."""
    count = take_passed_sockets()
    if not count:
        return None
    if count > 1:
        raise CommandError(f"systemd passes {count} sockets: the gateway listens on one")
    try:
        # -1: the socket's own protocol. Not every system reports it, and asyncio needs it.
        listener = socket.socket(-1, -1, socket.IPPROTO_TCP, fileno=_INHERITED_FD)
    except OSError as error:
        raise CommandError(f"systemd passes no socket: {error.strerror}") from None
    is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6)
    if not is_tcp or listener.type != socket.SOCK_STREAM:
        raise CommandError("systemd passes no TCP socket: correct `ListenStream=` of its unit")
    listener.set_inheritable(False)
    return listener


def listen(listener: socket.socket, settings: Listen) -> None:
    """Accept connections. They queue until the server accepts them.

    Raises:
        CommandError: Another process listens on the address.
    """
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _refused(settings.host, settings.port, error) from None


def listening_url(listener: socket.socket) -> str:
    """Return the URL of the socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _refused(host: str, port: int, error: OSError | UnicodeError) -> CommandError:
    reason = error.strerror if isinstance(error, OSError) else error
    return CommandError(f"cannot listen on {host}:{port}: {reason}")
