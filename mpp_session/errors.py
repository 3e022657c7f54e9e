"""What a command can end with, beside the errors of the two engines."""

from channel.errors import MppSessionError

__all__ = ["ChildError", "CommandError"]


class CommandError(MppSessionError):
    """A command cannot do what it was asked; the message says why in one line."""


class ChildError(CommandError):
    """A program started beside us failed. `log_tail` is the end of what it printed."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(message)
        self.log_tail = log_tail
