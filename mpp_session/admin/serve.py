"""Serves the operator's port beside the one that sells, in the same event loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

__all__ = ["serve_admin"]

_STOP_S: Final = 1
"""Seconds that running answers get at the end, such as a page's live events."""
_CONNECTIONS: Final = 100


async def serve_admin(listener: socket.socket, app: ASGIApp) -> None:
    """Serve until cancelled. The caller has bound the socket, and closes it."""
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
            timeout_graceful_shutdown=_STOP_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
