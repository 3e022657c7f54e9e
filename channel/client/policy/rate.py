"""Measures how fast a stream delivers, and derives its step (pure).

A server accepts a limited number of vouchers a second. A stream that would need more gets larger
steps, so that one lasts half a second. A step never exceeds what this stream has delivered, so a
server gains nothing by a fast beginning (F-94).
"""

from typing import Final

__all__ = ["DeliveryRate"]

STEP_S: Final = 0.5
LEAD_S: Final = 4.0
MEASURED_S_MIN: Final = 0.1
"""Less time than this measures how packets were cut, not the stream."""


class DeliveryRate:
    """Value and seconds of one stream, without the seconds in which it waited for the payer."""

    def __init__(self, now: float) -> None:
        self._mark = now
        self._value = 0
        self._per_s = 0.0
        self._delivered = 0

    def add(self, value: int) -> None:
        """Count what arrived, in base units."""
        self._value += value
        self._delivered += value

    def measure(self, now: float) -> None:
        """Update the rate with the time since the last call, if that is long enough."""
        elapsed_s = now - self._mark
        if elapsed_s < MEASURED_S_MIN:
            return
        per_s = self._value / elapsed_s
        self._per_s = (self._per_s + per_s) / 2 if self._per_s else per_s
        self._mark, self._value = now, 0

    def leave_out(self, seconds: float) -> None:
        """Exclude a pause from the measured time."""
        self._mark += max(0.0, seconds)

    @property
    def step(self) -> int:
        """The value of a step."""
        return min(int(self._per_s * STEP_S), self._delivered)

    @property
    def lead(self) -> int:
        """The value that arrives while a deposit is mined."""
        return int(self._per_s * LEAD_S)
