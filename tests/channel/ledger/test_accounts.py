"""What paid requests leave in either ledger, and that it always adds up to `spent`."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

from channel.errors import ConfigError
from channel.ledger.accounts import DAY_S, AccountSettings, ChargeDay, DayId
from channel.ledger.interface import ClaimRequest, Ledger, StoreResponse
from channel.ledger.maintenance import export_channels, import_channels
from channel.ledger.queries import load_schema
from channel.ledger.url import find_sqlite_path
from channel.ledger.url import open_ledger as open_by_url
from channel.limits import AMOUNT_MAX, CHARGES_PER_PAGE_MAX, PRUNE_BATCH_MAX
from channel.state import commands as c
from channel.state.charges import ChargeEnd, ChargeOutcome, encode_note
from channel.types import ChannelKey
from tests.channel.books import (
    DEPOSIT,
    KEY,
    LEASE,
    NOW,
    TERMS,
    accepting,
    fact,
    key_of,
    opening,
    reserving,
    streaming,
)
from tests.channel.ledger.conftest import OpenLedger
from tests.channel.ledger.test_interface import ANSWER, CLAIM
from tests.channel.ledger.test_maintenance import each

END_OF_TIME = 2**62
USED = {"input_token": 5, "output_token": 10}
NOTE = encode_note("POST /v1/completions", "small")
KEPT_S = 3 * DAY_S


class Shop:
    """A ledger with a clock, and requests that are paid on it."""

    def __init__(self) -> None:
        self.at = float(NOW)
        self.ledgers: list[Ledger] = []

    async def open(self, url: str, *, is_kept: bool = True, exclusive: bool = False) -> Ledger:
        accounts = AccountSettings(is_kept=is_kept, kept_s=KEPT_S)
        ledger = await open_by_url(url, exclusive=exclusive, accounts=accounts, now=lambda: self.at)
        self.ledgers.append(ledger)
        return ledger


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    made = Shop()
    yield made
    for ledger in made.ledgers:
        await ledger.close()


async def pay(
    ledger: Ledger,
    amount: int,
    *,
    key: ChannelKey = KEY,
    name: bytes = b"r",
    outcome: ChargeOutcome = ChargeOutcome.DONE,
    note: bytes = NOTE,
    response_id: str | None = None,
) -> None:
    """Pay for one request in two transactions, as the engine does."""
    held = replace(reserving(name, amount), note=note)
    (await ledger.apply(key, [held])).require()
    stated = f"id-{name.decode()}" if response_id is None else response_id
    end = ChargeEnd(outcome, USED, stated)
    (await ledger.apply(key, [c.Spend(name, amount), c.Release(name, end)])).require()


async def amounts(ledger: Ledger) -> list[int]:
    return [row.amount for row in await ledger.list_charges(0, END_OF_TIME)]


async def test_a_paid_request_is_a_row_with_what_is_known_of_it(
    ledger_url: str, shop: Shop
) -> None:
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100)])
    await pay(ledger, 7, outcome=ChargeOutcome.LEFT)
    (row,) = await ledger.list_charges(NOW, NOW + 1)
    assert (row.at, row.key, row.amount, row.outcome) == (NOW, KEY, 7, ChargeOutcome.LEFT)
    assert (row.payer, row.payee, row.token) == (TERMS.payer, TERMS.payee, TERMS.token)
    assert (row.route, row.variant) == ("POST /v1/completions", "small")
    assert (row.usage, row.response_id, row.is_stream) == (USED, "id-r", False)
    assert row.reservation_id == b"r"
    assert await ledger.find_charges(b"r") == [row]
    assert await ledger.find_charges(b"other") == []
    assert await ledger.find_answers("id-r") == [row]
    assert await ledger.find_answers("id") == []
    assert await ledger.faults() == []


async def test_answers_without_an_id_are_not_found_by_their_having_none(
    ledger_url: str, shop: Shop
) -> None:
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100)])
    await pay(ledger, 7, response_id="")
    assert len(await ledger.list_charges(0, END_OF_TIME)) == 1
    assert await ledger.find_answers("") == []


async def test_a_model_with_any_name_is_entered(ledger_url: str, shop: Shop) -> None:
    """PostgreSQL takes no NUL: the request would never end, nor those of its batch."""
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100)])
    await pay(ledger, 7, note=encode_note("POST /v1/completions", "a\0\ud800" + "\U0001f600" * 300))
    (row,) = await ledger.list_charges(0, END_OF_TIME)
    assert row.variant.startswith("a\ufffd\ufffd\U0001f600")


async def test_a_repeat_of_a_key_is_charged_and_entered_once(ledger_url: str, shop: Shop) -> None:
    """IDEM-05."""
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100)])
    for _ in range(3):
        claimed = await ledger.apply(KEY, [reserving(b"r", 7)], request=ClaimRequest(CLAIM))
        if claimed.stored is not None:
            continue
        end = c.Release(b"r", ChargeEnd(ChargeOutcome.DONE, USED))
        await ledger.apply(KEY, [c.Spend(b"r", 7), end], request=StoreResponse(CLAIM, ANSWER))
        await ledger.apply(KEY, [end])  # its owner was not sure whether that was done
    assert await amounts(ledger) == [7]
    assert await ledger.faults() == []


async def test_what_a_dead_owner_held_is_a_row_of_its_own_kind(ledger_url: str, shop: Shop) -> None:
    """Decision 8: a stream's step counts as sent; the row says that it expired."""
    ledger = await shop.open(ledger_url)
    stream = replace(streaming(b"s", 9), note=NOTE)
    await ledger.apply(KEY, [opening(100), stream, c.Spend(b"s", 4), reserving(b"r", 5)])
    assert await ledger.faults() == []  # while it runs
    shop.at += 100
    await ledger.end_unrenewed(KEY, [(b"s", LEASE), (b"r", LEASE)])
    (row,) = await ledger.list_charges(0, END_OF_TIME)
    assert (row.at, row.amount, row.outcome) == (NOW + 100, 9, ChargeOutcome.EXPIRED)
    assert (row.route, row.usage, row.is_stream) == ("POST /v1/completions", None, True)
    assert await ledger.faults() == []


