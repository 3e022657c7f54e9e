"""How a program logs: from which level on, and as text or as JSON (O-68)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mpp_session.cli.conftest import environment

PROGRAM = """
import json, logging, sys
from mpp_session.process.logs import log_arguments, log_to_stderr
from mpp_session.process.relay import drain
log_to_stderr(sys.argv[1], as_json=sys.argv[2] == "json")
ours, other = logging.getLogger("mpp_session.x"), logging.getLogger("library")
for log in (ours, other):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "%s says %d", log.name, level)
try:
    1 / 0
except ZeroDivisionError:
    ours.exception("a fault\\nof two lines")
drain()
print(json.dumps(log_arguments()))
drain()
"""


def log(tmp_path: Path, *arguments: str) -> tuple[str, list[str]]:
    done = subprocess.run(  # noqa: S603 -- ours
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    flags: list[str] = json.loads(done.stdout)
    return done.stderr, flags


@pytest.mark.parametrize(
    ("level", "ours", "others"),
    [
        ("debug", [10, 20, 30, 40], [20, 30, 40]),
        ("info", [20, 30, 40], [20, 30, 40]),
        ("warning", [30, 40], [30, 40]),
        ("error", [40], [40]),
    ],
)
def test_lines_are_logged_from_a_level_on(
    tmp_path: Path, level: str, ours: list[int], others: list[int]
) -> None:
    """O-68: what libraries say below `info` is never logged."""
    said, flags = log(tmp_path, level, "text")
    assert [n for n in (10, 20, 30, 40) if f"mpp_session.x says {n}" in said] == ours
    assert [n for n in (10, 20, 30, 40) if f"library says {n}" in said] == others
    assert flags == ["--log-level", level]


def test_json_is_one_document_a_line_with_the_trace_inside(tmp_path: Path) -> None:
    """O-68: a log collector reads it without rules of its own; a child logs in the same way."""
    said, flags = log(tmp_path, "warning", "json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "error", "warning", "error", "error"]
    assert lines[0]["logger"] == "mpp_session.x"
    assert lines[0]["time"].endswith("+00:00")
    assert lines[-1]["message"] == "a fault\nof two lines"
    assert "ZeroDivisionError" in lines[-1]["trace"]
    assert flags == ["--log-level", "warning", "--log-json"]
