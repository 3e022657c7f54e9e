"""Connections to the model server that are safe to reuse.

A server may send bytes after its answer, or a second answer, to a connection that waits for its
next request. aiohttp would take them for the answer to that request: another client's.
"""

import select
from typing import Any
from weakref import WeakSet

import aiohttp
from aiohttp.connector import Connection

__all__ = ["Connector"]


class Connector(aiohttp.TCPConnector):
    """aiohttp's pool. A kept connection on which the server spoke or closed is dropped."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._used: WeakSet[object] = WeakSet()

    async def connect(self, *args: Any, **more: Any) -> Connection:
        """Return a connection for one request. Errors and arguments are aiohttp's."""
        while True:
            connection = await super().connect(*args, **more)
            protocol = connection.protocol
            if protocol is None or protocol not in self._used:
                if protocol is not None:
                    self._used.add(protocol)
                return connection
            if not protocol.should_close and not _is_readable(protocol.transport):
                return connection
            connection.close()


def _is_readable(transport: Any) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
