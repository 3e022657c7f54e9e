"""The watchtower as a process: what keeps it from starting, and who of two watches."""

import signal
from pathlib import Path

import pytest

from mpp_session.testing.chain import TestChain
from settlement.tx.journal.url import open_journal
from tests.e2e.warm import Forge
from tests.mpp_session.settlers import Settlers, settler_variables
from tests.waiting import until, within

STRANGER = "0x" + "33" * 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "give a watchtower only `payee.address`"),
        ({"PAYEE_KEY": None, "RELAYER_ADDRESS": None}, "`relayer.address` is missing"),
        ({"PAYEE_KEY": None, "RELAYER_KEY": "0x" + "11" * 32}, "`relayer.address`"),
        ({"PAYEE_KEY": None, "RELAYER_KEY": None}, "names no key"),
        ({"PAYEE_KEY": None, "CHAIN_ESCROW": STRANGER}, "no escrow"),
    ],
)
async def test_a_watchtower_does_not_start(
    forge: Forge,
    devnet: TestChain,
    tmp_path: Path,
    changes: dict[str, str | None],
    said: str,
) -> None:
    """Decision 15: above all not with the payee's key, which is unguarded there."""
    account = devnet.values.accounts["stranger"]
    own: dict[str, str | None] = {
        "RELAYER_ADDRESS": "0x" + account.address.hex(),
        "RELAYER_KEY": "0x" + account.private_key.hex(),
    }
    ledger = f"sqlite:///{tmp_path / 'tower.db'}"
    variables = settler_variables(devnet, ledger, **{**own, **changes})
    started = Settlers(forge, tmp_path, variables)
    process, log = started.start("--watchtower", str(tmp_path / "settles.jsonl"))
    assert await process.wait() == 2, log.text()
    (report,) = log.reports()
    assert said in report["error"]
    assert account.private_key.hex() not in log.text()


async def test_a_second_one_with_the_same_account_stands_by(
    forge: Forge, devnet: TestChain, tmp_path: Path
) -> None:
    """F-74, F-110: two would give the same nonces. What it saw last is there for a monitor."""
    account = devnet.values.accounts["stranger"]
    ledger = f"sqlite:///{tmp_path / 'tower.db'}"
    variables = settler_variables(
        devnet,
        ledger,
        PAYEE_KEY=None,
        RELAYER_ADDRESS="0x" + account.address.hex(),
        RELAYER_KEY="0x" + account.private_key.hex(),
    )
    towers = Settlers(forge, tmp_path, variables)
    arguments = ("--watchtower", str(tmp_path / "settles.jsonl"))
    try:
        first, said = towers.start(*arguments)
        await said.until("watching")
        second, second_said = towers.start(*arguments)
        await second_said.until("standing by")
        journal = await open_journal(
            ledger, chain_id=devnet.values.chain_id, account=account.address
        )

        async def has_looked() -> bool:
            return await journal.last_look() is not None

        await until(has_looked)
        await journal.close()
        first.send_signal(signal.SIGTERM)
        assert await first.wait() == 0
        async with within(10):
            await second_said.until("watching")
        second.send_signal(signal.SIGTERM)
        assert await second.wait() == 0
    finally:
        towers.end()
