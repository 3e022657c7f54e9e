"""What people and programs read: amounts, lines, tables, times, errors, JSON.

Results go to standard output, everything else to standard error, so that a pipe gets results
alone. Colours and moving lines appear on a terminal only. rich is imported when the first line is
written: `--help` has no use for it (O-65).
"""

import functools
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from channel.errors import MppSessionError
from mpp_session.errors import ChildError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "build_console",
    "count",
    "format_id",
    "format_time",
    "get_console",
    "print_error",
    "print_json",
    "print_json_line",
    "print_pairs",
    "print_table",
    "report",
    "say",
    "step",
]

_PLAIN_WIDTH: Final = 1_000


def build_console(stream: TextIO, *, stderr: bool) -> "Console":
    """A terminal wraps; a file has room for every column and keeps each line whole."""
    from rich.console import Console

    is_file = not stream.isatty()
    width = _PLAIN_WIDTH if is_file else None
    return Console(stderr=stderr, highlight=False, soft_wrap=is_file, width=width)


@functools.cache
def get_console(*, stderr: bool) -> "Console":
    """Return the console of one of the two outputs."""
    return build_console(sys.stderr if stderr else sys.stdout, stderr=stderr)


def say(line: str = "", *, style: str = "", whole: bool = False) -> None:
    """Write one line of a result. `whole`: a terminal must not wrap it, for it is to be copied."""
    from rich.text import Text

    get_console(stderr=False).print(Text(line, style=style), soft_wrap=whole or None)


def report(line: str = "", *, style: str = "") -> None:
    """Write one line about what is being done, beside the result."""
    from rich.text import Text

    get_console(stderr=True).print(Text(line, style=style))


def print_pairs(pairs: Sequence[tuple[str, str]], *, stderr: bool = False) -> None:
    """Write names and values, one pair a line, the values below each other."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    get_console(stderr=stderr).print(table)


def print_table(
    rows: Sequence[Mapping[str, str]], *, right: Collection[str] = (), title: str = ""
) -> None:
    """Write rows that have the same columns; those of `right` are numbers, and end in line.

    No cell is ever cut (O-62). Where the terminal is too narrow for the whole table, each row is
    written as a block, with one line for each column.
    """
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    console = get_console(stderr=False)
    if title:
        say(title, style="bold")
    table = Table(show_edge=False)
    for name in rows[0]:
        justify = "right" if name in right else "left"
        table.add_column(Text(name), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(Text, row.values()))
    unbounded = console.options.update(width=sys.maxsize)
    width = console.measure(table, options=unbounded).maximum
    if width <= console.width or not console.is_terminal:
        console.print(table, width=width)
        return
    for index, row in enumerate(rows):
        if index:
            say()
        print_pairs(list(row.items()))


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 channel`, `2 channels` (O-69)."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_time(unix_s: float) -> str:
    """Return a time as people read it, to the second, in UTC (O-69)."""
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def format_id(value: bytes) -> str:
    """Return an address, a channel id or a hash as it is copied into another command."""
    return "0x" + value.hex()


def print_json(value: Any) -> None:
    """Write one JSON document to standard output; bytes as 0x-prefixed hexadecimal."""
    import msgspec

    document = msgspec.json.format(msgspec.json.encode(_plain(value)), indent=2)
    sys.stdout.write(document.decode() + "\n")
    sys.stdout.flush()


def print_json_line(value: Any) -> None:
    """Write one JSON document on one line: for a program that reads as it comes."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(_plain(value)).decode() + "\n")
    sys.stdout.flush()


def print_error(error: MppSessionError) -> None:
    """Write an error as one line, followed by a failed program's last words.

    A server's own words may be in it: no control sequence of theirs reaches the terminal.
    """
    from rich.text import Text

    line = Text("error: ", style="bold red")
    words = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
    line.append(words or type(error).__name__, style="default")
    get_console(stderr=True).print(line)
    if isinstance(error, ChildError) and error.log_tail:
        report(error.log_tail, style="dim")


def step(what: str, seconds: float) -> None:
    """Write one progress line: what was done and how long it took."""
    report(f"{what:.<60} {seconds:5.1f} s")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "__struct_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    return value
