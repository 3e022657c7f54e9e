"""`mpp-session channels`."""

from typing import Final

__all__ = ["NAME", "command"]

NAME: Final = "channels"


def command() -> None:
    """Say nothing yet."""
