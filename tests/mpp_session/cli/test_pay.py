"""What `mpp-session pay` refuses before it pays, and says why."""

from pathlib import Path

import pytest

from channel.types import Address, TokenUnit
from mpp_session.cli.wallet import Caps
from mpp_session.errors import CommandError
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
        ([JOKE, "--price-max=cheap"], "--price-max: output_token: expected a price such as"),
        ([JOKE, "--price-max=input_token=1 eur"], "input_token: expected a price in dUSD"),
        ([JOKE, "--deposit-max=1 eur"], "--deposit-max, --budget: amount: expected an amount in"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    run: Run, devnet: TestChain, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """O-61: any method, and none that is never sold."""
    devnet.values.write(tmp_path / "devnet.json")
    done = run("pay", *arguments, "--devnet=devnet.json")
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("flags", "prices"),
    [
        ([], {"output_token": 100, "llm_token": 100, "request": 10_000}),
        (["24"], {"output_token": 24, "llm_token": 24, "request": 24}),
        (["0.60 / 1M"], {"output_token": "0.60 / 1M", "request": 10_000}),
        (["0.01"], {"output_token": "0.01", "request": "0.01"}),
        (
            ["input_token=0.15 usdc / 1M", "image=9", "0.60 / 1M"],
            {"output_token": "0.60 / 1M", "input_token": "0.15 usdc / 1M", "image": 9},
        ),
    ],
)
def test_a_price_is_of_one_kind_or_of_all(flags: list[str], prices: dict[str, int | str]) -> None:
    """An integer is base units for one unit, as before."""
    caps = Caps(flags, "1.50 usdc", "2000000")
    limits = caps.policy(1, Address(bytes(20)), TokenUnit("USDC", 6)).limits[0]
    assert {kind: limits.unit_price_max[kind] for kind in prices} == prices
    assert (limits.deposit_max, limits.budget) == (1_500_000, 2_000_000)


def test_money_needs_a_token_with_a_name() -> None:
    for caps in (Caps(["0.60 / 1M"], "1", "1"), Caps([], "1.00", "1")):
        with pytest.raises(
            CommandError, match=r"TokenLimits\.unit|the node does not name the token"
        ):
            caps.policy(1, Address(bytes(20)), None)


@pytest.mark.parametrize("arguments", [[], ["--method=PUT"], ["--method=put", "--json-body={}"]])
def test_what_can_be_asked_is_sent(
    run: Run, devnet: TestChain, tmp_path: Path, arguments: list[str]
) -> None:
    """O-61: as far as a server that is not there."""
    devnet.values.write(tmp_path / "devnet.json")
    done = run("pay", JOKE, *arguments, "--devnet=devnet.json")
    assert done.returncode == 1
    assert "connection" in done.stderr
