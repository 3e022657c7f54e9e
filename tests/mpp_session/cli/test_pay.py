"""What `mpp-session pay` refuses before it pays, and says why."""

from pathlib import Path

import pytest

from mpp_session.testing import TestChain
from tests.mpp_session.cli.conftest import Run

JOKE = "http://127.0.0.1:9/joke"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([JOKE, "--prompt=x", "--json-body={}"], "either --prompt or --json-body"),
        ([JOKE, "--method=HEAD"], "HEAD is not a method that is sold"),
        ([JOKE, "-X", "connect"], "CONNECT is not a method"),
        ([JOKE, "--method=GET /joke"], "is not a method"),
        (["http://127.0.0.1:9"], "names no path"),
        (["http://127.0.0.1:9/"], "names no path"),
        ([JOKE, "--json-body=@none.json"], "none.json cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_refused(run: Run, arguments: list[str], said: str) -> None:
    """O-61: any method, and none that is never sold."""
    done = run("pay", *arguments, "--devnet=devnet.json")
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("arguments", [[], ["--method=PUT"], ["--method=put", "--json-body={}"]])
def test_what_can_be_asked_is_sent(
    run: Run, devnet: TestChain, tmp_path: Path, arguments: list[str]
) -> None:
    """O-61: as far as a server that is not there."""
    devnet.values.write(tmp_path / "devnet.json")
    done = run("pay", JOKE, *arguments, "--devnet=devnet.json")
    assert done.returncode == 1
    assert "connection" in done.stderr
