"""Serves the proxy on a port of this machine."""

import asyncio
import contextlib
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import uvicorn

from channel.errors import ConfigError
from channel.files import write_new
from mpp_session.agent.keystore import read_password
from mpp_session.errors import CommandError
from mpp_session.settings import Secret
from mpp_session.wallet.proxy.app import Proxy
from mpp_session.wallet.proxy.clients import OpenClient
from mpp_session.wallet.proxy.tokens import TOKEN_PREFIX, TokenError
from mpp_session.wallet.proxy.upstreams import is_loopback

__all__ = [
    "bind",
    "make_token",
    "only_for",
    "parse_listen",
    "read_key",
    "read_or_make_token",
    "serve_proxy",
]

_BACKLOG: Final = 256
_CONNECTIONS: Final = 512
_KEEP_ALIVE_S: Final = 75
"""Longer than SDKs keep an idle connection, so that none meets one that closes."""
_STOP_S: Final = 2
_TOKEN_BYTES: Final = 24
_READ_BY_OTHERS: Final = 0o077
_PORTS: Final = range(65536)


def parse_listen(text: str, *, is_any_allowed: bool) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`.

    Raises:
        ConfigError: It cannot be read, or other machines could reach it and must not.
    """
    host, _, digits = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not digits.isascii() or not digits.isdigit() or int(digits) not in _PORTS:
        raise ConfigError(f"--listen: expected HOST:PORT such as 127.0.0.1:8402, found {text}")
    if not is_loopback(host) and not is_any_allowed:
        raise ConfigError(
            f"--listen: other machines could reach {text} and spend with a token that they read on "
            "the way; listen on 127.0.0.1, or give --any-address"
        )
    return host, int(digits)


def bind(host: str, port: int) -> socket.socket:
    """Open the port; connections queue until the server accepts them.

    Raises:
        CommandError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm if the protocol is TCP, but not if it is 0
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CommandError(
            f"{host}:{port} cannot be listened on: {error.strerror}; choose another --listen"
        ) from None
    return listener


def make_token() -> Secret:
    """Return a new token."""
    return Secret(TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES))


def read_or_make_token(path: Path) -> Secret:
    """Return the token in a file; make the file, mode 0600, if there is none.

    Raises:
        ConfigError: The file cannot be read or made, others may read it, or it holds no token.
    """
    token = make_token()
    try:
        write_new(path, f"{token.reveal()}\n".encode())
    except FileExistsError:
        text = read_key(path).reveal()
        if not text.startswith(TOKEN_PREFIX):
            raise ConfigError(
                f"expected a token that begins with {TOKEN_PREFIX} in {path}: name a file that "
                "does not exist, and one is made"
            ) from None
        return Secret(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from None
    return token


def read_key(path: Path) -> Secret:
    """Return the secret in a file's first line.

    Raises:
        ConfigError: The file cannot be read, others may read it, or its first line is empty.
    """
    text = read_password(path).strip()
    if path.stat().st_mode & _READ_BY_OTHERS:
        raise ConfigError(f"other users of this machine can read {path}: run `chmod 600 {path}`")
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigError(f"expected a key in the first line of {path}, found none")
    return Secret(text)


def only_for(
    token: Secret, open_client: Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]
) -> OpenClient:
    """Return what opens the client for one token, and refuses every other one."""

    @asynccontextmanager
    async def open_(given: str) -> AsyncIterator[httpx.AsyncClient]:
        if not hmac.compare_digest(given.encode(), token.reveal().encode()):
            raise TokenError(
                "expected the token that `mpp-session proxy` printed at its start, found another"
            )
        async with open_client() as client:
            yield client

    return open_


async def serve_proxy(listener: socket.socket, app: Proxy, stopping: asyncio.Event) -> None:
    """Serve until `stopping` is set. The caller has bound the socket, and closes it."""
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_S,
        )
    )
    async with app:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        waiting = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
