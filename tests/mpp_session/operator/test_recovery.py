"""The books are gone; an export and the chain bring back what vouchers can collect."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.ledger.maintenance import export_channels
from channel.ledger.sqlite import SqliteLedger
from mpp_session.operator.recovery import Recovered, Verdict, recover_channels
from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.settle.settler import EscrowSettler
from settlement.watch.watcher import ChannelWatcher
from tests.settlement.books import Books, request_close
from tests.settlement.channels import DEPOSIT, Channels


class Disaster:
    """A provider whose books are about to be lost."""

    def __init__(self, chain: Devnet, old: SqliteLedger, new: SqliteLedger) -> None:
        self.chain = chain
        self.new = new
        self.account = PayerAccount(chain.sender("payer"))
        self.channels = Channels(chain, self.account)
        self.reader = EscrowReader(chain.rpc, chain.values.escrow)
        self.books = Books(self.reader, old, self.channels)
        self.settler = EscrowSettler(self.reader, chain.sender("payee"))
        self.lines: list[bytes] = []
        self._old = old

    async def export(self) -> None:
        self.lines = [line async for line in export_channels(self._old)]

    async def recover(self, *, repairs: bool = False, from_block: int = 0) -> list[Recovered]:
        return await recover_channels(
            self.new,
            self.reader,
            self.channels.terms.payee,
            self._lines(),
            repairs=repairs,
            from_block=from_block,
        )

    async def _lines(self) -> AsyncIterator[bytes]:
        for line in self.lines:
            yield line


@pytest.fixture
async def disaster(devnet: TestChain, tmp_path: Path) -> AsyncIterator[Disaster]:
    old = await SqliteLedger.open(tmp_path / "old.db", exclusive=True)
    new = await SqliteLedger.open(tmp_path / "new.db", exclusive=True)
    try:
        async with devnet.connect() as chain:
            yield Disaster(chain, old, new)
    finally:
        await old.close()
        await new.close()


async def test_what_was_delivered_is_collected_from_the_recovered_books(
    disaster: Disaster,
) -> None:
    """F-108: the payer has asked for its deposit back meanwhile; the settler defends as ever."""
    owed = await disaster.books.open(accepted=900, spent=700)
    await disaster.books.open(accepted=50)
    await disaster.export()
    await request_close(disaster.chain, disaster.account, owed)
    first, second = await disaster.recover()
    assert (first.verdict, first.spent, first.claim) == (Verdict.COLLECTABLE, 700, 900)
    assert first.close_requested_at != 0
    assert (second.verdict, second.claim) == (Verdict.SETTLED, 0)
    payee = disaster.channels.terms.payee
    before = await disaster.chain.token_balance(payee)
    watcher = ChannelWatcher(disaster.reader, disaster.new, disaster.settler)
    assert (await watcher.sweep()).closed == 1
    assert await disaster.chain.token_balance(payee) == before + 900


async def test_a_repeat_and_an_older_export_change_nothing(disaster: Disaster) -> None:
    """F-25, F-52: what the books know is newer than any export."""
    channel_id = await disaster.books.open(accepted=900, spent=700)
    await disaster.export()
    newest = disaster.lines
    (before,) = await disaster.recover()
    await disaster.books.accept(channel_id, 5_000)
    disaster.lines = newest
    assert await disaster.recover() == [before]


async def test_channels_in_no_export_are_found_on_chain(disaster: Disaster) -> None:
    """F-108: nothing can be collected without a voucher; the operator must learn of them."""
    await disaster.books.open(accepted=9)
    await disaster.export()
    head = await disaster.chain.rpc.block_number()
    unknown = await disaster.channels.open()
    found = await disaster.recover()
    (missing,) = [each for each in found if each.verdict is Verdict.MISSING]
    assert (missing.key.channel_id, missing.deposit, missing.claim) == (unknown, DEPOSIT, 0)
    later = await disaster.recover(from_block=head + 3)
    assert [each.verdict for each in later] == [Verdict.SETTLED]


async def test_an_export_older_than_the_last_settle_is_stopped_or_repaired(
    disaster: Disaster,
) -> None:
    """SETTLE-05: more is settled than the export knows; only by the operator's word it goes on."""
    channel_id = await disaster.books.open(accepted=100, spent=100)
    await disaster.export()
    await disaster.settler.settle_channel(
        disaster.books.key(channel_id), 400, disaster.channels.sign(channel_id, 400)
    )
    (stopped,) = await disaster.recover()
    assert (stopped.verdict, stopped.settled, stopped.claim) == (Verdict.STOPPED, 400, 0)
    (repaired,) = await disaster.recover(repairs=True)
    assert (repaired.verdict, repaired.spent, repaired.claim) == (Verdict.SETTLED, 400, 0)


async def test_a_channel_that_ended_and_one_the_chain_does_not_know_are_said(
    disaster: Disaster,
) -> None:
    before = await disaster.chain.snapshot()
    await disaster.books.open(accepted=9, spent=9)
    await disaster.export()
    await disaster.chain.revert(before)
    (gone,) = await disaster.recover()
    assert gone.verdict is Verdict.GONE


async def test_an_ended_channel_is_said(disaster: Disaster) -> None:
    """CLOSE-05."""
    channel_id = await disaster.books.open(accepted=9, spent=9)
    await disaster.export()
    key = disaster.books.key(channel_id)
    await disaster.settler.close_channel(key, 9, disaster.channels.sign(channel_id, 9))
    (ended,) = await disaster.recover()
    assert (ended.verdict, ended.settled, ended.claim) == (Verdict.ENDED, 9, 0)


async def test_a_line_that_was_not_exported_is_refused(disaster: Disaster) -> None:
    disaster.lines = [b'{"format": 9}']
    with pytest.raises(ConfigError, match="line 1 of the export"):
        await disaster.recover()
