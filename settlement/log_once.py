"""A warning about what is tried again all the time: said once, and again when it changes."""

import logging

__all__ = ["LogOnce"]


class LogOnce:
    """One thing that fails now and then. A node that is away for a day is one line, not a flood."""

    def __init__(self, log: logging.Logger, text: str) -> None:
        """Say `text`, which has a place for the error, to `log`."""
        self._log = log
        self._text = text
        self._said = ""

    def make(self, error: Exception) -> None:
        """Say that it failed, unless that was said last."""
        if str(error) != self._said:
            self._said = str(error)
            self._log.warning(self._text, error)

    def over(self) -> None:
        """Note that it went well: the next failure is news."""
        self._said = ""
