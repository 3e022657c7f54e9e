"""What strangers can cause does not fill the log, and nothing else is left out of it."""

import logging
from typing import Any

import pytest

from channel.limits import LOG_KINDS_MAX, LOG_LINES_PER_MINUTE_MAX
from mpp_session.process.log_limits import LinesPerMinute

MOST = LOG_LINES_PER_MINUTE_MAX


class Log:
    def __init__(self) -> None:
        self.now = 1000.0
        self.filter = LinesPerMinute(lambda: self.now)

    def lines(self, count: int, *, line: int = 1, **more: Any) -> list[str]:
        """Log `count` lines from one place and return those that are written."""
        records = [
            logging.LogRecord("gateway", logging.WARNING, "gateway.py", line, "no %d", (n,), None)
            for n in range(count)
        ]
        for record in records:
            record.__dict__.update(more)
        return [record.getMessage() for record in records if self.filter.filter(record)]


def test_a_kind_of_line_is_written_so_often_a_minute_and_then_counted() -> None:
    """O-26: 126,860 tracebacks in a minute."""
    log = Log()
    assert len(log.lines(MOST)) == MOST
    assert log.lines(1000) == []
    assert len(log.lines(1, line=2)) == 1
    log.now += 60
    assert log.lines(1) == ["no 0 (1000 similar lines were suppressed)"]
    assert log.lines(1) == ["no 0"]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "UpstreamError"},
        {"levelno": logging.ERROR},
        {"exc_info": (ValueError, ValueError(), None)},
        {"pathname": "server.py"},
    ],
    ids=["named", "level", "error", "file"],
)
def test_another_kind_has_lines_of_its_own(other: dict[str, Any]) -> None:
    """O-26: one error without end hides no other."""
    log = Log()
    log.lines(MOST + 1)
    assert log.lines(1) == []
    assert log.lines(1, **other) == ["no 0"]


def test_alarms_and_bugs_are_always_written() -> None:
    log = Log()
    assert len(log.lines(100, name="settlement.alarms")) == 100
    assert len(log.lines(100, levelno=logging.CRITICAL)) == 100


def test_so_many_kinds_are_remembered_and_no_more() -> None:
    log = Log()
    for line in range(LOG_KINDS_MAX):
        log.lines(1, line=line)
    assert len(log.filter._kinds) == LOG_KINDS_MAX  # noqa: SLF001
    log.lines(1, line=LOG_KINDS_MAX)
    assert len(log.filter._kinds) == 1  # noqa: SLF001