async def test_a_forced_close_and_a_repair_are_rows_of_their_own_kinds(
    ledger_url: str, shop: Shop
) -> None:
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100), streaming(b"s", 9)])
    await ledger.apply(KEY, [c.Repair(100, 20), c.EndReservations(by_close=True), c.BeginClose()])
    rows = await ledger.list_charges(0, END_OF_TIME)
    assert [(row.amount, row.outcome, row.reservation_id) for row in rows] == [
        (20, ChargeOutcome.REPAIRED, b""),
        (9, ChargeOutcome.CLOSED, b"s"),
    ]
    assert await ledger.faults() == []


async def test_what_was_spent_before_is_no_row_and_adds_up(ledger_url: str, shop: Shop) -> None:
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100, seen=fact(settled=30))])
    await ledger.apply(KEY, [accepting(150)])
    await pay(ledger, 7)
    assert await amounts(ledger) == [7]
    assert await ledger.faults() == []


async def test_a_refused_change_enters_nothing(ledger_url: str, shop: Shop) -> None:
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(10), reserving(b"r", 5)])
    refused = await ledger.apply(KEY, [c.Repair(5, DEPOSIT), c.Repair(10, 2)])
    assert refused.refusal is not None
    assert await amounts(ledger) == []
    assert await ledger.faults() == []


async def test_without_rows_the_sums_are_kept(ledger_url: str, shop: Shop) -> None:
    """`ledger.charges = false`, and back again."""
    ledger = await shop.open(ledger_url, is_kept=False)
    await ledger.apply(KEY, [opening(100)])
    await pay(ledger, 7)
    await pay(ledger, 8, name=b"q")
    assert await amounts(ledger) == []
    assert await ledger.faults() == []
    again = await shop.open(ledger_url)
    await pay(again, 9, name=b"p")
    assert await amounts(again) == [9]
    assert await again.faults() == []


