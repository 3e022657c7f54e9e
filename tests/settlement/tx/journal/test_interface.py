"""What `settlement.tx.journal.interface` promises, on both databases."""

import asyncio
import sqlite3

import asyncpg
import pytest
from msgspec.structs import replace

from channel.errors import ConfigError, InvariantError, LedgerUnavailableError
from channel.ledger.url import sqlite_path
from channel.types import Address, ChannelId, ChannelKey, TxHash
from settlement.errors import LeaseLostError, NonceTakenError
from settlement.tx.journal import postgres, sqlite
from settlement.tx.journal.interface import Order, OrderName, Quarantined, SettlerJournal
from settlement.tx.state import (
    Abandoned,
    Bumped,
    Confirmed,
    Event,
    Included,
    Intent,
    Overtaken,
    Sent,
    TxStatus,
    Unmined,
    advance,
)
from tests.settlement.transactions import ESCROW, INTENT, inclusion, signed, version
from tests.settlement.tx.journal.conftest import ACCOUNT, CHAIN_ID, OpenJournal
from tests.waiting import until


async def run_sql(url: str, statement: str) -> None:
    """Change the database behind the journal's back."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(sqlite_path(url))
        connection.execute(statement)
        connection.commit()
        connection.close()
    else:
        server = await asyncpg.connect(url)
        await server.execute(statement)
        await server.close()


KEY = ChannelKey(CHAIN_ID, ESCROW, ChannelId(b"\x01" * 32))
NOW = 1_800_000_000


class TestTransactions:
    async def test_what_is_wanted_is_there_after_a_restart(
        self, journal: SettlerJournal, open_one: OpenJournal
    ) -> None:
        creation = Intent(to=None, calldata=b"", budget_wei=None)
        first = await journal.add(INTENT, at=NOW)
        second = await journal.add(creation, at=NOW)
        later = await open_one()
        assert await later.open_transactions() == [first, second]
        assert [tx.intent for tx in await later.open_transactions()] == [INTENT, creation]

    async def test_a_whole_life_is_kept_as_the_rules_make_it(
        self, journal: SettlerJournal, open_one: OpenJournal
    ) -> None:
        """Each step is on disk when its call returns; both versions stay."""
        tx = await journal.add(INTENT, at=NOW)
        later = await open_one()
        for event in (
            signed(0, 1),
            Sent(),
            Bumped(version(2, fee=200)),
            Sent(),
            Included(inclusion(1, is_success=False), "TOKEN_REFUSED Pausable: paused"),
            Unmined(),
            Included(inclusion(2)),
            Confirmed(),
        ):
            tx = advance(tx, event)
            assert await journal.record(tx.tx_id, [event]) == tx
            assert await later.find(TxHash((1).to_bytes(32, "big"))) == tx
        assert len(tx.versions) == 2
        assert tx.status is TxStatus.FINAL
        assert await later.open_transactions() == []
        assert await later.find(tx.versions[1].tx_hash) == tx

    async def test_several_events_are_one_step(self, journal: SettlerJournal) -> None:
        tx = await journal.add(INTENT, at=NOW)
        done = await journal.record(tx.tx_id, [signed(0), Included(inclusion()), Confirmed()])
        assert done.status is TxStatus.FINAL

    async def test_an_event_that_says_nothing_new_changes_nothing(
        self, journal: SettlerJournal
    ) -> None:
        tx = await journal.add(INTENT, at=NOW)
        tx = await journal.record(tx.tx_id, [signed(0), Sent()])
        assert await journal.record(tx.tx_id, [Sent()]) == tx

    async def test_amounts_of_any_size_come_back(self, journal: SettlerJournal) -> None:
        huge = replace(INTENT, value_wei=2**127, budget_wei=2**128 - 1, deadline=2**40)
        tx = await journal.add(huge, at=NOW)
        dear = await journal.record(tx.tx_id, [signed(0, fee=2**100)])
        assert (dear.intent, dear.newest.fee.max_fee_wei) == (huge, 2**100)

    async def test_what_is_not_in_the_journal_is_not_found(self, journal: SettlerJournal) -> None:
        assert await journal.find(TxHash(b"\x09" * 32)) is None
        with pytest.raises(InvariantError):
            await journal.record(99, [Sent()])


class TestNonces:
    """F-74: one allocator per key, in the database."""

    async def test_they_go_up_without_a_gap(self, journal: SettlerJournal) -> None:
        for nonce in range(3):
            assert await journal.next_nonce() == nonce
            tx = await journal.add(INTENT, at=NOW)
            await journal.record(tx.tx_id, [signed(nonce, nonce + 1)])
        assert [tx.nonce for tx in await journal.transactions_from(1)] == [1, 2]

    async def test_one_is_never_given_twice(self, journal: SettlerJournal) -> None:
        first, second = [await journal.add(INTENT, at=NOW) for _ in range(2)]
        await journal.record(first.tx_id, [signed(5, 1)])
        with pytest.raises(NonceTakenError):
            await journal.record(second.tx_id, [signed(5, 2)])
        assert await journal.find(TxHash((2).to_bytes(32, "big"))) is None
        assert (await journal.open_transactions())[0].status is TxStatus.INTENT

    async def test_one_that_was_left_out_is_given_to_what_says_so(
        self, journal: SettlerJournal
    ) -> None:
        """O-81: once; and the next one does not change by it."""
        first, filler, second = [await journal.add(INTENT, at=NOW) for _ in range(3)]
        await journal.record(first.tx_id, [signed(5, 1)])
        with pytest.raises(NonceTakenError):
            await journal.record(filler.tx_id, [signed(4, 2)])
        await journal.record(filler.tx_id, [replace(signed(4, 2), fills_gap=True)])
        for nonce in (4, 5):
            with pytest.raises(NonceTakenError):
                await journal.record(second.tx_id, [replace(signed(nonce, 3), fills_gap=True)])
        assert await journal.next_nonce() == 6

    async def test_a_nonce_that_no_node_can_have_seen_is_free_again(
        self, journal: SettlerJournal
    ) -> None:
        """Also for the very same bytes."""
        first, second = [await journal.add(INTENT, at=NOW) for _ in range(2)]
        await journal.record(first.tx_id, [signed(0, 1)])
        await journal.record(first.tx_id, [Abandoned("insufficient funds")])
        assert await journal.next_nonce() == 0
        again = await journal.record(second.tx_id, [signed(0, 1)])
        assert await journal.find(again.newest.tx_hash) == again

    async def test_a_nonce_that_another_transaction_used_stays_used(
        self, journal: SettlerJournal
    ) -> None:
        tx = await journal.add(INTENT, at=NOW)
        await journal.record(tx.tx_id, [signed(0), Overtaken()])
        assert await journal.next_nonce() == 1

    async def test_each_key_has_its_own(
        self, journal: SettlerJournal, open_one: OpenJournal
    ) -> None:
        tx = await journal.add(INTENT, at=NOW)
        await journal.record(tx.tx_id, [signed(0)])
        other = await open_one(Address(b"\x0c" * 20))
        await other.take_lease("another", ttl_s=600)
        assert await other.next_nonce() == 0
        assert await other.open_transactions() == []
        with pytest.raises(InvariantError):
            await other.record(tx.tx_id, [Sent()])


async def test_a_write_that_is_cancelled_leaves_nothing_half_begun(open_one: OpenJournal) -> None:
    """F-110, F-51: another's write waits for no lock of it, and the next one is committed."""
    first, other = await open_one(), await open_one()
    await first.take_lease("first", ttl_s=600)
    written = []
    for turns in range(20):
        writing = asyncio.create_task(first.add(INTENT, at=NOW))
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait({writing})
        written.append(await first.add(INTENT, at=NOW))
        found = await other.open_transactions()
        assert [tx for tx in found if tx in written] == written
    await first.release_lease()
    assert await other.take_lease("other", ttl_s=600) == 2
    await other.add(INTENT, at=NOW)


