"""A bounded sample of what was seen, and the limit that follows from it (pure).

Median and median absolute deviation (MAD) are of logarithms, because amounts of money differ by
factors. They ignore up to half of the values, and the limit moves between 1.3 and 2 times the
highest normal value with them. That highest value grows by at most a tenth a day: values just below
the limit, one after the other, do not teach it to rise.
"""

import math
import struct
from typing import Final, NamedTuple

__all__ = ["DAY_S", "Sample", "Summary"]

DAY_S: Final = 86_400.0
HEADROOM: Final = 1.3
"""A value up to so many times the highest normal one is never unusual."""
REACH: Final = 2.0
"""A value above so many times the highest normal one always is."""
DEVIATIONS: Final = 6.0
"""Between the two: so many robust standard deviations above the median."""
GROWTH: Final = 1.1
"""Of the highest normal value, in a day."""
FADING: Final = 0.98
"""What stays of it in a day, down to the highest value that the sample still holds."""
SIGMA: Final = 1.4826
"""Standard deviation of a normal distribution, in MADs."""
SIZE_LIMIT: Final = 64
"""Values of a sample, at most."""
_HEAD: Final = struct.Struct("<dd")
_FLOATS: Final = tuple(struct.Struct(f"<{count}f") for count in range(SIZE_LIMIT + 1))


class Summary(NamedTuple):
    """Of logarithms: `sigma` is the robust standard deviation."""

    median: float
    sigma: float


class Sample:
    """The last `size` positive values, with the highest normal one."""

    __slots__ = ("_logs", "_packed", "_summary", "_top", "_top_at", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._logs: list[float] = []
        self._top = -math.inf
        self._top_at = 0.0
        self._summary: Summary | None = None
        self._packed: bytes | None = None

    def __len__(self) -> int:
        return len(self._logs)

    @property
    def top(self) -> float:
        """The highest normal value, 0 before the first."""
        return math.exp(self._top) if self._logs else 0.0

    @property
    def median(self) -> float:
        """0 before the first value."""
        return math.exp(self.summary().median) if self._logs else 0.0

    def usual(self) -> tuple[float, float]:
        """Return the range of two robust standard deviations around the median, up to the top."""
        median, sigma = self.summary()
        return math.exp(median - 2 * sigma), math.exp(min(median + 2 * sigma, self._top))

    def summary(self) -> Summary:
        """Return median and deviation; both 0 for an empty sample."""
        if self._summary is None:
            if not self._logs:
                return Summary(0.0, 0.0)
            ordered = sorted(self._logs)
            median = _middle(ordered)
            deviation = _middle(sorted(abs(value - median) for value in ordered))
            self._summary = Summary(median, SIGMA * deviation)
        return self._summary

    def limit(self) -> float:
        """Return the greatest value that is not unusual; infinite for an empty sample."""
        if not self._logs:
            return math.inf
        median, sigma = self.summary()
        lowest, highest = self._top + math.log(HEADROOM), self._top + math.log(REACH)
        return math.exp(min(max(median + DEVIATIONS * sigma, lowest), highest))

    def is_usual(self, value: float) -> bool:
        """Return whether a value is at most the limit; quicker than to ask for the limit."""
        return value <= HEADROOM * self.top or not self._logs or value <= self.limit()

    def add(self, value: float, at: float, *, is_free: bool = False) -> None:
        """Learn a value that is not unusual; `is_free` (warm-up) lets the highest one follow."""
        if value <= 0:
            return
        log = math.log(value)
        self._packed = None
        self._fade(at)
        if log > self._top:
            if is_free or not self._logs:
                self._top, self._top_at = log, at
            elif at - self._top_at >= DAY_S:
                self._top, self._top_at = min(log, self._top + math.log(GROWTH)), at
        self._push(log)

    def add_unusual(self, value: float, at: float) -> None:
        """Learn an unusual value that no person agreed to: cut to the highest, and one in a day."""
        if not self._logs:
            self.add(value, at)
            return
        if value <= 0 or at - self._top_at < DAY_S:
            return
        self._top, self._top_at = min(math.log(value), self._top + math.log(GROWTH)), at
        self._push(self._top)

    def replace_last(self, value: float, at: float, *, is_free: bool = False) -> None:
        """Learn the value in place of the last: it is the same one, which has grown."""
        if self._logs:
            self._logs.pop()
        self.add(value, at, is_free=is_free)

    def accept(self, value: float, at: float) -> None:
        """A person agreed: this value is normal from now on."""
        if value > 0 and math.log(value) > self._top:
            self._top, self._top_at = math.log(value), at
            self._packed = None
            if not self._logs:
                self._push(self._top)

    def _push(self, log: float) -> None:
        self._logs.append(log)
        del self._logs[: -self.size]
        self._summary = self._packed = None

    def _fade(self, at: float) -> None:
        days = int((at - self._top_at) / DAY_S) if self._logs else 0
        if days > 0 and (highest := max(self._logs)) < self._top:
            self._top = max(highest, self._top + days * math.log(FADING))
            self._top_at += days * DAY_S

    def pack(self) -> bytes:
        """Return what `unpack` reads."""
        if self._packed is None:
            head = _HEAD.pack(self._top_at, self._top if self._logs else 0.0)
            self._packed = head + _FLOATS[len(self._logs)].pack(*self._logs)
        return self._packed

    @classmethod
    def unpack(cls, size: int, data: bytes) -> "Sample":
        """Return the sample.

        Raises:
            struct.error: These are other bytes.
        """
        sample = cls(size)
        top_at, top = _HEAD.unpack_from(data)
        count = (len(data) - _HEAD.size) // 4
        if count > SIZE_LIMIT:
            raise struct.error(f"expected at most {SIZE_LIMIT} values, found {count}")
        sample._logs = list(_FLOATS[count].unpack_from(data, _HEAD.size))[-size:]
        if sample._logs:
            sample._top, sample._top_at = top, top_at
        return sample


def _middle(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
