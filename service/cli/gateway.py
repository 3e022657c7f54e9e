"""`mpp-session gateway`."""

from typing import Final

__all__ = ["NAME", "command"]

NAME: Final = "gateway"


def command() -> None:
    """Say nothing yet."""
