"""`mpp-session export`: files that a spreadsheet and a program read."""

import asyncio
import csv
import io
import json
from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.ledger.url import open_ledger
from mpp_session.cli.export import format_cell, read_time
from tests.channel.books import KEY, opening
from tests.mpp_session.cli.conftest import Run
from tests.mpp_session.operator.test_export import OCTOBER, sell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert format_cell(text) == f"'{text}"
    assert format_cell({"k": 1}) == '{"k":1}'
    assert format_cell(None) == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-10", OCTOBER),
        ("2026-10-01", OCTOBER),
        ("2026-10-01T00:00:00Z", OCTOBER),
        ("2026-10-01T02:00:00+02:00", OCTOBER),
    ],
)
def test_times_are_months_dates_or_moments(text: str, seconds: int) -> None:
    assert read_time(text, "--from") == seconds


@pytest.mark.parametrize("text", ["", "october", "2026-13", "2026-10-32", "26-10-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--from: expected 2026-10"):
        read_time(text, "--from")


@pytest.fixture
def sold(tmp_path: Path) -> str:
    """A ledger with two paid requests."""
    url = f"sqlite:///{tmp_path / 'sold.db'}"

    async def fill() -> None:
        ledger = await open_ledger(url, exclusive=True, now=lambda: float(OCTOBER))
        await ledger.apply(KEY, [opening(100)])
        await sell(ledger, 3, "+small")
        await sell(ledger, 4, "large")
        await ledger.close()

    asyncio.run(fill())
    return url


def test_the_command_writes_csv_that_a_spreadsheet_can_open(
    run: Run, sold: str, tmp_path: Path
) -> None:
    done = run("export", "--from", "2026-10", "--ledger", sold)
    assert done.returncode == 0, done.stderr
    assert "payouts and gas are left out" in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["base_units"] for row in rows] == ["3", "4"]
    assert [row["model"] for row in rows] == ["'+small", "large"]
    assert [row["response_id"] for row in rows] == ["'=cmd()"] * 2
    assert json.loads(rows[0]["usage"]) == {"output_token": 3}
    file = tmp_path / "october.csv"
    again = run("export", "--from", "2026-10", "--ledger", sold, "--output", str(file))
    assert again.returncode == 0, again.stderr
    assert file.read_text() == done.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    assert run("export", "--from", "2026-10", "--ledger", sold, "-o", str(file)).returncode == 1


def test_the_command_writes_lines_of_json_and_sums(run: Run, sold: str) -> None:
    arguments = ("--from", "2026-10-01", "--to", "2026-10-02", "--ledger", sold, "--no-chain")
    lines = run("export", *arguments, "--format", "jsonl").stdout.splitlines()
    first = json.loads(lines[0])
    assert (first["kind"], first["base_units"], first["usage"]) == (
        "charge",
        "3",
        {"output_token": 3},
    )
    assert first["request_id"] == f"gen-{'72' * 16}"
    sums = run("export", *arguments, "--format", "jsonl", "--by", "day").stdout.splitlines()
    assert [json.loads(line)["model"] for line in sums] == ["+small", "large"]
    assert "channel_id" not in json.loads(sums[0])
    other = ("--from", "2026-10-02", "--to", "2026-10-03", "--ledger", sold, "--no-chain")
    assert run("export", *other, "--format", "jsonl").stdout == ""
    wrong = run("export", "--from", "2026-10-02", "--to", "2026-10-02", "--ledger", sold)
    assert wrong.returncode == 2
    assert "expected --from before --to" in wrong.stderr
