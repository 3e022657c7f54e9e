"""What is known of a key's transactions: only what is on disk, and found there again."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.errors import InvariantError
from channel.types import TxHash
from settlement.tx.cache import TxCache
from settlement.tx.journal.memory import MemoryJournal
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.state import Confirmed, Included, Sent, TxStatus
from settlement.types import Receipt
from tests.settlement.transactions import ESCROW, INTENT, inclusion, signed, version

_KEPT = 1000


async def test_what_is_open_is_listed_by_nonce_until_it_is_final() -> None:
    """F-77."""
    journal = MemoryJournal()
    cache = TxCache(journal)
    for nonce, number in ((0, 1), (1, 2)):
        tx = await journal.add(INTENT, at=0)
        await cache.record(tx, signed(nonce, number))
    assert [tx.nonce for tx in cache.open()] == [0, 1]
    first = cache.open()[0]
    done = await cache.record(first, Included(inclusion(1)), Confirmed())
    assert done.status is TxStatus.FINAL
    assert [tx.nonce for tx in cache.open()] == [1]
    assert not cache.is_open(first.tx_id)


async def test_what_was_forgotten_is_found_in_the_journal() -> None:
    """F-75: also by a process that has just started."""
    journal = MemoryJournal()
    tx = await journal.add(INTENT, at=0)
    await TxCache(journal).record(tx, signed(0))
    tx_hash = TxHash((1).to_bytes(32, "big"))
    later = TxCache(journal)
    assert await later.id_of(tx_hash) == tx.tx_id
    assert (await later.known(tx.tx_id, tx_hash)).nonce == 0
    assert await later.id_of(TxHash(b"\x09" * 32)) is None
    with pytest.raises(InvariantError):
        await later.known(99, TxHash(b"\x09" * 32))


async def test_what_ended_long_ago_is_known_from_the_journal_alone(tmp_path: Path) -> None:
    """O-98, F-51: memory is bounded; what is asked for again is what the journal says of it."""
    journal = await SqliteJournal.open(tmp_path / "ledger.db", chain_id=1, account=ESCROW)
    await journal.take_lease("this test", ttl_s=600)
    cache = TxCache(journal)
    for nonce in range(3):
        tx = await journal.add(INTENT, at=0)
        ended = (Included(inclusion(nonce)), Confirmed())
        last = await cache.record(tx, signed(nonce, nonce), Sent(), *ended)
    for tx_id in range(last.tx_id + 1, last.tx_id + _KEPT):
        cache.keep(replace(last, tx_id=tx_id, versions=(version(tx_id),)))
    first, second, third = [version(nonce).tx_hash for nonce in range(3)]
    asked = await cache.id_of(first)
    assert asked is not None
    known = await cache.known(asked, first)
    assert (known.nonce, known.status) == (0, TxStatus.FINAL)
    assert await journal.prune(1) == 2
    assert await cache.id_of(second) is None  # memory had let go of it, too
    assert await cache.id_of(third) == last.tx_id
    assert cache.open() == []
    await journal.close()


async def test_of_receipts_the_newest_are_kept() -> None:
    """O-98: each waiting caller gets the newest; memory is bounded."""
    cache = TxCache(MemoryJournal())
    receipts = [receipt(number) for number in range(_KEPT + 1)]
    for each in receipts:
        cache.keep_receipt(each)
    assert list(cache.receipts.values()) == receipts[1:]


def receipt(number: int) -> Receipt:
    return Receipt(
        tx_hash=version(number).tx_hash,
        is_success=True,
        block_number=50,
        block_hash=bytes(32),
        gas_used=55_000,
        gas_price_wei=12,
        contract=None,
        logs=(),
    )
