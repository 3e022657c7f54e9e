"""The first journey, as a newcomer runs it: a real model, a real chain, every figure checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
def test_the_demo_ends_0_and_every_figure_adds_up(tmp_path: Path) -> None:
    """The same figures from the agent's count, the provider's receipts and the chain."""
    done = subprocess.run(
        [sys.executable, "-m", "mpp_session.cli", "demo", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["mismatches"] == []
    report = document["report"]
    assert [sent["name"] for sent in report["transactions"]] == ["open", "close"]
    assert [sent["sender"] for sent in report["transactions"]] == ["payee", "payee"]
    assert report["before"]["payer_wei"] == report["after"]["payer_wei"] == 0
    assert len(report["answers"]) == 2
    for answer in report["answers"]:
        assert answer["text"]
        assert answer["units"] == answer["output_tokens"] > 0
        tenths = answer["input_tokens"] + 4 * answer["output_tokens"]  # 0.10 and 0.40 a million
        assert answer["cost"] == -(-tenths // 10)
    assert report["paid"] == sum(answer["cost"] for answer in report["answers"])
    assert report["vouchers_signed"] >= 2
    assert report["signature_checks"] >= report["vouchers_signed"]
    assert done.stderr.count("....") >= 6  # a progress line for each step
