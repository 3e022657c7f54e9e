"""`mpp-session pay`."""

from typing import Final

__all__ = ["NAME", "command"]

NAME: Final = "pay"


def command() -> None:
    """Say nothing yet."""
