"""Options that several commands have."""

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "ConfigPath", "Devnet", "LedgerUrl", "Level", "LogJson", "LogLevel"]


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
ConfigPath = Annotated[Path | None, typer.Option("--config", "-c", help="The gateway's settings.")]
Devnet = Annotated[Path | None, typer.Option(help="Of a gateway that was started with --devnet.")]
LedgerUrl = Annotated[str | None, typer.Option("--ledger", help="URL of the books, instead.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
