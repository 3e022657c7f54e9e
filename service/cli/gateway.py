"""."""

NAME = "gateway"


def command() -> None:
    """."""
