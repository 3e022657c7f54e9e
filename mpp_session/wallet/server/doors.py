"""Serves one socket of a wallet: bounded as a gateway is, for the users who may connect."""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from channel.limits import HEAD_BYTES_MAX
from mpp_session.gateway.connections import SWEEP_TICKS, Connection, Door
from mpp_session.settings import Listen
from mpp_session.wallet.server.sockets import peer_uid

__all__ = ["BREAK_OFF", "serve_door"]

BREAK_OFF: Final = "mpp_session.break_off"
"""The key of a scope under which it has a function that ends the connection amid an answer."""

_log: Final = logging.getLogger(__name__)

_CONNECTIONS: Final = 256
_STOP_S: Final = 5.0
_SLOW_READER_S: Final = 3600.0
"""An agent may think for long between two events of a stream."""


async def serve_door(
    listener: socket.socket, app: ASGIApp, *, uids: frozenset[int] | None, name: str
) -> None:
    """Serve until cancelled. The caller has opened the socket, and closes it.

    Args:
        listener: The socket.
        app: Answers.
        uids: Users whose processes may connect; None where the socket cannot tell, as a port.
        name: What the log calls it.
    """
    settings = Listen(
        connections_max=_CONNECTIONS, shutdown_s=_STOP_S, read_timeout_s=_SLOW_READER_S
    )
    door = Door(settings, _CONNECTIONS)
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            http=partial(_Peer, door=door, uids=uids, name=name),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,  # a target's answer has its own
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            timeout_graceful_shutdown=math.ceil(_STOP_S),
        ),
        door,
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]), name=f"serving {name}")
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await serving


class _Peer(Connection):
    """One connection, whose user the kernel names."""

    def __init__(self, *, uids: frozenset[int] | None, name: str, **more: Any) -> None:
        super().__init__(**more)
        self._uids = uids
        self._name = name
        self._answer = self.app
        self.app = self._offer_end

    async def _offer_end(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may end its own connection."""
        await self._answer({**scope, BREAK_OFF: self.transport.close}, receive, send)

    def connection_made(self, transport: Any) -> None:
        """Accept the connection of a user who may connect; end any other immediately."""
        if self._uids is not None:
            uid = peer_uid(transport.get_extra_info("socket"))
            if uid not in self._uids:
                _log.warning("user %s connected to %s and may not: disconnected", uid, self._name)
                super().connection_made(transport)
                transport.abort()
                return
        super().connection_made(transport)


class _Server(uvicorn.Server):
    """Leaves signals to the process, and disconnects clients that delay."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            self._door.sweep(self.server_state.connections)
        return await super().on_tick(counter)
