"""The settler as a process: what keeps it from starting, who stands by, and how it ends."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.state.commands import Command, Release, Spend
from mpp_session.process import settler as settle_process
from mpp_session.process.settler import SettlerParts, _prune, _tidy_quarantine, build_settler
from mpp_session.settings.config import load_settler_config
from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from settlement.tx.journal.interface import Quarantined
from settlement.tx.state import Confirmed, Event, Included, Sent
from tests.channel.books import KEY, key_of, opening, reserving
from tests.channel.ledger.test_sqlite import interrupt
from tests.e2e.warm import Forge
from tests.mpp_session.settlers import Settlers, owe_close, settler_variables, until_closed
from tests.settlement.transactions import INTENT, inclusion, signed, version
from tests.waiting import until, within

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
        ({"TOWER_EXPORT_FILE": "settles.jsonl", "TOWER_LIFE_S": "7199"}, "too short for an outage"),
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
    """Exit code 1: the supervisor tries again."""
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
    async with within(TAKE_OVER_S):
        owed = await owe_close(ledger, chain, salt=1)
        await second_said.until("settling")
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
    async with within(TAKE_OVER_S):
        await second_said.until("settling")
    os.kill(first.pid, signal.SIGCONT)
    async with within(TAKE_OVER_S):
        await said.until("standing by")
    await until_closed(chain, await owe_close(ledger, chain))
    payee = "0x" + chain.account("payee").address.hex()
    assert await chain.rpc.read("eth_getTransactionCount", payee, "latest") == "0x1"
    states = [report["state"] for report in said.reports()]
    assert states == ["settling", "standing by"]  # and holds up the one that settles no longer


async def test_a_settler_that_ends_in_order_is_replaced_immediately(settlers: Settlers) -> None:
    """It gives its lease back."""
    first, said = settlers.start()
    await said.until("settling")
    _, second_said = settlers.start()
    await second_said.until("standing by")
    first.send_signal(signal.SIGTERM)
    assert await first.wait() == 0
    async with within(2):
        await second_said.until("settling")


async def test_killed_and_started_again_it_goes_on(
    settlers: Settlers, ledger: Ledger, chain: Devnet
) -> None:
    """F-64, F-75: the next settler closes what became due while none ran."""
    first, said = settlers.start()
    await said.until("settling")
    first.send_signal(signal.SIGKILL)
    await first.wait()
    owed = await owe_close(ledger, chain)
    async with within(TAKE_OVER_S):
        _, again = settlers.start()
        await again.until("settling")
    await until_closed(chain, owed)


# -- what it is built of, and what it does beside settling


@asynccontextmanager
async def built(devnet: TestChain, folder: Path, **changes: str) -> AsyncIterator[SettlerParts]:
    variables = settler_variables(devnet, f"sqlite:///{folder / 'ledger.db'}", **changes)
    async with build_settler(load_settler_config(environment=variables)) as parts:
        yield parts


async def test_a_file_for_the_tower_that_cannot_be_written_is_a_setting(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-98, decision 15: else no process would watch while this settler is away."""
    settings = {"TOWER_EXPORT_FILE": "/proc/none/settles", "TOWER_LIFE_S": "7200"}
    async with built(devnet, tmp_path, **settings) as parts:
        with pytest.raises(ConfigError, match=r"`tower\.export_file` cannot be written"):
            await parts.build()


async def test_a_relayer_pays_the_gas_and_the_payee_signs(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-98, RELAY-06: each with its own key, and the channels are the payee's."""
    relayer, payee = devnet.account("deployer"), devnet.account("payee")
    settings = {
        "RELAYER_ADDRESS": "0x" + relayer.address.hex(),
        "RELAYER_KEY": "0x" + relayer.private_key.hex(),
    }
    async with built(devnet, tmp_path, **settings) as parts:
        assert parts.payee is not None
        assert (parts.sender.address, parts.payee.address) == (relayer.address, payee.address)
        sender, settler, _, _ = await parts.build()
        assert (sender.address, settler.payee) == (relayer.address, payee.address)
        await settler.aclose()


async def test_a_journal_that_is_away_is_pruned_later(
    devnet: TestChain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-98, F-51: what ended long ago is forgotten; the last nonce, and what is under way, not."""
    monkeypatch.setattr(settle_process, "_PRUNE_S", 0.01)
    monkeypatch.setattr(settle_process, "_PRUNE_REST_S", 0.01)
    async with built(devnet, tmp_path) as parts:
        _, settler, watcher, _ = await parts.build()
        journal = parts.journal
        await journal.take_lease("this test", ttl_s=600)
        old, under_way, newest = [await journal.add(INTENT, at=1) for _ in range(3)]
        for number, tx in enumerate((old, newest), start=1):
            ended: list[Event] = [Included(inclusion(number)), Confirmed()]
            await journal.record(tx.tx_id, [signed(2 * number, number), Sent(), *ended])
        watcher.clock.saw(await parts.reader.rpc.block())
        await interrupt(journal, lambda: 1)
        pruning = asyncio.create_task(_prune(journal, watcher))
        await until(lambda: "pruning the journal failed, will retry" in caplog.text)
        await interrupt(journal, None)

        async def is_forgotten() -> bool:
            return await journal.find(version(1).tx_hash) is None

        await until(is_forgotten)
        pruning.cancel()
        assert await journal.find(version(2).tx_hash) is not None
        assert [tx.tx_id for tx in await journal.open_transactions()] == [under_way.tx_id]
        assert await journal.next_nonce() == 5
        await settler.aclose()


async def test_a_quarantine_that_the_books_cannot_end_yet_is_tidied_later(
    devnet: TestChain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-98, F-79: one that owes nothing is let out, one that does is kept."""
    monkeypatch.setattr(settle_process, "_TIDY_S", 0.01)
    async with built(devnet, tmp_path) as parts:
        await parts.journal.take_lease("this test", ttl_s=600)
        paid: list[Command] = [reserving(b"r", 10), Spend(b"r", 10), Release(b"r")]
        await parts.ledger.apply(KEY, [opening(10), *paid])
        for key in (KEY, key_of(2)):
            held = Quarantined(key, "TOKEN_REFUSED", tries=1, since=1, retry_at=1)
            await parts.journal.quarantine(held)
        _, settler, _, _ = await parts.build()
        await settler.recover()
        await interrupt(parts.ledger, lambda: 1)
        tidying = asyncio.create_task(_tidy_quarantine(settler, parts.ledger))
        await until(lambda: "tidying the quarantine failed, will retry" in caplog.text)
        assert len(await parts.journal.quarantined()) == 2
        await interrupt(parts.ledger, None)

        async def is_tidy() -> bool:
            return [entry.key for entry in await parts.journal.quarantined()] == [KEY]

        await until(is_tidy)
        tidying.cancel()
        await settler.aclose()