class TestLease:
    """Decision 10, F-110."""

    async def test_one_process_has_it_and_the_others_learn_which(
        self, journal: SettlerJournal, open_one: OpenJournal
    ) -> None:
        second = await open_one()
        assert await second.take_lease("second", ttl_s=600) is None
        assert await second.lease_holder() == "this test"
        await journal.release_lease()
        assert await second.lease_holder() is None
        assert await second.take_lease("second", ttl_s=600) == 2

    async def test_it_runs_out(self, open_one: OpenJournal) -> None:
        first, second = await open_one(), await open_one()
        await first.take_lease("first", ttl_s=0.2)
        await asyncio.sleep(0.25)
        assert await second.take_lease("second", ttl_s=600) == 2
        with pytest.raises(LeaseLostError):
            await first.renew_lease(ttl_s=600)

    async def test_it_is_kept_by_renewing(self, open_one: OpenJournal) -> None:
        first, second = await open_one(), await open_one()
        await first.take_lease("first", ttl_s=0.3)
        await first.renew_lease(ttl_s=600)
        await asyncio.sleep(0.35)
        assert await second.take_lease("second", ttl_s=600) is None

    async def test_a_process_that_lost_the_lease_writes_nothing_more(
        self, open_one: OpenJournal
    ) -> None:
        """A paused settler wakes up and believes it still has the key."""
        paused, other = await open_one(), await open_one()
        await paused.take_lease("paused", ttl_s=0.1)
        tx = await paused.add(INTENT, at=NOW)
        await asyncio.sleep(0.15)
        await other.take_lease("other", ttl_s=600)
        for write in (
            lambda: paused.add(INTENT, at=NOW),
            lambda: paused.record(tx.tx_id, [signed(0)]),
            lambda: paused.quarantine(Quarantined(KEY, "UNKNOWN", 1, NOW, NOW)),
            lambda: paused.release(KEY),
        ):
            with pytest.raises(LeaseLostError):
                await write()
        assert await other.open_transactions() == [tx]
        await paused.release_lease()  # gives back nothing that is not its own
        assert await other.lease_holder() == "other"

    async def test_without_it_nothing_is_written(self, open_one: OpenJournal) -> None:
        with pytest.raises(LeaseLostError):
            await (await open_one()).add(INTENT, at=NOW)

    async def test_two_keys_have_a_lease_each(
        self, journal: SettlerJournal, open_one: OpenJournal
    ) -> None:
        other = await open_one(Address(b"\x0c" * 20))
        assert await other.take_lease("other", ttl_s=600) == 1
        assert (journal.account, other.account) == (ACCOUNT, Address(b"\x0c" * 20))


