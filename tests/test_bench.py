"""scripts/bench runs on a checkout, and says what it measured in the form that is documented."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
FIELDS = {"name", "ratio", "goal", "unit", "median", "min", "max", "besides"}


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    # `scripts/bench` without its set-up: the tests' own environment has what it needs.
    program = "import bench_report; bench_report.main()"
    return subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", program, *options],
        cwd=SCRIPTS,
        env={"PYTHONPATH": f"{SCRIPTS}:{SCRIPTS.parent}"},
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_quick_run_reports_each_part_as_a_ratio_to_raw_verification() -> None:
    done = bench("--quick", "--only", "parts", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert all(set(row) == FIELDS for row in rows)
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["raw verification, cached key"]["ratio"] == 1.0
    # A recovery cannot cost less than the verification that all is measured by: were it so,
    # something would have been remembered between two runs.
    assert by_name["verify a voucher: digest and signer"]["ratio"] > 1.0


def test_an_unknown_group_is_refused() -> None:
    done = bench("--only", "no such group")
    assert done.returncode != 0
    assert "no such group" in done.stderr
