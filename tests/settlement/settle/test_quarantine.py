"""When a channel that the chain refuses is tried again, also after a jump of the clock."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.errors import MppSessionError
from channel.ledger.sqlite import SqliteLedger
from channel.types import Address, ChannelId, ChannelKey, TxHash
from settlement.dev.devnet import Devnet
from settlement.errors import ChannelQuarantinedError, ContractRevertedError, contract_reverted
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.settle.quarantine import Quarantine
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.state import Purpose
from settlement.types import RevertReason
from settlement.watch.watcher import ChannelWatcher
from tests.settlement.books import Books, request_close
from tests.settlement.channels import Channels
from tests.settlement.watch.test_watcher import ledger  # noqa: F401 -- a fixture

KEY = ChannelKey(31337, Address(b"\xe5" * 20), ChannelId(b"\x01" * 32))
DEADLINE = 1_800_000_900
CLOSE, SETTLE = Purpose.CLOSE, Purpose.SETTLE


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    opened = await SqliteJournal.open(
        tmp_path / "journal.db", chain_id=31337, account=Address(b"\x01" * 20)
    )
    await opened.take_lease("this test", ttl_s=600)
    yield opened
    await opened.close()


class Times:
    """This machine's two clocks: the one that only runs, and the one that people set."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 50.0, 1_800_000_000.0

    def advance(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def over(self, journal: SqliteJournal) -> Quarantine:
        return Quarantine(journal, clock=lambda: self.monotonic, wall=lambda: self.wall)


async def refuse(
    quarantine: Quarantine,
    purpose: Purpose = CLOSE,
    *,
    deadline: int = 0,
    reason: RevertReason = RevertReason.TOKEN_REFUSED,
    in_block: bool = False,
) -> None:
    error = contract_reverted(reason, tx_hash=TxHash(b"\x02" * 32) if in_block else None)
    with pytest.raises(MppSessionError):
        await quarantine.refuse(KEY, error, purpose=purpose, deadline=deadline)


def is_allowed(quarantine: Quarantine, purpose: Purpose = CLOSE, *, deadline: int = 0) -> bool:
    try:
        quarantine.require_allowed(KEY, purpose, deadline=deadline)
    except (ChannelQuarantinedError, ContractRevertedError):
        return False
    return True


async def test_who_is_refused_again_is_left_alone_for_longer(journal: SqliteJournal) -> None:
    """F-79, F-87: fifteen seconds at first, a quarter of an hour at most."""
    times = Times()
    quarantine = times.over(journal)
    for pause_s in (15, 30, 60, 120, 240, 480, 900, 900):
        await refuse(quarantine)
        times.advance(pause_s - 1)
        assert not is_allowed(quarantine)
        times.advance(1)
        assert is_allowed(quarantine)


async def test_a_long_quarantine_is_cut_short_when_the_payer_asks_for_the_rest(
    journal: SqliteJournal,
) -> None:
    """F-64, F-87: the token moves again, and its payer must not be faster than the next try."""
    times = Times()
    quarantine = times.over(journal)
    for _ in range(8):
        await refuse(quarantine, SETTLE)
    times.advance(30)
    assert not is_allowed(quarantine)
    assert is_allowed(quarantine, deadline=DEADLINE)


@pytest.mark.parametrize("set_by_s", [-86_400.0, 86_400.0])
async def test_a_clock_that_is_set_changes_nothing(journal: SqliteJournal, set_by_s: float) -> None:
    """F-111: set back by a day, it would hold up a close for longer than any grace period."""
    times = Times()
    quarantine = times.over(journal)
    await refuse(quarantine, deadline=DEADLINE)
    times.wall += set_by_s
    assert not is_allowed(quarantine, deadline=DEADLINE)
    times.advance(15)
    assert is_allowed(quarantine, deadline=DEADLINE)


async def test_a_clock_that_was_set_back_while_nothing_ran_holds_up_no_close(
    journal: SqliteJournal,
) -> None:
    """F-111: what is on disk says until when; after a start no longer than it could have been."""
    times = Times()
    for _ in range(8):
        await refuse(times.over(journal))
    times.wall -= 86_400
    again = times.over(journal)
    await again.load()
    assert not is_allowed(again)
    times.advance(30)
    assert is_allowed(again, deadline=DEADLINE)
    times.advance(870)
    assert is_allowed(again)


async def test_what_was_refused_in_a_block_costs_gas_and_is_tried_ever_more_seldom(
    journal: SqliteJournal,
) -> None:
    """F-20, F-78: a wallet that says yes in each simulation and no in each block.

    Twice a minute for a grace period of a day would cost more than any channel is worth.
    """
    times = Times()
    quarantine = times.over(journal)
    reason, tries = RevertReason.INVALID_SIGNATURE, 0
    for _ in range(86_400 // 15):
        if is_allowed(quarantine, deadline=DEADLINE):
            await refuse(quarantine, deadline=DEADLINE, reason=reason, in_block=True)
            tries += 1
        times.advance(15)
    assert tries < 110
    await quarantine.release(KEY)
    await refuse(quarantine, deadline=DEADLINE, in_block=True)
    times.advance(15)
    assert is_allowed(quarantine, deadline=DEADLINE)


async def test_a_close_that_is_refused_holds_up_no_settle(journal: SqliteJournal) -> None:
    """F-86: what the token refuses the payer, it may still pay the payee."""
    quarantine = Times().over(journal)
    await refuse(quarantine, CLOSE)
    assert not is_allowed(quarantine, CLOSE)
    assert is_allowed(quarantine, SETTLE)
    await refuse(quarantine, SETTLE)
    assert not is_allowed(quarantine, CLOSE)
    assert not is_allowed(quarantine, SETTLE)


async def test_what_has_ended_leaves_quarantine(
    journal: SqliteJournal,
    reader: EscrowReader,
    channels: Channels,
    account: PayerAccount,
    *,
    chain: Devnet,
    ledger: SqliteLedger,  # noqa: F811 -- the fixture
) -> None:
    """F-64: its payer withdrew. No caller asks for it again, and its alarm must end."""
    books = Books(reader, ledger, channels)
    gone, owed = [await books.open(accepted=9, spent=9) for _ in range(2)]
    quarantine = Quarantine(journal)
    error = contract_reverted(RevertReason.TOKEN_REFUSED)
    for channel_id in (gone, owed):
        with pytest.raises(ChannelQuarantinedError):
            await quarantine.refuse(books.key(channel_id), error, purpose=CLOSE, deadline=0)
    await request_close(chain, account, gone)
    await chain.advance(900)
    await account.withdraw(escrow=chain.values.escrow, channel_id=gone)
    await ChannelWatcher(reader, ledger, None).sweep()
    await quarantine.drop_ended(ledger)
    assert [entry.key for entry in await journal.quarantined()] == [books.key(owed)]
