"""The requests and streams that run now, in the wallet's memory.

What a request has cost need not survive a restart. The request runs through this process, so it
ends with it, and no later one continues under its id. What it signed is in the sums.
"""

from collections import Counter, OrderedDict
from threading import Lock
from typing import Final

__all__ = ["Running"]

KEPT: Final = 65_536
"""Requests that have ended; the one that paid longest ago is forgotten. One that has ended may
still pay for what was under way, and then it is not a new request. One that runs is never
forgotten, or an agent could make room for its cap by many others."""


class Running:
    """Used by the store's thread and by the server's."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[str, int] = {}
        self._totals: OrderedDict[str, int] = OrderedDict()
        self._streams: dict[str, tuple[str, str]] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def total(self, request_id: str) -> int | None:
        """Return what was signed for a request, None before the first voucher or charge."""
        found = self._open.get(request_id)
        return self._totals.get(request_id) if found is None else found

    def store_total(self, request_id: str, total: int, *, is_ended_later: bool = False) -> None:
        """Set what was signed for a request.

        Args:
            request_id: The request.
            total: In base units.
            is_ended_later: Whether `end_request` is called for it, so that it is kept until then.
        """
        with self._lock:
            if is_ended_later and request_id not in self._ended:
                self._open[request_id] = total
            else:
                self._keep(request_id, total)

    def _keep(self, request_id: str, total: int) -> None:
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
            if request_id in self._open:
                self._keep(request_id, self._open[request_id])
                del self._open[request_id]
            self._ended[request_id] = None
            if len(self._ended) > KEPT:
                self._ended.popitem(last=False)
