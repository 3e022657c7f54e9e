"""The sockets at which a wallet listens, and who may connect to them.

The owner of a socket's file says nothing about who connects, so the kernel is asked for the user of
each connection (SO_PEERCRED). The modes of the files keep other users away before that.
"""

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any, Final

from channel.errors import ConfigError
from mpp_session.errors import CommandError

__all__ = ["listen_on_port", "listen_on_socket", "make_home", "peer_uid", "require_private"]

_PATH_BYTES_MAX: Final = 107
"""The most that the kernel takes for a socket's path."""
_BACKLOG: Final = 128
_CREDENTIALS: Final = struct.Struct("3i")
_OTHERS: Final = 0o077
_OWN: Final = 0o700
_PASSABLE: Final = 0o711


def peer_uid(connection: Any) -> int | None:
    """Return the user of the process that connected to a Unix socket; None if the system is silent.

    The kernel recorded it when the connection was made, so the process cannot change it later.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None or connection is None:
        return None
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    except OSError:
        return None
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return int(uid)


def require_private(path: Path, what: str) -> None:
    """Check that only the user of this process, or root, can read a file.

    Raises:
        ConfigError: It does not exist, is another user's, or others may read it.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"expected the {what} as a regular file, and {path} is something else")
    if found.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(
            f"the {what} {path} belongs to user {found.st_uid}, and the wallet runs as "
            f"{os.geteuid()}: change its owner"
        )
    if found.st_mode & _OTHERS:
        raise ConfigError(
            f"the {what} {path} can be read or written by other users: run `chmod 600 {path}`"
        )


def make_home(path: Path, *, is_passed: bool) -> None:
    """Make the wallet's directory, or check it.

    `is_passed`: agents of other users have sockets below it, so they must be able to pass through,
    which mode 0711 allows. They can still list nothing and open only their own socket.

    Raises:
        ConfigError: It cannot be made, is a link, or belongs to another user.
    """
    try:
        path.mkdir(mode=_OWN, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"expected a directory for the wallet, and {path} is something else")
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"the wallet's directory {path} belongs to user {found.st_uid}, and the wallet "
                f"runs as {os.geteuid()}: change its owner, or name another directory"
            )
        path.chmod(_PASSABLE if is_passed else _OWN)
    except OSError as error:
        raise ConfigError(
            f"the wallet's directory {path} cannot be used: {error.strerror}"
        ) from None


def listen_on_socket(
    path: Path, *, uid: int | None = None, is_passed: bool = False
) -> socket.socket:
    """Listen on a Unix socket to which only one user can connect.

    Args:
        path: Of the socket. What an earlier run left there is removed.
        uid: The user who may connect beside this process's own. The socket becomes that user's,
            and the directory stays this process's, so that no one else can put another socket in
            its place.
        is_passed: Whether sockets of other users lie below its directory.

    Raises:
        ConfigError: The directory or the socket cannot be made, or cannot be given to `uid`.
    """
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise ConfigError(
            f"the socket's path {path} is longer than the {_PATH_BYTES_MAX} bytes that the system "
            "takes: choose a shorter directory for the wallet"
        )
    is_others = uid is not None and uid != os.geteuid()
    make_home(path.parent, is_passed=is_others or is_passed)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_old(path)
        listener.bind(str(path))
        path.chmod(0o600)  # no user could connect before: it does not listen yet
        if is_others and uid is not None:
            _give_to(path, uid)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror}") from None
    except ConfigError:
        listener.close()
        raise
    return listener


def listen_on_port(host: str, port: int) -> socket.socket:
    """Listen on a port of this machine.

    Raises:
        CommandError: The port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _remove_old(path: Path) -> None:
    """Remove the socket of an earlier run. The lock of the books says that it has ended."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is not a socket: remove it, or choose another directory")
        path.unlink()


def _give_to(path: Path, uid: int) -> None:
    try:
        os.chown(path, uid, -1, follow_symlinks=False)
    except OSError as error:
        raise ConfigError(
            f"the socket {path} cannot be given to user {uid} ({error.strerror}): run the wallet "
            "with the capability CAP_CHOWN (docs/guide/wallet.md), or leave `uid` out of the "
            "policy and run the agent as the wallet's own user"
        ) from None
