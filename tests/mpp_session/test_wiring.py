"""What runs beside a gateway, and when it must not run on."""

import asyncio
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from channel.errors import ConfigError, LedgerUnavailableError, StorageFailedError
from channel.types import Address
from mpp_session import wiring
from mpp_session.testing.chain import TestChain
from mpp_session.wiring import _expire_reservations, _prune, _require_clock
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.tx.journal.url import open_journal
from tests.channel.books import KEY, LEASE, opening, reserving, streaming
from tests.channel.ledger.test_sqlite import interrupt
from tests.channel.selling import open_provider
from tests.settlement.flaky_node import flaky_node
from tests.waiting import until


async def test_books_that_are_lost_end_what_the_gateway_ends_with(tmp_path: Path) -> None:
    """F-51: an idle gateway must not stay up on books it cannot keep."""
    with suppress(StorageFailedError):  # the settler may have looked, and ends with it
        async with open_provider(tmp_path) as provider:
            shutil.move(tmp_path / "ledger.sqlite", tmp_path / "elsewhere")
            with pytest.raises(StorageFailedError):
                await provider.ledger.apply(KEY, [opening(0)])
            for guard in (_prune(provider.ledger), _expire_reservations(provider.engine, 0.01)):
                with pytest.raises(StorageFailedError, match="new process"):
                    await guard


async def test_books_that_are_away_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F-51: what is only away comes back."""
    async with open_provider(tmp_path) as provider:
        tries = []

        async def away(_: int) -> int:
            tries.append("again")
            if len(tries) < 3:
                raise LedgerUnavailableError("The database is away.")
            raise StorageFailedError("This ends the test.")

        monkeypatch.setattr(provider.ledger, "expire_reservations", away)
        with caplog.at_level(logging.CRITICAL), pytest.raises(StorageFailedError):
            await _expire_reservations(provider.engine, 0.001)
        assert len(tries) == 3


async def test_what_a_dead_owner_held_is_ended_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, decision 8: a request's money goes back, a stream's is spent; once, and in the log."""
    async with open_provider(tmp_path) as provider:
        await provider.ledger.apply(KEY, [opening(50), streaming(b"s", 5), reserving(b"r", 7)])
        provider.clock.advance(LEASE - provider.clock() + 1)
        expiring = asyncio.create_task(_expire_reservations(provider.engine, 0.01))
        await until(lambda: bool(caplog.records))
        await asyncio.sleep(0.05)
        expiring.cancel()
        said = [record.getMessage() for record in caplog.records]
        assert said == ["ended the reservations of 1 channels whose owner died"]
        state = await provider.ledger.load(KEY)
        assert state is not None
        assert (state.spent, state.reserved) == (5, 0)


async def test_books_that_are_away_are_pruned_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, F-51: and the gateway goes on selling."""
    monkeypatch.setattr(wiring, "_PRUNE_INTERVAL_S", 0.001)
    async with open_provider(tmp_path) as provider:
        await interrupt(provider.ledger, lambda: 1)
        with caplog.at_level(logging.ERROR):
            pruning = asyncio.create_task(_prune(provider.ledger))
            await until(lambda: len(caplog.records) > 1)
        await interrupt(provider.ledger, None)
        assert {record.getMessage() for record in caplog.records} == {
            "pruning the ledger failed, will retry"
        }
        assert not pruning.done()
        pruning.cancel()
        assert (await provider.ledger.apply(KEY, [opening(50)])).require().accepted == 50


@pytest.mark.parametrize("off_s", [0, -7200])
async def test_a_clock_is_held_against_a_node_that_answers_late(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: int
) -> None:
    """O-98, O-90: no node has shown its head when all are asked together; they are asked again."""
    wall = time.time() + off_s
    monkeypatch.setattr(wiring, "time", SimpleNamespace(time=lambda: wall))
    values = devnet.values
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    journal = await open_journal(url, chain_id=values.chain_id, account=Address(b"\xb2" * 20))
    async with (
        flaky_node(values.rpc_url) as node,
        await Rpc.connect(node.url, chain_id=values.chain_id) as rpc,
    ):
        node.fault, node.times = "error", 1
        checking = _require_clock(EscrowReader(rpc, values.escrow), journal)
        if off_s:
            with pytest.raises(ConfigError, match="behind"):
                await checking
        else:
            await checking
        assert node.times == 0
    await journal.close()
