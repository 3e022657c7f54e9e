"""When to look at the chain: on each new block if a websocket is configured, else by polling.

A subscription only triggers a look. The facts are then read over HTTP, so a websocket that is
silent, broken or lying costs seconds and never a channel.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Any, Final

from aiohttp import ClientError, ClientSession, ClientWebSocketResponse, WSMsgType

from channel.limits import NODE_EVENT_BYTES_MAX
from settlement.node import questions

__all__ = ["BlockNotifier"]

_log: Final = logging.getLogger(__name__)

_RECONNECT_S_MAX: Final = 60.0
_PING_S: Final = 15.0
_FAREWELL_S: Final = 0.5
_LEAST_S: Final = 0.25
"""Least time between two looks, in seconds, however often the node announces a block."""


class BlockNotifier:
    """Wakes its waiters at each new block or after `poll_interval_s`, whichever comes first."""

    def __init__(
        self,
        *,
        poll_interval_s: float,
        ws_url: str | None = None,
        reconnect_s: float = 1.0,
        least_s: float = _LEAST_S,
    ) -> None:
        """Wake at each new block that `ws_url` announces, at most once every `least_s` seconds."""
        self._poll_interval_s = poll_interval_s
        self._ws_url = ws_url
        self._reconnect_s = reconnect_s
        self._least_s = min(least_s, poll_interval_s)
        self._woke_at = float("-inf")
        self._is_new = asyncio.Event()
        self.subscriptions = 0
        """How many subscriptions were made. More than one means that a subscription broke."""

    async def wait(self) -> None:
        """Return when it is time to look."""
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(self._woke_at + self._least_s - clock())
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_interval_s):
                await self._is_new.wait()
        self._is_new.clear()
        self._woke_at = clock()

    async def listen(self) -> None:
        """Keep the subscription running for ever. Without a websocket URL, return."""
        delay_s = self._reconnect_s
        while self._ws_url is not None:
            made = self.subscriptions
            try:
                await self._subscribe(self._ws_url)
            except (ClientError, OSError, ValueError, RecursionError) as error:
                # the error's text may hold the URL, and the URL an access key
                _log.warning(
                    "block subscription failed (%s): polling instead", type(error).__name__
                )
            delay_s = self._reconnect_s if self.subscriptions > made else 2 * delay_s
            await asyncio.sleep(min(delay_s, _RECONNECT_S_MAX))

    async def _subscribe(self, url: str) -> None:
        async with ClientSession() as session:
            too_long = NODE_EVENT_BYTES_MAX + 1  # aiohttp refuses a message of this very size
            socket = await session.ws_connect(url, heartbeat=_PING_S, max_msg_size=too_long)
            try:
                question = {"jsonrpc": "2.0", "id": 1, "method": questions.SUBSCRIBE}
                await socket.send_json({**question, "params": ["newHeads"]})
                await self._read(socket)
            finally:
                with suppress(TimeoutError):  # the peer may never finish the closing handshake
                    async with asyncio.timeout(_FAREWELL_S):
                        await socket.close()

    async def _read(self, socket: ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                said: Any = message.json()
                if not isinstance(said, dict) or "error" in said:
                    _log.warning("the node does not support block subscriptions: polling instead")
                    return
                if said.get("id") == 1:
                    self.subscriptions += 1
                self._is_new.set()
            await asyncio.sleep(self._least_s)  # further announcements stay in the socket
