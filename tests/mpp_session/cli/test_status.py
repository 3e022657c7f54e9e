"""`mpp-session status`: for people on a terminal, for monitors by its exit code."""

import asyncio
import json
from pathlib import Path

import pytest

from channel.ledger.url import open_ledger
from mpp_session.testing.chain import TestChain
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from tests.mpp_session.cli.conftest import Run
from tests.settlement.books import Books
from tests.settlement.channels import Channels


def variables(devnet: TestChain, ledger: Path) -> dict[str, str]:
    values = devnet.values
    return {
        "MPP_SESSION_CHAIN_RPC_URL": values.rpc_url,
        "MPP_SESSION_CHAIN_ID": str(values.chain_id),
        "MPP_SESSION_CHAIN_ESCROW": "0x" + values.escrow.hex(),
        "MPP_SESSION_CHAIN_TOKEN": "0x" + values.token.hex(),
        "MPP_SESSION_PAYEE_ADDRESS": "0x" + devnet.account("payee").address.hex(),
        "MPP_SESSION_LEDGER_URL": f"sqlite:///{ledger}",
    }


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "books.db"
    asyncio.run(make_ledger(path))
    return path


async def make_ledger(path: Path) -> None:
    """Open the books once, as a gateway does: `status` itself makes nothing (O-86)."""
    await (await open_ledger(f"sqlite:///{path}", exclusive=True)).close()


async def owe(path: Path, devnet: TestChain, *, accepted: int = 250_000) -> None:
    """Open a channel, deliver 40 on it, and settle nothing."""
    async with devnet.connect() as chain:
        ledger = await open_ledger(f"sqlite:///{path}", exclusive=True)
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        account = PayerAccount(chain.sender("payer"))
        await Books(reader, ledger, Channels(chain, account)).open(accepted=accepted, spent=40)
        await ledger.close()


def test_all_is_well_and_a_monitor_hears_zero(run: Run, devnet: TestChain, ledger: Path) -> None:
    """No key, no secret, no price is needed."""
    devnet.advance(1)
    done = run("status", "--json", **variables(devnet, ledger))
    document = json.loads(done.stdout)
    levels = {"fine": 0, "warning": 10, "critical": 20}
    assert done.returncode == levels[document["level"]]
    assert document["channels"] == {"open": 0, "closing": 0, "stopped": 0}
    assert document["settler"] is None
    shown = run("status", **variables(devnet, ledger))
    assert "channels" in shown.stdout
    assert "0 open, 0 closing, 0 stopped" in shown.stdout


def test_the_prices_of_its_settings_are_shown_for_a_million_tokens(
    run: Run, devnet: TestChain, ledger: Path, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[price]\ninput = "0.10"\noutput = "0.40"\nminimum = "0.0001"\n')
    done = run("status", "--config", str(file), **variables(devnet, ledger))
    said = " ".join(done.stdout.split())
    assert (
        "prices 0.10 dUSD / 1M input tokens, 0.40 dUSD / 1M output tokens, at least 0.0001" in said
    )


def test_a_monitor_hears_twenty_when_money_is_at_stake(
    run: Run, devnet: TestChain, ledger: Path
) -> None:
    """F-64, O-69: no node answers, and something is owed; where nothing is, it hears ten."""
    given = variables(devnet, ledger) | {"MPP_SESSION_CHAIN_RPC_URL": "http://127.0.0.1:1"}
    idle = run("status", **given)
    assert idle.returncode == 10
    assert "warning: no node answers" in idle.stdout
    asyncio.run(owe(ledger, devnet))
    done = run("status", **given)
    assert done.returncode == 20
    assert "critical: no node answers" in done.stdout


def test_books_that_are_not_there_are_not_made(run: Run, devnet: TestChain, tmp_path: Path) -> None:
    missing = tmp_path / "none.db"
    done = run("status", **variables(devnet, missing))
    assert done.returncode == 2
    assert "there is no ledger" in done.stderr
    assert not missing.exists()


def test_the_payee_must_be_named(run: Run, devnet: TestChain, ledger: Path) -> None:
    given = variables(devnet, ledger)
    del given["MPP_SESSION_PAYEE_ADDRESS"]
    done = run("status", **given)
    assert done.returncode == 2
    assert "MPP_SESSION_PAYEE_ADDRESS" in done.stderr
