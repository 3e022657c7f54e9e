"""."""

NAME = "demo"


def command() -> None:
    """."""
