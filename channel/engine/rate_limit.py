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
        self._refusal = refusal
        self._what = what
        self._now = now
        self._buckets: OrderedDict[bytes, list[float]] = OrderedDict()  # tokens, seen at

    def require(self, key: bytes) -> None:
        """Take one token of `key`'s bucket.

        Raises:
            TooManyRequestsError: The bucket is empty.
        """
        self.check(key)
        self._buckets[key][0] -= 1

    def check(self, key: bytes) -> None:
        """Check that `key`'s bucket has a token, without taking it.

        Raises:
            TooManyRequestsError: The bucket is empty.
        """
        now = self._now()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = [float(self._per_period), now]
            if len(self._buckets) > RATE_KEYS_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
            if now > bucket[1]:
                earned = (now - bucket[1]) * self._per_second
                bucket[0] = min(float(self._per_period), bucket[0] + earned)
            bucket[1] = now
        if bucket[0] < 1:
            raise self._refusal(f"More than {self._per_period} {self._what}.")

    def earn(self, key: bytes, tokens: int) -> None:
        """Put tokens back into `key`'s bucket, as many as fit."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket[0] = min(float(self._per_period), bucket[0] + tokens)
