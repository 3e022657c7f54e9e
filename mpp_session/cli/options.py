"""Options that several commands have."""

import enum
from typing import Annotated

import typer

__all__ = ["Level", "LogJson", "LogLevel"]


class Level(enum.StrEnum):
    """From which importance on a line is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogLevel = Annotated[
    Level, typer.Option("--log-level", help="Least important lines that are logged.")
]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Log one JSON document a line, for a log collector.")
]
