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
    monkeypatch.setattr(output, "REPORT", output.build_console(written, stderr=False))
    output.REPORT.file = written
    detail = "\x1b]0;mine\x07\x1b[2Jpaid"
    output.print_error(PaymentRefusedError(status=402, problem_type="x", detail=detail))
    assert written.getvalue() == "error: The server answered 402 x: ]0;mine[2Jpaid\n"


def test_an_error_is_one_line_and_a_failed_child_is_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(output, "REPORT", output.build_console(written, stderr=False))
    output.REPORT.file = written
    output.print_error(ChannelNotFoundError("no such\nchannel [bold]"))
    output.print_error(ChildError("the gateway ended", "line 1\nline 2"))
    assert written.getvalue().splitlines() == [
        "error: no such channel [bold]",
        "error: the gateway ended",
        "line 1",
        "line 2",
    ]
