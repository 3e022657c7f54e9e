"""The demos, as a newcomer runs them: a real model, real clients, a real chain, every figure."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_demo(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Return the report of a demo that ended with 0, and what it said meanwhile."""
    done = subprocess.run(  # noqa: S603 -- the options are this file's
        [sys.executable, "-m", "mpp_session.cli", "demo", "--json", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["mismatches"] == []
    return document["report"], done.stderr


@pytest.mark.timeout(300)
def test_the_demo_ends_0_and_every_figure_adds_up(tmp_path: Path) -> None:
    """The same figures from the agent's count, the provider's receipts and the chain."""
    report, said = run_demo(tmp_path)
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
    assert said.count("....") >= 6  # a progress line for each step


@pytest.mark.timeout(300)
def test_one_endpoint_sells_to_five_clients_of_others_and_the_table_balances(
    tmp_path: Path,
) -> None:
    """RAILS: payers, chain and books agree, for each client and rail."""
    report, _ = run_demo(tmp_path, "--rails")
    price, sales = report["price"], report["sales"]
    assert [(sale["rail"], sale["error"], sale["arrived"]) for sale in sales] == [
        (rail, "", price) for rail in ("charge", "charge", "x402", "x402", "x402", "session")
    ]
    assert len({sale["account"] for sale in sales}) == 6
    poorer = sum(sale["wealth"]["before"] - sale["wealth"]["after"] for sale in sales)
    assert poorer == report["payee"]["after"] - report["payee"]["before"] == 6 * price
    assert report["escrow"]["after"] == report["escrow"]["before"] == 0
    assert sum(entry["kind"] == "gas" for entry in report["books"]) == 7
