"""One paying client for each token, opened when it is first used and kept while there is room."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, Self

import httpx

from channel.client.payment.retry import LostKeys
from channel.errors import MppSessionError
from channel.limits import PROXY_CLIENTS_MAX

__all__ = ["Clients", "OpenClient", "TooManyClientsError"]

_log: Final = logging.getLogger(__name__)

OpenClient = Callable[[str], AbstractAsyncContextManager[httpx.AsyncClient]]
"""Opens the client that pays for the agent with this token, and raises what it refuses.

Raises `TokenError` if there is no such agent.
"""


class TooManyClientsError(MppSessionError):
    """As many agents are being served as may."""


class _Held:
    """A client that is open, and the keys of its requests whose answers were lost."""

    def __init__(self, client: httpx.AsyncClient, closing: AsyncExitStack) -> None:
        self.client = client
        self.lost_keys = LostKeys()
        self.closing = closing
        self.users = 0


class Clients:
    """Holds the clients of all agents. `async with` closes them."""

    def __init__(self, open_client: OpenClient) -> None:
        self._open_client = open_client
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._held:
            await self._held.popitem()[1].closing.aclose()

    @asynccontextmanager
    async def use(self, token: str) -> AsyncIterator[tuple[httpx.AsyncClient, LostKeys]]:
        """Hold the client of a token for one request.

        Raises:
            TokenError: There is no such agent.
            TooManyClientsError: Each of the clients that may be open is in use.
            MppSessionError: The client cannot be opened.
        """
        async with self._opening:  # of two first requests, one opens the client
            held = self._held.get(token) or await self._open(token)
            held.users += 1
        self._held.move_to_end(token)
        try:
            yield held.client, held.lost_keys
        finally:
            held.users -= 1

    async def _open(self, token: str) -> _Held:
        if len(self._held) >= PROXY_CLIENTS_MAX:
            await self._drop_one()
        stack = AsyncExitStack()
        client = await stack.enter_async_context(self._open_client(token))
        held = self._held[token] = _Held(client, stack)
        return held

    async def _drop_one(self) -> None:
        idle = next((token for token, held in self._held.items() if not held.users), None)
        if idle is None:
            raise TooManyClientsError(
                f"{PROXY_CLIENTS_MAX} agents are being served: try again when one has finished"
            )
        try:
            await self._held.pop(idle).closing.aclose()
        except (MppSessionError, httpx.HTTPError) as error:  # of another agent's client
            _log.warning("a client could not be closed: %s", error)
