"""What another implementation of the draft makes of a challenge that holds a tariff."""

import json
import shutil
import subprocess
from pathlib import Path

from channel.wire.challenge import Challenge, format_challenge
from tests.channel.tariff_model import VECTORS
from tests.waiting import PATIENCE_S

PROGRAM = Path(__file__).with_name("challenges.mjs")


def test_mppx_reads_each_golden_tariff_as_its_main_rate_and_echoes_it_unchanged() -> None:
    """TARIFF-03, TARIFF-04: the member is ignored, and the id still covers what comes back."""
    entries = json.loads(VECTORS.read_text(encoding="utf-8"))["tariffs"]
    lines = [
        format_challenge(Challenge("id", "realm", "evm", "session", entry["request"]))
        for entry in entries
    ]
    node = shutil.which("node")
    assert node is not None, "scripts/test installs node"
    done = subprocess.run(  # noqa: S603 - our own program
        [node, PROGRAM],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["amount"], one["unitType"]) for one in said] == [
        (entry["amount"], entry["unitType"]) for entry in entries
    ]
    for one, entry in zip(said, entries, strict=True):
        assert f'request="{entry["request"]}"' in one["again"]
