"""What people and programs read: amounts, lines, errors, JSON.

Results go to standard output, everything else to standard error, so that a pipe gets results
alone. Colours and moving lines appear on a terminal only.
"""

import sys
from typing import Any, Final, TextIO

import msgspec
from rich.console import Console
from rich.text import Text

from channel.errors import MppSessionError
from mpp_session.errors import ChildError

__all__ = ["OUT", "REPORT", "build_console", "print_error", "print_json", "print_json_line", "step"]

_PLAIN_WIDTH: Final = 160


def build_console(stream: TextIO, *, stderr: bool) -> Console:
    """A terminal wraps; a file has room for every column and keeps each line whole."""
    is_file = not stream.isatty()
    width = _PLAIN_WIDTH if is_file else None
    return Console(stderr=stderr, highlight=False, soft_wrap=is_file, width=width)


OUT: Final = build_console(sys.stdout, stderr=False)
REPORT: Final = build_console(sys.stderr, stderr=True)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output; bytes as 0x-prefixed hexadecimal."""
    document = msgspec.json.format(msgspec.json.encode(_plain(value)), indent=2)
    sys.stdout.write(document.decode() + "\n")
    sys.stdout.flush()


def print_json_line(value: Any) -> None:
    """Write one JSON document on one line: for a program that reads as it comes."""
    sys.stdout.write(msgspec.json.encode(_plain(value)).decode() + "\n")
    sys.stdout.flush()


def print_error(error: MppSessionError) -> None:
    """Write an error as one line, followed by a failed program's last words.

    A server's own words may be in it: no control sequence of theirs reaches the terminal.
    """
    line = Text("error: ", style="bold red")
    words = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
    line.append(words or type(error).__name__, style="default")
    REPORT.print(line)
    if isinstance(error, ChildError) and error.log_tail:
        REPORT.print(Text(error.log_tail, style="dim"))


def step(what: str, seconds: float) -> None:
    """Write one progress line: what was done and how long it took."""
    REPORT.print(Text(f"{what:.<60} {seconds:5.1f} s"))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    return value
