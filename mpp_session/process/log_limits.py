"""Limits log lines of one kind: lines that strangers can cause must not fill a disk (O-26)."""

import logging
import time
from collections.abc import Callable
from typing import Final

from channel.limits import LOG_KINDS_MAX, LOG_LINES_PER_MINUTE_MAX

__all__ = ["LinesPerMinute"]

_PERIOD_S: Final = 60.0
_ALARMS: Final = "settlement.alarms"
"""Alarms are exempt: they repeat nothing, and one line of code logs all of them."""


class LinesPerMinute(logging.Filter):
    """Passes a number of lines of one kind each minute; the next line counts the suppressed ones.

    Lines are of one kind if the same line of code wrote them, about errors of the same type. Code
    that logs errors of several types without tracebacks names the type: `extra={"kind": ...}`.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[object, list[float]] = {}  # start of the minute, passed, suppressed

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a line."""
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
                record.msg = f"{record.getMessage()} ({seen[2]:.0f} similar lines were suppressed)"
                record.args = ()
            return True
        if seen[1] >= LOG_LINES_PER_MINUTE_MAX:
            seen[2] += 1
            return False
        seen[1] += 1
        return True
