"""Bounds the records that refusals make: an agent in a loop must not fill the wallet's disk."""

from typing import Final

import msgspec

from channel.limits import AUDIT_REFUSALS_PER_MINUTE_MAX

__all__ = ["RefusalPace"]

_MINUTE_S: Final = 60


class _Minute(msgspec.Struct):
    number: int
    written: int = 0
    left_out: int = 0


class RefusalPace:
    """Counts the refusals of each agent, and those of which no record was written."""

    def __init__(self) -> None:
        self._minutes: dict[str, _Minute] = {}

    def admit(self, agent: str, at: float) -> int | None:
        """Return how many were left out since the agent's last record; None to leave this one out.

        Args:
            agent: Whose ask is refused.
            at: Unix seconds.
        """
        number = int(at // _MINUTE_S)
        minute = self._minutes.setdefault(agent, _Minute(number))
        if minute.number != number:
            minute.number, minute.written = number, 0
        if minute.written >= AUDIT_REFUSALS_PER_MINUTE_MAX:
            minute.left_out += 1
            return None
        minute.written += 1
        left_out, minute.left_out = minute.left_out, 0
        return left_out
