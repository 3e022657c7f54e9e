"""`mpp-session demo`."""

from typing import Final

__all__ = ["NAME", "command"]

NAME: Final = "demo"


def command() -> None:
    """Say nothing yet."""
