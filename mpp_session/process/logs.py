"""Sends the log to standard error, for a terminal or a supervisor."""

import logging
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec

from channel.tasks import current_request
from mpp_session.process.log_limits import LinesPerMinute
from mpp_session.process.relay import relay_output

__all__ = ["JsonLines", "log_arguments", "log_to_stderr"]

_OURS: Final = ("channel", "settlement", "mpp_session")
_style: Final[list[str]] = []
"""The logging flags of this process, for its children."""


class JsonLines(logging.Formatter):
    """One JSON document a line: `time`, `level`, `logger`, `message`, and `trace` of an error.

    A line of a request also has `request`, the id that its answer's `x-generation-id` holds.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line; a trace is inside it, its line ends escaped."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = current_request()
        if request_id:
            line["request"] = f"gen-{request_id}"
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def log_to_stderr(level: str = "info", *, as_json: bool = False) -> None:
    """Log what an operator should know, from `level` up, and warnings of libraries.

    From then on nothing this process prints or logs waits for its reader, and the number of similar
    lines is limited.
    """
    _style[:] = ["--log-level", level, *(["--log-json"] if as_json else [])]
    relay_output()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(LinesPerMinute())
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if as_json else plain)
    least = logging.getLevelNamesMapping()[level.upper()]
    # what libraries say below `info` is about themselves, and may hold what must not be logged
    logging.basicConfig(handlers=[handler], level=max(least, logging.INFO))
    for name in _OURS:
        logging.getLogger(name).setLevel(least)
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(least, logging.WARNING))


def log_arguments() -> list[str]:
    """Return the flags by which a child of this process logs as this process does."""
    return list(_style)
