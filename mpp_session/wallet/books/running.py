"""The requests and streams that run now, in the wallet's memory.

What a request has cost need not survive a restart. The request runs through this process, so it
ends with it, and no later one continues under its id. What it signed is in the sums.
"""

from collections import Counter, OrderedDict
from threading import Lock
from typing import Final

__all__ = ["Running"]

KEPT: Final = 65_536
"""Requests; the one that paid longest ago is forgotten. One that has ended may still pay for what
was under way, and then it is not a new request."""


class Running:
    """Used by the store's thread and by the server's."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._totals: OrderedDict[str, int] = OrderedDict()
        self._streams: dict[str, tuple[str, str]] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def total(self, request_id: str) -> int | None:
        """Return what was signed for a request, None before the first voucher or charge."""
        return self._totals.get(request_id)

    def store_total(self, request_id: str, total: int) -> None:
        """Set what was signed for a request."""
        with self._lock:
            self._totals[request_id] = total
            self._totals.move_to_end(request_id)
            if len(self._totals) > KEPT:
                self._totals.popitem(last=False)

    def streams(self, agent: str, origin: str, *, without: str) -> int:
        """Return how many other streams of an agent with an origin run."""
        own = self._streams.get(without) == (agent, origin)
        return self._count[agent, origin] - own

    def begin_stream(self, agent: str, origin: str, request_id: str) -> None:
        """Count a stream, once, and not after its request has ended."""
        with self._lock:
            if request_id not in self._streams and request_id not in self._ended:
                self._streams[request_id] = agent, origin
                self._count[agent, origin] += 1

    def end_stream(self, request_id: str) -> None:
        """Count it no more; a second call does nothing."""
        with self._lock:
            where = self._streams.pop(request_id, None)
            if where is not None:
                self._count[where] -= 1
                if not self._count[where]:
                    del self._count[where]

    def end_request(self, request_id: str) -> None:
        """Count the stream of a request no more; a second call does nothing."""
        self.end_stream(request_id)
        with self._lock:
            self._ended[request_id] = None
            if len(self._ended) > KEPT:
                self._ended.popitem(last=False)