async def test_old_rows_are_added_up_by_day_and_totals_stay(ledger_url: str, shop: Shop) -> None:
    ledger = await shop.open(ledger_url)
    other = key_of(2)
    await ledger.apply(KEY, [opening(500)])
    await ledger.apply(other, [opening(AMOUNT_MAX, other, seen=fact(other, deposit=AMOUNT_MAX))])
    rest = encode_note("POST /v1/completions", "large")
    for number in range(4):  # one day each
        await pay(ledger, 7, name=b"a")
        await pay(ledger, 5, key=other, name=b"b")
        await pay(ledger, 3, name=b"c", note=rest)
        await ledger.apply(KEY, [c.Repair(500, 0), c.Repair(500, 15 * number + 11)])
        shop.at += DAY_S
    before = await amounts(ledger)
    assert await ledger.prune(int(shop.at)) > 0
    kept = await ledger.list_charges(0, END_OF_TIME)
    assert min(row.at for row in kept) >= shop.at // DAY_S * DAY_S - KEPT_S
    days = await ledger.list_charge_days(0, END_OF_TIME)
    assert sum(before) == sum(row.amount for row in kept) + sum(day.amount for day in days)
    ids = [day.id for day in days]
    first = DayId(
        NOW // DAY_S,
        KEY.chain_id,
        TERMS.payee,
        TERMS.token,
        "POST /v1/completions",
        "small",
        "done",
    )
    assert days[ids.index(first)] == ChargeDay(
        first, 2, {"input_token": 10, "output_token": 20}, 12
    )
    assert await ledger.faults() == []
    assert await ledger.list_charge_days(NOW // DAY_S + 3, END_OF_TIME) == []


async def test_two_processes_together_add_up_more_old_rows_than_one_commit_takes(
    ledger_url: str, shop: Shop
) -> None:
    """PRUNE_BATCH_MAX: in several commits, and no row twice when two processes prune."""
    ledgers = [await shop.open(ledger_url) for _ in range(2)]
    many = PRUNE_BATCH_MAX + 3
    big = opening(10 * many, seen=fact(deposit=10 * many))
    await ledgers[0].apply(KEY, [big])
    await asyncio.gather(
        *[
            ledgers[0].apply(
                KEY,
                [
                    reserving(b"%d" % number, 1, presented=10 * many),
                    c.Spend(b"%d" % number, 1),
                    c.Release(b"%d" % number),
                ],
            )
            for number in range(many)
        ]
    )
    late = NOW + 10 * DAY_S
    dropped = await asyncio.gather(*[ledger.prune(late) for ledger in ledgers])
    assert sum(dropped) == many
    (day,) = await ledgers[0].list_charge_days(0, END_OF_TIME)
    assert (day.requests, day.amount, day.usage) == (many, many, {})
    assert await ledgers[1].faults() == []


async def test_rows_are_listed_a_page_at_a_time(ledger_url: str, shop: Shop) -> None:
    """CHARGES_PER_PAGE_MAX: in order of time, each row once."""
    ledger = await shop.open(ledger_url)
    many = CHARGES_PER_PAGE_MAX + 2
    await ledger.apply(KEY, [opening(many, seen=fact(deposit=many))])
    for start in range(0, many, 334):
        await asyncio.gather(
            *[
                ledger.apply(
                    KEY,
                    [
                        reserving(b"%d" % number, 1, presented=many),
                        c.Spend(b"%d" % number, 1),
                        c.Release(b"%d" % number),
                    ],
                )
                for number in range(start, min(many, start + 334))
            ]
        )
        shop.at += 1
    first = await ledger.list_charges(NOW, END_OF_TIME, limit=10**6)
    assert len(first) == CHARGES_PER_PAGE_MAX
    rest = await ledger.list_charges(NOW, END_OF_TIME, after=first[-1])
    listed = [*first, *rest]
    assert len({row.row_id for row in listed}) == many
    assert [row.at for row in listed] == sorted(row.at for row in listed)
    assert await ledger.list_charges(NOW + 1, NOW + 2, limit=5) == listed[334:339]


async def _tamper_sqlite(url: str, sql: str) -> None:
    path = find_sqlite_path(url)
    assert path is not None
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


async def _tamper_postgres(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(sql)
    await connection.close()


@pytest.mark.parametrize("table", ["charge", "charge_balance"])
async def test_a_lost_entry_is_a_fault_that_names_the_channel(
    ledger_url: str, shop: Shop, table: str
) -> None:
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100, seen=fact(settled=30))])
    await pay(ledger, 7)
    is_sqlite = find_sqlite_path(ledger_url) is not None
    tamper: Callable[[str, str], Awaitable[None]] = (
        _tamper_sqlite if is_sqlite else _tamper_postgres
    )
    await tamper(ledger_url, f"DELETE FROM {table}")  # noqa: S608 - one of two names
    (fault,) = await ledger.faults()
    left = {"charge": 30, "charge_balance": 7}[table]
    assert KEY.channel_id.hex() in fault
    assert f"expected spent {left}" in fault
    assert "found 37" in fault


