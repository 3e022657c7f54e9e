"""Where the log goes: to standard error, for a terminal or whatever supervises the process."""

import logging
import sys

from service.relay import relay_output

__all__ = ["log_to_stderr"]


def log_to_stderr() -> None:
    """Log what an operator should know, and of libraries what is a warning.

    From then on nothing that this process prints or logs waits for its reader.
    """
    relay_output()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
