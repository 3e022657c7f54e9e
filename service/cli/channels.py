"""."""

NAME = "channels"


def command() -> None:
    """."""
