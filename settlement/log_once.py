"""Logs a recurring failure once, and again when its message changes."""

import logging

__all__ = ["LogOnce"]


class LogOnce:
    """Logs one operation's failures. A node that is away for a day is one line, not a flood."""

    def __init__(self, log: logging.Logger, text: str) -> None:
        """Log to `log`; `text` has a placeholder for the error."""
        self._log = log
        self._text = text
        self._said = ""

    def make(self, error: Exception) -> None:
        """Log the failure, unless the last one logged had the same text."""
        if str(error) != self._said:
            self._said = str(error)
            self._log.warning(self._text, error)

    def over(self) -> None:
        """Record a success: the next failure is logged again."""
        self._said = ""
