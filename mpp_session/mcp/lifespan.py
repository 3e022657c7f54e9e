"""Runs an ASGI application's lifespan where no ASGI server does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from channel.http.asgi import ASGIApp, Message
from mpp_session.errors import CommandError

__all__ = ["SharedLifespan"]


class SharedLifespan:
    """The lifespan of one application, for all servers of this process that use it.

    An MCP server enters its lifespan once for each connection on some transports.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._users = 0
        self._lock = asyncio.Lock()
        self._life: _Life | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the application with the first user, and stop it with the last.

        Raises:
            CommandError: It cannot start.
        """
        async with self._lock:
            if self._life is None:
                life = _Life(self._app)
                await life.start()
                self._life = life
            self._users += 1
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._lock:
                    self._users -= 1
                    if self._users == 0 and self._life is not None:
                        life, self._life = self._life, None
                        await life.stop()


class _Life:
    """An application from its start to its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._ahead: asyncio.Queue[Message] = asyncio.Queue()
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.create_task(self._live(), name="lifespan")

    async def start(self) -> None:
        self._ahead.put_nowait({"type": "lifespan.startup"})
        said = await self._said.get()
        if said["type"] == "lifespan.startup.failed":
            await self._task
            raise CommandError(said.get("message", "the application cannot start"))

    async def stop(self) -> None:
        self._ahead.put_nowait({"type": "lifespan.shutdown"})
        await self._task

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        try:
            await self._app(scope, self._ahead.get, self._said.put)
        finally:  # an application that does not support lifespan says nothing
            self._said.put_nowait({"type": "lifespan.startup.complete"})
