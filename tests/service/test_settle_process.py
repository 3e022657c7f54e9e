"""The settler as a process: what keeps it from starting, who stands by, and how it ends."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from service.testing.chain import TestChain
from settlement.devnet import Devnet
from tests.e2e.warm import Forge
from tests.service.settlers import Settlers, owe_close, settler_variables, until_closed

pytestmark = pytest.mark.timeout(120)

TAKE_OVER_S = 10.0
STRANGER = "0x" + "33" * 20


@pytest.fixture
async def chain(devnet: TestChain) -> AsyncIterator[Devnet]:
    async with devnet.connect() as connected:
        yield connected


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    opened = await open_ledger(ledger_url, exclusive=False)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def settlers(
    forge: Forge, tmp_path: Path, devnet: TestChain, ledger_url: str
) -> Iterator[Settlers]:
    started = Settlers(forge, tmp_path, settler_variables(devnet, ledger_url))
    yield started
    started.end()


# -- what keeps it from starting


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PAYEE_ADDRESS": STRANGER}, "The key is 0x"),
        ({"PAYEE_KEY": "0x00"}, "payee.key"),
        ({"PAYEE_KEY": None}, "names no key"),
        ({"RELAYER_ADDRESS": STRANGER}, "`relayer` names no key"),
        ({"RELAYER_ADDRESS": STRANGER, "RELAYER_KEY": "0x" + "11" * 32}, "`relayer.address`"),
        ({"CHAIN_ID": "1337"}, "chain 31337"),
        ({"CHAIN_ID": "1"}, "development chains only"),
        ({"CHAIN_ESCROW": STRANGER}, "no escrow"),
        ({"CHAIN_TOKEN": STRANGER}, "serves token"),
        ({"LEDGER_URL": "sqlite:///:memory:"}, "in memory"),
        ({"SETTLEMENT_SETTLE_VALU": "5"}, "did you mean"),
        ({"TOWER_EXPORT_FILE": "/proc/none/settles", "TOWER_LIFE_S": "7200"}, "cannot be written"),
        ({"TOWER_EXPORT_FILE": "settles.jsonl", "TOWER_LIFE_S": "7199"}, "outlive"),
    ],
)
async def test_it_does_not_start(
    forge: Forge,
    devnet: TestChain,
    tmp_path: Path,
    changes: dict[str, str | None],
    said: str,
) -> None:
    """F-81, F-106, SEC-09, decision 15: one report, exit code 2, and no key in it."""
    variables = settler_variables(devnet, f"sqlite:///{tmp_path / 'ledger.db'}", **changes)
    process, log = Settlers(forge, tmp_path, variables).start()
    assert await process.wait() == 2, log.text()
    (report,) = log.reports()
    assert said in report["error"]
    assert "Traceback" not in log.text()
    assert devnet.values.accounts["payee"].private_key.hex() not in log.text()


async def test_a_node_that_is_away_is_no_setting(
    forge: Forge, devnet: TestChain, tmp_path: Path
) -> None:
    """Exit code 1: whoever supervises it tries again."""
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    variables = settler_variables(devnet, ledger, CHAIN_RPC_URL="http://127.0.0.1:9")
    process, log = Settlers(forge, tmp_path, variables).start()
    assert await process.wait() == 1, log.text()
    assert "error" in log.reports()[0]


# -- who settles


async def test_a_second_one_stands_by_and_takes_over_from_one_that_is_killed(
    settlers: Settlers, ledger: Ledger, chain: Devnet
) -> None:
    """F-110: within ten seconds, and what was owed meanwhile is closed."""
    first, said = settlers.start()
    await said.until("settling")
    _, second_said = settlers.start()
    await second_said.until("standing by")
    await until_closed(chain, await owe_close(ledger, chain))
    assert not second_said.has("settling")
    first.send_signal(signal.SIGKILL)
    await first.wait()
    began = time.monotonic()
    owed = await owe_close(ledger, chain, salt=1)
    await second_said.until("settling", within_s=TAKE_OVER_S)
    assert time.monotonic() - began < TAKE_OVER_S
    await until_closed(chain, owed)


async def test_one_that_hangs_is_replaced_and_stands_by_when_it_is_back(
    settlers: Settlers, ledger: Ledger, chain: Devnet
) -> None:
    """F-110: its lease has run out; its fence lets it write nothing more."""
    first, said = settlers.start()
    await said.until("settling")
    _, second_said = settlers.start()
    await second_said.until("standing by")
    os.kill(first.pid, signal.SIGSTOP)
    await second_said.until("settling", within_s=TAKE_OVER_S)
    os.kill(first.pid, signal.SIGCONT)
    await said.until("standing by", within_s=TAKE_OVER_S)
    await until_closed(chain, await owe_close(ledger, chain))
    payee = "0x" + chain.account("payee").address.hex()
    assert await chain.rpc.read("eth_getTransactionCount", payee, "latest") == "0x1"
    states = [report["state"] for report in said.reports()]
    assert states == ["settling", "standing by"]  # and holds up the one that settles no longer


async def test_one_that_ends_in_order_is_replaced_at_once(settlers: Settlers) -> None:
    """It gives its lease back."""
    first, said = settlers.start()
    await said.until("settling")
    _, second_said = settlers.start()
    await second_said.until("standing by")
    first.send_signal(signal.SIGTERM)
    assert await first.wait() == 0
    await second_said.until("settling", within_s=2.0)


async def test_killed_and_started_again_it_goes_on(
    settlers: Settlers, ledger: Ledger, chain: Devnet
) -> None:
    """F-64, F-75: what was owed while nobody was there is closed by the next one."""
    first, said = settlers.start()
    await said.until("settling")
    first.send_signal(signal.SIGKILL)
    await first.wait()
    owed = await owe_close(ledger, chain)
    await asyncio.sleep(0.1)
    _, again = settlers.start()
    await again.until("settling", within_s=TAKE_OVER_S)
    await until_closed(chain, owed)
