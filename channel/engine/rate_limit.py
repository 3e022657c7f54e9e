"""How often something may happen per key, in bounded memory (VCH-09, F-99, F-100)."""

from collections import OrderedDict
from collections.abc import Callable

from channel.errors import TooManyRequestsError
from channel.limits import RATE_KEYS_MAX

__all__ = ["RateLimiter"]


class RateLimiter:
    """A token bucket per key: bursts of one second's worth, then the steady rate.

    The keys least recently seen are forgotten beyond `RATE_KEYS_MAX`; a forgotten bucket is
    full again, which favours the peer and never grows.
    """

    def __init__(self, per_second: int, now: Callable[[], float]) -> None:
        self._per_second = per_second
        self._now = now
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def require(self, key: bytes) -> None:
        """Take one token of `key`'s bucket.

        Raises:
            TooManyRequestsError: There is none.
        """
        now = self._now()
        tokens, seen_at = self._buckets.pop(key, (float(self._per_second), now))
        tokens = min(self._per_second, tokens + max(0.0, now - seen_at) * self._per_second)
        self._buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > RATE_KEYS_MAX:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise TooManyRequestsError(f"More than {self._per_second} vouchers a second.")
