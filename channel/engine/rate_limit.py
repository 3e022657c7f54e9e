"""Rate limits per key, in bounded memory (VCH-09, F-99, F-100)."""

from collections import OrderedDict
from collections.abc import Callable

from channel.errors import TooManyRequestsError
from channel.limits import RATE_KEYS_MAX

__all__ = ["RateLimiter"]


class RateLimiter:
    """A token bucket per key: bursts of one period's worth, then the steady rate.

    Beyond `RATE_KEYS_MAX` the least recently seen keys are dropped. A dropped bucket is full
    again, which favours the peer and never grows.
    """

    def __init__(
        self,
        per_period: int,
        now: Callable[[], float],
        *,
        period_s: float = 1.0,
        refusal: Callable[[str], TooManyRequestsError] = TooManyRequestsError,
        what: str = "vouchers a second",
    ) -> None:
        self._per_period = per_period
        self._per_second = per_period / period_s
        self._full = float(per_period)
        self._refusal = refusal
        self._what = what
        self._now = now
        self._buckets: OrderedDict[bytes, list[float]] = OrderedDict()  # tokens, seen at

    def require(self, key: bytes) -> None:
        """Take one token of `key`'s bucket.

        Raises:
            TooManyRequestsError: The bucket is empty.
        """
        self._find(key)[0] -= 1

    def check(self, key: bytes) -> None:
        """Check that `key`'s bucket has a token, without taking it.

        Raises:
            TooManyRequestsError: The bucket is empty.
        """
        self._find(key)

    def _find(self, key: bytes) -> list[float]:
        """Return `key`'s bucket, filled up to now, if it has a token."""
        now = self._now()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = [self._full, now]
            if len(self._buckets) > RATE_KEYS_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
            passed = now - bucket[1]
            if passed > 0:
                tokens = bucket[0] + passed * self._per_second
                bucket[0] = min(self._full, tokens)
            bucket[1] = now
        if bucket[0] < 1:
            raise self._refusal(f"More than {self._per_period} {self._what}.")
        return bucket

    def earn(self, key: bytes, tokens: int) -> None:
        """Put tokens back into `key`'s bucket, as many as fit."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket[0] = min(self._full, bucket[0] + tokens)
