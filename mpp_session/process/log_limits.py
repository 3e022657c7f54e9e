"""How often a line of one kind is logged: what strangers can cause must not fill a disk (O-26)."""

import logging
import time
from collections.abc import Callable
from typing import Final

from channel.limits import LOG_KINDS_MAX, LOG_LINES_PER_MINUTE_MAX

__all__ = ["LinesPerMinute"]

_PERIOD_S: Final = 60.0
_ALARMS: Final = "settlement.alarms"
"""Says each thing once by itself, and all of it in one line of code."""


class LinesPerMinute(logging.Filter):
    """Lets so many lines of one kind through each minute; the next one says how many were not.

    Lines are of one kind when one line of code wrote them, about errors of one type. Code that
    logs errors of several types without their traces names the type: `extra={"kind": ...}`.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[object, list[float]] = {}  # began at, let through, left out

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is written."""
        if record.name == _ALARMS or record.levelno >= logging.CRITICAL:
            return True
        error = record.exc_info[0] if record.exc_info else None
        named = getattr(record, "kind", None)
        kind = (record.pathname, record.lineno, record.levelno, error, named)
        seen = self._kinds.get(kind)
        now = self._now()
        if seen is None or now - seen[0] >= _PERIOD_S:
            if len(self._kinds) >= LOG_KINDS_MAX:
                self._kinds.clear()
            self._kinds[kind] = [now, 1, 0]
            if seen is not None and seen[2]:
                record.msg = f"{record.getMessage()} ({seen[2]:.0f} more such lines were left out)"
                record.args = ()
            return True
        if seen[1] >= LOG_LINES_PER_MINUTE_MAX:
            seen[2] += 1
            return False
        seen[1] += 1
        return True