class TestQuarantine:
    async def test_a_channel_goes_in_stays_longer_and_comes_out(
        self, journal: SettlerJournal, open_one: OpenJournal
    ) -> None:
        entry = Quarantined(KEY, "TOKEN_REFUSED", 1, NOW, NOW + 15)
        await journal.quarantine(entry)
        again = replace(entry, reason="UNKNOWN", tries=2, retry_at=NOW + 30)
        await journal.quarantine(again)
        reader = await open_one()
        assert await reader.quarantined() == [again]
        assert await reader.find_quarantined(KEY) == again
        for _ in range(2):
            await journal.release(KEY)
        assert await reader.find_quarantined(KEY) is None


class TestSent:
    async def test_transactions_signed_since_then_are_found_in_any_state(
        self, journal: SettlerJournal
    ) -> None:
        """O-88: what an hour cost; what has no nonce cost nothing."""
        early, mined, waiting, given_up = [
            await journal.add(INTENT, at=NOW + later) for later in (0, 10, 20, 30)
        ]
        await journal.record(early.tx_id, [signed(0, 1), Sent()])
        await journal.record(mined.tx_id, [signed(1, 2), Sent(), Included(inclusion(2))])
        await journal.record(waiting.tx_id, [signed(2, 3), Sent()])
        await journal.record(given_up.tx_id, [Abandoned("never signed")])
        assert [tx.nonce for tx in await journal.sent_since(NOW + 10)] == [2, 1]
        assert [tx.nonce for tx in await journal.sent_since(NOW)] == [2, 1, 0]


