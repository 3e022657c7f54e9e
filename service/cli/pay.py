"""."""

NAME = "pay"


def command() -> None:
    """."""
