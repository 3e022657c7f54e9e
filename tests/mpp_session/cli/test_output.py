"""Results go to standard output whole; people get wrapped lines, programs get JSON."""

import io
import json
from typing import Any

import pytest

from channel.errors import ChannelNotFoundError, PaymentRefusedError
from channel.types import address
from mpp_session.cli import output
from mpp_session.errors import ChildError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write_to(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, width: int = 0) -> None:
    """Let both consoles write to this."""
    console = output.build_console(stream, stderr=False)
    console.file = stream
    if width:
        console.width, console._force_terminal = width, True  # noqa: SLF001 -- as a terminal is
    monkeypatch.setattr(output, "get_console", lambda **_: console)


def test_a_file_gets_whole_lines_and_a_terminal_wrapped_ones() -> None:
    line = "word " * 60
    for stream, whole in ((io.StringIO(), True), (Terminal(), False)):
        console = output.build_console(stream, stderr=False)
        console.file, console.width = stream, 160 if whole else 80
        console.print(line)
        assert (len(stream.getvalue().splitlines()) == 1) is whole


def test_json_spells_bytes_as_the_wire_does(capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = {"who": address(b"\x01" * 20), "rows": [{"id": b"\xff"}], "n": None}
    output.print_json(document)
    assert json.loads(capsys.readouterr().out) == {
        "who": "0x" + "01" * 20,
        "rows": [{"id": "0xff"}],
        "n": None,
    }


def test_what_a_server_says_moves_no_cursor_and_sets_no_title(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CLIENT-01: its problem's detail is in the error of a refused payment."""
    written = io.StringIO()
    write_to(written, monkeypatch)
    detail = "\x1b]0;mine\x07\x1b[2Jpaid"
    output.print_error(PaymentRefusedError(status=402, problem_type="x", detail=detail))
    assert written.getvalue() == "error: The server answered 402 x: ]0;mine[2Jpaid\n"


def test_an_error_is_one_line_and_a_failed_child_is_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    write_to(written, monkeypatch)
    output.print_error(ChannelNotFoundError("no such\nchannel [bold]"))
    output.print_error(ChildError("the gateway ended", "line 1\nline 2"))
    assert written.getvalue().splitlines() == [
        "error: no such channel [bold]",
        "error: the gateway ended",
        "line 1",
        "line 2",
    ]


ROWS = [
    {"channel": "0x" + "5a" * 32, "payer": "0x" + "01" * 20, "deposit": "25,000,000.123456 dUSD"},
    {"channel": "0x" + "5b" * 32, "payer": "0x" + "02" * 20, "deposit": "0.000001 dUSD"},
]


@pytest.mark.parametrize("width", [0, 40, 80, 100, 300])
def test_no_number_and_no_id_is_ever_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """O-62: a terminal that is too narrow for the table gets one line for each column."""
    written = Terminal() if width else io.StringIO()
    write_to(written, monkeypatch, width=width)
    output.print_table(ROWS, right=["deposit"])
    shown = written.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    plain = "".join(shown.split())
    assert all("".join(cell.split()) in plain for row in ROWS for cell in row.values())
    if width >= 80 or not width:
        assert all(cell in shown for row in ROWS for cell in row.values())
    if width in (0, 300):
        assert len(shown.splitlines()) == 4


def test_one_of_a_thing_is_one_channel() -> None:
    """O-69."""
    assert [output.count(n, "channel") for n in (0, 1, 2000)] == [
        "0 channels",
        "1 channel",
        "2,000 channels",
    ]


def test_times_are_readable() -> None:
    """O-69: no raw Unix times."""
    assert output.format_time(1_796_000_000) == "2026-11-30 00:53:20 UTC"
