"""`mpp-session ledger` on a gateway's books: old ones stop a channel until it is repaired."""

import asyncio
import json
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.ledger.url import open_ledger
from channel.limits import CACHE_TRUSTED_S
from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.settle.settler import EscrowSettler
from tests.e2e.customers import Customer
from tests.e2e.gateways import PRICE, GatewayProcess, free_port, gateway_command, gateway_variables
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import model_server
from tests.waiting import PATIENCE_S, until

COST = 3 * PRICE
"""Of the model server's answer: three words."""


class Commands:
    """Runs `mpp-session ledger` on one ledger."""

    def __init__(self, forge: Forge, folder: Path, url: str) -> None:
        self._forge = forge
        self._folder = folder
        self._url = url
        self._count = 0

    async def __call__(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code and all that was printed."""
        self._count += 1
        log = self._folder / f"ledger-{self._count}.log"
        process = self._forge.start(["ledger", *arguments, "--ledger", self._url], {}, log)
        code = await process.wait()
        return code, log.read_text()

    async def as_json(self, *arguments: str) -> tuple[int, Any]:
        code, said = await self(*arguments, "--json")
        return code, json.loads(said)


def back_up(ledger: Path, copy: Path) -> None:
    """As `sqlite3 ledger.db ".backup copy.db"` does."""
    source, target = sqlite3.connect(ledger), sqlite3.connect(copy)
    source.backup(target)
    source.close()
    target.close()


def restore(copy: Path, ledger: Path) -> None:
    for suffix in ("-wal", "-shm"):
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, ledger)


async def test_books_from_an_old_backup_stop_the_channel_until_they_are_repaired(
    devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge
) -> None:
    """F-52, SETTLE-05, ACC-07: nothing is served on what the chain contradicts; then all of it."""
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    commands = Commands(forge, tmp_path, f"sqlite:///{path}")
    async with (
        model_server() as model,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        variables = gateway_variables(devnet.values, model.url, path, free_port(), step_units=8)
        log = tmp_path / "gateway.log"
        gateway = GatewayProcess(gateway_command(), variables, log, forge=forge)
        customer = Customer(chain, client)
        reader = EscrowReader(chain.rpc, devnet.values.escrow)
        async with gateway.running():
            await customer.open(gateway.url, 10**6)
            assert (await customer.buy(gateway.url, 200)).status_code == 200
            back_up(path, copy)
            for amount in (400, 600):
                assert (await customer.buy(gateway.url, amount)).status_code == 200
            settler = EscrowSettler(reader, chain.sender("payee"))
            signature = customer.payer.sign(600).signature
            await settler.settle_channel(customer.payer.key, 600, signature)
            await settler.aclose()
            # In order, so that its settler has let go of the file before another takes its place.
            assert await gateway.end(signal.SIGTERM) == 0
            restore(copy, path)
            assert await commands.as_json("check") == (0, {"faults": [], "stopped": []})
            adopted = forge.start(
                ["ledger", "adopt", "--nothing-lost"], variables, tmp_path / "adopted"
            )
            assert await adopted.wait() == 0
            await gateway.start()
            served = len(model.seen)
            refused = await customer.buy(gateway.url, 800)
            assert refused.status_code == 503
            assert "www-authenticate" not in refused.headers
            channel_id = f"0x{customer.payer.key.channel_id.hex()}"
            code, found = await commands.as_json("check")
            assert (code, found["faults"]) == (1, [])
            (stopped,) = found["stopped"]
            assert stopped["channel_id"] == channel_id
            assert "older than the chain" in stopped["reason"]
            code, said = await commands("repair", channel_id, "--accepted", "500", "--spent", "501")
            assert (code, "after a repair; give amounts" in said) == (1, True)
            assert (await customer.buy(gateway.url, 800)).status_code == 503
            assert len(model.seen) == served
            repaired = {"accepted": "600", "spent": "600", "settled": "600", "stopped": False}
            assert await commands.as_json("repair", channel_id) == (
                0,
                {"channel_id": channel_id, **repaired},
            )
            assert (await commands("check"))[0] == 0
            await asyncio.sleep(CACHE_TRUSTED_S)  # the gateway hears of it by then
            assert (await customer.buy(gateway.url, 600)).status_code == 402
            bought = await customer.buy(gateway.url, 800)
            assert bought.status_code == 200, bought.text
            closed = await customer.manage(gateway.url, customer.payer.closing(600 + COST))
            assert closed.status_code == 200, closed.text
        fact = await reader.read_channel(customer.payer.key.channel_id)
        assert fact is not None
        assert (fact.settled, fact.is_finalized) == (600 + COST, True)


async def test_yesterdays_books_sell_nothing_again(
    devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge
) -> None:
    """O-06: nothing was settled since the backup; the same vouchers buy nothing, before and after.

    Kill it immediately, so that the marker knows only what it knew at the last answer.
    """
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    async with (
        model_server() as model,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        variables = gateway_variables(devnet.values, model.url, path, free_port(), step_units=8)
        alone = variables | {"MPP_SESSION_SETTLEMENT_START": "false"}  # no settler outlives it
        gateway = GatewayProcess(gateway_command(), alone, tmp_path / "log", forge=forge)
        customer = Customer(chain, client)
        async with gateway.running():
            await customer.open(gateway.url, 10**6)
            assert (await customer.buy(gateway.url, 200)).status_code == 200
            back_up(path, copy)
            assert (await customer.buy(gateway.url, 400)).status_code == 200
            await gateway.end(signal.SIGKILL)
        restore(copy, path)
        refused = forge.start(["gateway"], alone, tmp_path / "refused")
        await until(lambda: refused.returncode is not None)
        said = (tmp_path / "refused").read_text()
        assert refused.returncode == 2, said
        assert "lacks what it has acknowledged" in said
        assert "mpp-session ledger adopt" in said
        adopted = forge.start(["ledger", "adopt", "--json"], alone, tmp_path / "adopted")
        assert await adopted.wait() == 0, (tmp_path / "adopted").read_text()
        assert json.loads((tmp_path / "adopted").read_text())["closing"] == 1
        gateway = GatewayProcess(gateway_command(), variables, tmp_path / "log", forge=forge)
        async with gateway.running():
            served = len(model.seen)
            for amount in (400, 600):
                assert (await customer.buy(gateway.url, amount)).status_code == 410
            assert len(model.seen) == served
            reader = EscrowReader(chain.rpc, devnet.values.escrow)
            await until(lambda: is_closed(reader, customer))


async def is_closed(reader: EscrowReader, customer: Customer) -> bool:
    fact = await reader.read_channel(customer.payer.key.channel_id)
    return fact is not None and fact.is_finalized


@pytest.fixture(params=["sqlite", "postgres"])
def other_books(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of books with nothing in them."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'other.db'}"
    return str(request.getfixturevalue("postgres_url"))


async def test_channels_are_carried_from_one_ledger_to_another(
    devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge, other_books: str
) -> None:
    """F-108: with what collects them; twice changes nothing, and the file is its owner's alone."""
    path, file = tmp_path / "ledger.db", tmp_path / "channels.jsonl"
    source = Commands(forge, tmp_path, f"sqlite:///{path}")
    (tmp_path / "target").mkdir()
    target = Commands(forge, tmp_path / "target", other_books)
    async with (
        model_server() as model,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        variables = gateway_variables(
            devnet.values, model.url, path, free_port(), step_units=8, settles=False
        )
        log = tmp_path / "gateway.log"
        gateway = GatewayProcess(gateway_command(), variables, log, forge=forge)
        customer = Customer(chain, client)
        async with gateway.running():
            await customer.open(gateway.url, 10**6)
            assert (await customer.buy(gateway.url, 200)).status_code == 200
            exported = await source.as_json("export", "--output", str(file))
            assert exported == (0, {"channels": 1})
    assert file.stat().st_mode & 0o777 == 0o600
    code, said = await source("export", "--output", str(file))
    assert (code, "cannot be written" in said) == (1, True)  # never over a file that is there
    for _ in range(2):
        assert await target.as_json("import", str(file)) == (0, {"channels": 1})
    assert await target.as_json("check") == (0, {"faults": [], "stopped": []})
    assert (await target("export"))[1] == file.read_text()
    ledger = await open_ledger(other_books, exclusive=False)
    (state,) = await ledger.list_channels()
    await ledger.close()
    assert state.key == customer.payer.key
    assert (state.accepted, state.spent) == (200, COST)
    assert state.highest.signature == customer.payer.sign(200).signature
    file.write_text("{}\n")
    code, said = await target("import", str(file))
    assert (code, "line 1 of the export cannot be read" in said) == (2, True)
    assert (await target("repair", "0x" + "11" * 32))[0] == 1