class TestDistrust:
    async def test_whose_contract_broke_its_word_is_remembered_once_and_for_good(
        self, journal: SettlerJournal, open_one: OpenJournal
    ) -> None:
        """O-01: for the credit decisions of every process."""
        signer, payer = Address(b"\x51" * 20), Address(b"\x52" * 20)
        await journal.distrust([signer, payer], at=NOW)
        await journal.distrust([signer], at=NOW + 9)
        reader = await open_one()
        assert await reader.distrusted() == {signer, payer}
        with pytest.raises(LeaseLostError):
            await reader.distrust([payer], at=NOW)

    async def test_the_newest_of_them_are_known_up_to_a_bound(
        self, journal: SettlerJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """O-01, issue 10 B: at the bound all are known; one more, and the oldest is not."""
        for module in (postgres, sqlite):
            monkeypatch.setattr(module, "DISTRUSTED_MAX", 3)
        known = [Address(bytes([number]) * 20) for number in range(4)]
        for number, address in enumerate(known[:3]):
            await journal.distrust([address], at=NOW + number)
        assert await journal.distrusted() == set(known[:3])
        await journal.distrust([known[3]], at=NOW + 3)
        assert await journal.distrusted() == set(known[1:])


class TestPruning:
    async def test_what_ended_long_ago_is_forgotten_and_the_next_nonce_is_not(
        self, journal: SettlerJournal
    ) -> None:
        """F-51: a year of settles must not fill the disk; what may come back stays."""
        ended: list[Event] = [Included(inclusion(1)), Confirmed()]
        old, under_way, given_up, newest, recent = [
            await journal.add(INTENT, at=NOW + later) for later in (0, 0, 0, 0, 100)
        ]
        await journal.record(old.tx_id, [signed(0, 1), Sent(), *ended])
        await journal.record(under_way.tx_id, [signed(1, 2), Sent()])
        await journal.record(given_up.tx_id, [Abandoned("never signed")])
        last: list[Event] = [Included(inclusion(3)), Confirmed()]
        await journal.record(newest.tx_id, [signed(2, 3), Sent(), *last])
        await journal.record(recent.tx_id, [Abandoned("never signed")])
        assert await journal.prune(NOW) == 0
        assert await journal.prune(NOW + 50) == 2
        assert await journal.prune(NOW + 50) == 0
        assert await journal.find(version(1).tx_hash) is None
        assert [tx.nonce for tx in await journal.transactions_from(0)] == [1, 2]
        assert await journal.next_nonce() == 3
        assert await journal.prune(NOW + 101) == 1


class TestDatabase:
    async def test_a_closed_journal_is_unavailable(self, open_one: OpenJournal) -> None:
        one = await open_one()
        await one.close()
        with pytest.raises(LedgerUnavailableError):
            await one.open_transactions()

    async def test_one_a_newer_version_wrote_is_not_touched(
        self, journal: SettlerJournal, open_one: OpenJournal, journal_url: str
    ) -> None:
        await run_sql(journal_url, "UPDATE journal_schema SET version = 99")
        with pytest.raises(ConfigError, match="schema version 99"):
            await open_one()
        assert await journal.open_transactions() == []

    async def test_an_impossible_row_is_a_bug_and_not_a_guess(
        self, journal: SettlerJournal, journal_url: str
    ) -> None:
        await journal.add(INTENT, at=NOW)
        await run_sql(journal_url, "UPDATE chain_transaction SET purpose = 77")
        with pytest.raises(InvariantError, match="journal"):
            await journal.open_transactions()

    async def test_four_openings_may_create_it_concurrently(self, open_one: OpenJournal) -> None:
        journals = await asyncio.gather(*[open_one() for _ in range(4)])
        assert [await one.open_transactions() for one in journals] == [[]] * 4


async def test_a_lease_is_not_taken_in_the_middle_of_a_record(
    open_one: OpenJournal, journal_url: str
) -> None:
    """O-97, F-110: the fence is held, not only read: a record that has passed it is finished first.

    In SQLite one transaction writes at a time. In PostgreSQL the record is held up behind it.
    """
    first, second = await open_one(), await open_one()
    await first.take_lease("the first", ttl_s=0.001)
    tx = await first.add(INTENT, at=NOW)
    if journal_url.startswith("sqlite"):
        assert await second.take_lease("the second", ttl_s=600) is not None
        with pytest.raises(LeaseLostError):
            await first.record(tx.tx_id, [signed(0)])
        return
    server = await asyncpg.connect(journal_url)
    async with server.transaction():
        await server.execute("SELECT id FROM chain_transaction FOR UPDATE")
        recording = asyncio.create_task(first.record(tx.tx_id, [signed(0)]))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

        async def are_waiting(count: int) -> bool:
            return bool(await server.fetchval(waits) >= count)

        await until(lambda: are_waiting(1))
        taking = asyncio.create_task(second.take_lease("the second", ttl_s=600))
        await until(lambda: are_waiting(2))
        assert not taking.done()
    assert (await recording).nonce == 0
    assert await taking is not None
    assert [each.nonce for each in await second.open_transactions()] == [0]
    await server.close()


class TestOrders:
    async def test_an_order_stands_until_it_ends_in_every_process(
        self, open_one: OpenJournal
    ) -> None:
        gateway, settler = await open_one(), await open_one()
        assert await settler.order(OrderName.SETTLE) is None
        await gateway.place_order(OrderName.SETTLE, at=10)
        await gateway.place_order(OrderName.SETTLE, at=20)
        assert await settler.order(OrderName.SETTLE) == Order(10, None, "")
        await settler.end_order(OrderName.SETTLE, at=30, outcome="2 settled")
        await settler.end_order(OrderName.SETTLE, at=40, outcome="nothing")
        assert await gateway.order(OrderName.SETTLE) == Order(10, 30, "2 settled")
        await gateway.place_order(OrderName.SETTLE, at=50)
        assert await settler.order(OrderName.SETTLE) == Order(50, None, "")

    async def test_each_kind_and_each_key_has_orders_of_its_own(
        self, open_one: OpenJournal
    ) -> None:
        mine, another = await open_one(), await open_one(Address(b"\xb3" * 20))
        await mine.place_order(OrderName.PAUSE, at=10)
        assert await mine.order(OrderName.SETTLE) is None
        assert await another.order(OrderName.PAUSE) is None
