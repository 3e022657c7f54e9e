"""The accounts in PostgreSQL (see `accounts`)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from zlib import crc32

import asyncpg

from channel.ledger.accounts import (
    AccountSettings,
    ChargeDay,
    ChargeRow,
    DayId,
    add_up_days,
    balance_fault,
    charge_from_row,
    charge_of_row,
    charge_values,
    day_from_row,
    day_values,
    is_listed,
    old_charge,
)
from channel.ledger.queries import load_queries
from channel.ledger.rows import key_values
from channel.limits import CHARGES_PER_PAGE_MAX, PRUNE_BATCH_MAX
from channel.state.charges import Charge
from channel.types import ChannelKey

__all__ = [
    "balance_faults",
    "find_answers",
    "find_charges",
    "list_charges",
    "list_days",
    "prune_charges",
    "restore_charges",
    "write_charges",
]

_SQL: Final = load_queries("postgres")
_LOCK: Final = crc32(b"mpp-session charge days")


async def write_charges(
    connection: asyncpg.Connection,
    charges: Sequence[tuple[ChannelKey, Charge]],
    ids: Mapping[ChannelKey, int],
    *,
    at: int,
    settings: AccountSettings,
) -> None:
    """Enter the charges of a batch, in its transaction."""
    rows = []
    unlisted: dict[int, int] = {}
    for key, charge in charges:
        channel = ids[key]
        if is_listed(charge, settings):
            rows.append(charge_values(channel, at, charge, str))
        else:
            unlisted[channel] = unlisted.get(channel, 0) + charge.amount
    if rows:
        await connection.execute(_SQL["insert_charges"], *_columns(rows))
    if unlisted:
        balances = [(channel, str(amount), "0") for channel, amount in unlisted.items()]
        await connection.execute(_SQL["add_balances"], *_columns(balances))


async def list_charges(
    connection: asyncpg.Connection, after: tuple[int, int], since: int, until: int, limit: int
) -> list[ChargeRow]:
    """Return a page of the entries from `since` to before `until`, in order of time."""
    rows = await connection.fetch(_SQL["select_charges"], *after, since, until, limit)
    return [charge_from_row(row, int) for row in rows]


async def find_charges(connection: asyncpg.Connection, reservation_id: bytes) -> list[ChargeRow]:
    """Return the entries of a request."""
    rows = await connection.fetch(_SQL["find_charges"], reservation_id, CHARGES_PER_PAGE_MAX)
    return [charge_from_row(row, int) for row in rows]


async def find_answers(connection: asyncpg.Connection, response_id: str) -> list[ChargeRow]:
    """Return the entries of the answers that state this id."""
    rows = await connection.fetch(_SQL["find_answers"], response_id, CHARGES_PER_PAGE_MAX)
    return [charge_from_row(row, int) for row in rows]


async def list_days(connection: asyncpg.Connection, since: int, until: int) -> list[ChargeDay]:
    """Return the totals of the days from `since` to before `until`, in order."""
    rows = await connection.fetch(_SQL["select_days"], since, until)
    return [day_from_row(DayId(*row[:7]), row[7:], int) for row in rows]


async def restore_charges(connection: asyncpg.Connection, rows: Sequence[ChargeRow]) -> int:
    """Enter rows of an export: see `interface.Ledger.restore_charges`."""
    entered = 0
    async with connection.transaction():
        for row in rows:
            channel = await connection.fetchval(_SQL["select_id"], *key_values(row.key))
            unlisted = await connection.fetchval(_SQL["lock_unlisted"], channel)
            if unlisted is None or int(unlisted) < row.amount:
                continue
            same = (row.at, channel, row.reservation_id or None, str(row.amount))
            if await connection.fetchval(_SQL["select_same_charge"], *same) is None:
                values = charge_values(channel, row.at, charge_of_row(row), str)
                await connection.execute(_SQL["insert_charges"], *_columns([values]))
                less = (channel, str(-row.amount), "0")
                await connection.execute(_SQL["add_balances"], *_columns([less]))
                entered += 1
    return entered


async def prune_charges(connection: asyncpg.Connection, before: int) -> int:
    """Add up and delete a bounded number of entries older than `before`; return how many."""
    async with connection.transaction():
        await connection.execute(_SQL["lock_days"], _LOCK)
        found = await connection.fetch(_SQL["take_old_charges"], before, PRUNE_BATCH_MAX)
        old = [old_charge(row, int) for row in found]
        pruned: dict[int, int] = {}
        for each in old:
            pruned[each.channel] = pruned.get(each.channel, 0) + each.day.amount
        balances = [(channel, "0", str(amount)) for channel, amount in pruned.items()]
        if balances:
            await connection.execute(_SQL["add_balances"], *_columns(balances))
        for day in add_up_days(each.day for each in old):
            await _add_day(connection, day)
    return len(old)


async def balance_faults(connection: asyncpg.Connection) -> list[str]:
    """Return which channels' entries disagree with their `spent`."""
    faults = []
    async with connection.transaction():
        async for row in connection.cursor(_SQL["select_balances"]):
            entries = sum(int(amount) for amount in row[4:7])
            faults.append(balance_fault(row[1], int(row[2]), row[3], entries))
    return [fault for fault in faults if fault is not None]


async def _add_day(connection: asyncpg.Connection, day: ChargeDay) -> None:
    columns = day_values(day, str)
    found = await connection.fetchrow(_SQL["select_day"], *columns[:7])
    if found is not None:
        (total,) = add_up_days([day_from_row(day.id, found, int), day])
        columns = day_values(total, str)
    await connection.execute(_SQL["upsert_day"], *columns)


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