async def test_an_export_carries_the_rows_and_the_sums_stay(
    ledger_url: str, shop: Shop, tmp_path: Path
) -> None:
    """F-108: with their times; a second import, or one into a newer ledger, enters nothing."""
    ledger = await shop.open(ledger_url)
    await ledger.apply(KEY, [opening(100, seen=fact(settled=30))])
    await pay(ledger, 7)
    shop.at += 50
    await pay(ledger, 8, name=b"q", outcome=ChargeOutcome.LEFT)
    await ledger.apply(KEY, [c.Repair(100, 60)])
    lines = [line async for line in export_channels(ledger)]
    expected = await ledger.list_charges(0, END_OF_TIME)
    shop.at += 10_000
    others = [f"sqlite:///{tmp_path / 'other.db'}", ledger_url]
    for url in others:
        other = await shop.open(url)
        for _ in range(2):
            assert await import_channels(other, each(lines)) == 1
            found = await other.list_charges(0, END_OF_TIME)
            assert [replace(row, row_id=0) for row in found] == [
                replace(row, row_id=0) for row in expected
            ]
            assert await other.faults() == []
    broken = lines[-1].replace(b'"charge":1', b'"charge":2')
    with pytest.raises(ConfigError, match="line 1 of the export cannot be read: expected format"):
        await import_channels(ledger, each([broken]))


async def test_rows_go_back_into_an_emptied_database(
    open_ledger: OpenLedger, shop: Shop, tmp_path: Path
) -> None:
    """The other way round: out of SQLite, into each kind."""
    source = await shop.open(f"sqlite:///{tmp_path / 'source.db'}")
    await source.apply(KEY, [opening(100)])
    await pay(source, 7)
    lines = [line async for line in export_channels(source)]
    ledger = await open_ledger()
    assert await import_channels(ledger, each(lines)) == 1
    assert await amounts(ledger) == [7]
    assert await ledger.restore_charges(await source.list_charges(0, END_OF_TIME)) == 0
    assert await ledger.faults() == []


@pytest.fixture
def old_books(tmp_path: Path) -> str:
    """Tables of the version before the accounts."""
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE ledger_schema (version INTEGER NOT NULL)")
    connection.execute("INSERT INTO ledger_schema VALUES (6)")
    scripts = load_schema("ledger", "sqlite").migrations
    for version in range(1, 7):
        connection.executescript(scripts[version])
    connection.close()
    return f"sqlite:///{path}"


async def test_books_of_an_older_version_are_checked_unchanged(old_books: str) -> None:
    """F-108: a command that only reads makes no accounts, and looks for none."""
    ledger = await open_by_url(old_books, exclusive=False, read_only=True)
    assert await ledger.faults() == []
    await ledger.close()
