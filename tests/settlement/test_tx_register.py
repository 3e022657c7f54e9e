"""What is known of a key's transactions: only what is on disk, and found there again."""

import pytest

from channel.errors import InvariantError
from channel.types import TxHash
from settlement.journal.memory import MemoryJournal
from settlement.tx_register import TxRegister
from settlement.tx_state import Confirmed, Included, TxStatus
from tests.settlement.transactions import INTENT, inclusion, signed


async def test_what_is_open_is_in_the_lane_by_nonce_until_it_is_final() -> None:
    """F-77."""
    journal = MemoryJournal()
    register = TxRegister(journal)
    for nonce, number in ((0, 1), (1, 2)):
        tx = await journal.add(INTENT, at=0)
        await register.record(tx, signed(nonce, number))
    assert [tx.nonce for tx in register.lane()] == [0, 1]
    first = register.lane()[0]
    done = await register.record(first, Included(inclusion(1)), Confirmed())
    assert done.status is TxStatus.FINAL
    assert [tx.nonce for tx in register.lane()] == [1]
    assert not register.is_open(first.tx_id)


async def test_what_was_forgotten_is_found_in_the_journal() -> None:
    """F-75: also by a process that has just started."""
    journal = MemoryJournal()
    tx = await journal.add(INTENT, at=0)
    await TxRegister(journal).record(tx, signed(0))
    tx_hash = TxHash((1).to_bytes(32, "big"))
    later = TxRegister(journal)
    assert await later.id_of(tx_hash) == tx.tx_id
    assert (await later.known(tx.tx_id, tx_hash)).nonce == 0
    assert await later.id_of(TxHash(b"\x09" * 32)) is None
    with pytest.raises(InvariantError):
        await later.known(99, TxHash(b"\x09" * 32))
