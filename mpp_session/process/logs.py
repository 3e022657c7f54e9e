"""Where the log goes: to standard error, for a terminal or whatever supervises the process."""

import logging
import sys

from mpp_session.process.log_limits import LinesPerMinute
from mpp_session.process.relay import relay_output

__all__ = ["log_to_stderr"]


def log_to_stderr() -> None:
    """Log what an operator should know, and of libraries what is a warning.

    From then on nothing that this process prints or logs waits for its reader, and no kind of
    line comes without end.
    """
    relay_output()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(LinesPerMinute())
    logging.basicConfig(
        handlers=[handler],
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
