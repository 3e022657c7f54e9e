"""The provider's machine is gone, its payer leaves: a watchtower elsewhere settles in time.

Both are the program itself, as processes: a settler with the payee's key that signs ahead, and a
watchtower with a file, a node and an account for gas, each killed with -9 where it hurts.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path

import pytest

from channel.ledger.sqlite import SqliteLedger
from channel.types import ChannelId
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.presigned.file import TowerFileReader
from tests.e2e.warm import Forge, Forked
from tests.settlement.books import Books
from tests.settlement.channels import DEPOSIT, Channels
from tests.waiting import until

GRACE_S = 900


class Site:
    """A provider's machine and a tower's; only a file goes from one to the other."""

    def __init__(self, chain: Devnet, ledger: SqliteLedger, folder: Path, forge: Forge) -> None:
        self.chain, self._folder, self._forge = chain, folder, forge
        self.account = PayerAccount(chain.sender("payer"))
        self.reader = EscrowReader(chain.rpc, chain.values.escrow)
        self.books = Books(self.reader, ledger, Channels(chain, self.account))
        self.file = folder / "settles.jsonl"
        self._started: list[Forked] = []

    def start_provider(self) -> Forked:
        payee = self.chain.account("payee")
        settings = {
            "PAYEE_KEY": "0x" + payee.private_key.hex(),
            "LEDGER_URL": f"sqlite:///{self._folder / 'ledger.db'}",
            "TOWER_EXPORT_FILE": str(self.file),
            "TOWER_UNCOVERED_MAX": "50",
        }
        return self._start(["settle", "--json"], settings)

    def start_tower(self) -> Forked:
        stranger = self.chain.account("stranger")
        settings = {
            "RELAYER_ADDRESS": "0x" + stranger.address.hex(),
            "RELAYER_KEY": "0x" + stranger.private_key.hex(),
            "LEDGER_URL": f"sqlite:///{self._folder / 'tower.db'}",
        }
        return self._start(["settle", "--watchtower", str(self.file), "--json"], settings)

    def _start(self, arguments: list[str], settings: dict[str, str]) -> Forked:
        values, payee = self.chain.values, self.chain.account("payee")
        common = {
            "CHAIN_RPC_URL": values.rpc_url,
            "CHAIN_ID": str(values.chain_id),
            "CHAIN_ESCROW": "0x" + values.escrow.hex(),
            "CHAIN_TOKEN": "0x" + values.token.hex(),
            "PAYEE_ADDRESS": "0x" + payee.address.hex(),
            "SETTLEMENT_SWEEP_INTERVAL_S": "0.2",
        }
        variables = {f"MPP_SESSION_{name}": text for name, text in {**common, **settings}.items()}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
        log = self._folder / f"{arguments[1].strip('-')}.log"
        process = self._forge.start(arguments, {**inherited, **variables}, log)
        self._started.append(process)
        return process

    def end(self) -> None:
        """Leave nothing running, however the test ended."""
        for process in self._started:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)

    async def until_signed_ahead(self, channel_id: ChannelId, amount: int) -> None:
        async def is_there() -> bool:
            lines = await TowerFileReader(self.file).read_new()
            wanted = (f'"cumulative_amount":"{amount}"'.encode(), channel_id.hex().encode())
            return any(all(part in line for part in wanted) for line in lines)

        await until(is_there)

    async def settled(self, channel_id: ChannelId) -> int:
        fact = await self.reader.read_channel(channel_id)
        assert fact is not None
        return fact.settled

    async def leave(self, channel_id: ChannelId) -> None:
        await self.account.request_close(escrow=self.chain.values.escrow, channel_id=channel_id)


@pytest.fixture
async def site(chain: Devnet, tmp_path: Path, forge: Forge) -> AsyncIterator[Site]:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=False)
    site = Site(chain, ledger, tmp_path, forge)
    try:
        yield site
    finally:
        site.end()
        await ledger.close()


async def kill(process: Forked) -> None:
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


async def test_a_dead_providers_channel_is_settled_within_the_grace(
    site: Site, chain: Devnet
) -> None:
    """F-64, RELAY-01: and a tower that is killed meanwhile goes on where it was."""
    payee = chain.account("payee").address
    before = await chain.token_balance(payee)
    channel_id = await site.books.open(accepted=600, spent=600)
    steps = await site.books.open(accepted=5_000, spent=400)  # signed in one large step
    provider = site.start_provider()
    await site.until_signed_ahead(channel_id, 600)
    await site.until_signed_ahead(steps, 5_000)
    await kill(provider)
    tower = site.start_tower()
    for left in (channel_id, steps):
        await site.leave(left)
    await chain.advance(GRACE_S // 3)
    await asyncio.sleep(0.6)
    assert await site.settled(channel_id) == 0, "it is the provider's own turn"
    await kill(tower)
    await chain.advance(GRACE_S // 3)
    tower = site.start_tower()
    await until(lambda: _is(site.settled(channel_id), 600))
    await until(lambda: _is(site.settled(steps), 5_000))
    assert await chain.token_balance(payee) == before + 5_600
    tower.send_signal(signal.SIGTERM)
    assert await tower.wait() == 0
    await chain.advance(GRACE_S)
    payer = chain.account("payer").address
    had = await chain.token_balance(payer)
    for left in (channel_id, steps):
        await site.account.withdraw(escrow=chain.values.escrow, channel_id=left)
    assert await chain.token_balance(payer) == had + 2 * DEPOSIT - 5_600


async def test_a_provider_that_is_back_and_its_tower_pay_the_payee_once(
    site: Site, chain: Devnet
) -> None:
    """F-80, F-110: in either order, a settle and a close of one channel never pay twice."""
    payee = chain.account("payee").address
    before = await chain.token_balance(payee)
    channel_id = await site.books.open(accepted=600, spent=600)
    provider = site.start_provider()
    await site.until_signed_ahead(channel_id, 600)
    await kill(provider)
    await site.leave(channel_id)
    await chain.advance(GRACE_S * 2 // 3)
    provider, tower = site.start_provider(), site.start_tower()
    await until(lambda: _is(site.settled(channel_id), 600))
    await asyncio.sleep(0.6)
    assert await chain.token_balance(payee) == before + 600
    for process in (provider, tower):
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


@pytest.mark.parametrize("what", ["a pipe", "a device without end"])
async def test_a_file_that_is_none_holds_up_no_settle(
    site: Site, chain: Devnet, tmp_path: Path, what: str
) -> None:
    """O-84: the tower goes on with what it has, says so, and ends when it is asked to."""
    channel_id = await site.books.open(accepted=600, spent=600)
    provider = site.start_provider()
    await site.until_signed_ahead(channel_id, 600)
    await kill(provider)
    tower = site.start_tower()
    await asyncio.sleep(0.5)  # it has read the file by then, or reads it when it is back
    site.file.rename(tmp_path / "good")
    if what == "a pipe":
        os.mkfifo(site.file)
    else:
        site.file.symlink_to("/dev/zero")

    def says_so() -> bool:
        log = tmp_path / "watchtower.log"
        return log.exists() and "alarm tower-unfed" in log.read_text()

    await until(lambda: asyncio.to_thread(says_so))
    await site.leave(channel_id)
    await chain.advance(GRACE_S * 2 // 3)
    site.file.unlink()
    (tmp_path / "good").rename(site.file)
    await until(lambda: _is(site.settled(channel_id), 600))
    tower.send_signal(signal.SIGTERM)
    assert await tower.wait() == 0


async def _is(found: Awaitable[int], wanted: int) -> bool:
    return await found == wanted
