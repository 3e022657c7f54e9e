"""The journal of a key without a database: it is bounded, and gives each nonce once."""

import pytest
from msgspec.structs import replace

from settlement.errors import NonceTakenError
from settlement.tx.journal.memory import MemoryJournal
from settlement.tx.state import Confirmed, Included, Sent
from tests.settlement.transactions import INTENT, inclusion, signed, version

_ENDED_MAX = 1000


async def add(journal: MemoryJournal, nonce: int, *, is_mined: bool = True) -> int:
    """Sign one more transaction, whose hash is its nonce, and have it mined deep enough."""
    tx = await journal.add(INTENT, at=0)
    await journal.record(tx.tx_id, [signed(nonce, nonce), Sent()])
    if is_mined:
        await journal.record(tx.tx_id, [Included(inclusion(nonce)), Confirmed()])
    return tx.tx_id


async def test_a_nonce_is_given_once() -> None:
    """O-98, F-74: two payments under one nonce are one payment."""
    journal = MemoryJournal()
    await add(journal, 5, is_mined=False)
    second = await journal.add(INTENT, at=0)
    for nonce in (4, 5):
        with pytest.raises(NonceTakenError):
            await journal.record(second.tx_id, [signed(nonce, 9)])
    assert await journal.next_nonce() == 6
    assert [tx.nonce for tx in await journal.transactions_from(0)] == [5]


async def test_a_nonce_that_was_left_out_is_filled_once() -> None:
    """O-98, O-81: by what says that it fills a gap; the next nonce does not change."""
    journal = MemoryJournal()
    await add(journal, 5, is_mined=False)
    filler, second = [await journal.add(INTENT, at=0) for _ in range(2)]
    await journal.record(filler.tx_id, [replace(signed(4, 4), fills_gap=True)])
    for nonce in (4, 5):
        with pytest.raises(NonceTakenError):
            await journal.record(second.tx_id, [replace(signed(nonce, 9), fills_gap=True)])
    assert await journal.next_nonce() == 6
    assert [tx.nonce for tx in await journal.transactions_from(0)] == [4, 5]


async def test_what_ended_first_is_forgotten_and_what_is_under_way_is_not() -> None:
    """O-98: an agent that pays for years keeps no more than so much, and no nonce comes again."""
    journal = MemoryJournal()
    under_way = await add(journal, 0, is_mined=False)
    for nonce in range(1, _ENDED_MAX + 1):
        await add(journal, nonce)
    kept = await journal.transactions_from(0)
    assert len(kept) <= _ENDED_MAX
    assert [tx.tx_id for tx in await journal.open_transactions()] == [under_way]
    assert await journal.find(version(1).tx_hash) is None
    assert kept[-1] == await journal.find(version(_ENDED_MAX).tx_hash)
    assert await journal.next_nonce() == _ENDED_MAX + 1
