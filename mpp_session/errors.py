"""Errors of the commands, beside those of the two engines."""

from channel.errors import MppSessionError

__all__ = ["ChildError", "CommandError"]


class CommandError(MppSessionError):
    """A command cannot do its task; the message gives the reason in one line."""


class ChildError(CommandError):
    """A program that this one started failed. `log_tail` is the end of its output."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(message)
        self.log_tail = log_tail
