"""The accounts in SQLite: functions that run in the ledger's thread (see `accounts`)."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

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
from channel.ledger.rows import amount_bytes, bytes_amount, key_values
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

_SQL: Final = load_queries("sqlite")


def write_charges(
    connection: sqlite3.Connection,
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
            rows.append(charge_values(channel, at, charge))
        else:
            unlisted[channel] = unlisted.get(channel, 0) + charge.amount
    if rows:
        connection.executemany(_SQL["insert_charge"], rows)
    for channel, amount in unlisted.items():
        _add_balance(connection, channel, unlisted=amount)


def list_charges(
    connection: sqlite3.Connection, after: tuple[int, int], since: int, until: int, limit: int
) -> list[ChargeRow]:
    """Return a page of the entries from `since` to before `until`, in order of time."""
    rows = connection.execute(_SQL["select_charges"], (*after, since, until, limit)).fetchall()
    return [charge_from_row(row) for row in rows]


def find_charges(connection: sqlite3.Connection, reservation_id: bytes) -> list[ChargeRow]:
    """Return the entries of a request."""
    columns = (reservation_id, CHARGES_PER_PAGE_MAX)
    rows = connection.execute(_SQL["find_charges"], columns).fetchall()
    return [charge_from_row(row) for row in rows]


def find_answers(connection: sqlite3.Connection, response_id: str) -> list[ChargeRow]:
    """Return the entries of the answers that state this id."""
    columns = (response_id, CHARGES_PER_PAGE_MAX)
    rows = connection.execute(_SQL["find_answers"], columns).fetchall()
    return [charge_from_row(row) for row in rows]


def list_days(connection: sqlite3.Connection, since: int, until: int) -> list[ChargeDay]:
    """Return what was added up for the days from `since` to before `until`, in order."""
    rows = connection.execute(_SQL["select_days"], (since, until)).fetchall()
    return [day_from_row(DayId(*row[:7]), row[7:]) for row in rows]


def restore_charges(connection: sqlite3.Connection, rows: Sequence[ChargeRow]) -> int:
    """Enter rows of an export, in a transaction: see `interface.Ledger.restore_charges`."""
    entered = 0
    for row in rows:
        found = connection.execute(_SQL["select_channel"], key_values(row.key)).fetchone()
        channel = 0 if found is None else found[0]
        balance = connection.execute(_SQL["select_balance"], (channel,)).fetchone()
        if balance is None or bytes_amount(balance[0]) < row.amount:
            continue
        same = (row.at, channel, row.reservation_id or None, amount_bytes(row.amount))
        if connection.execute(_SQL["select_same_charge"], same).fetchone() is None:
            values = charge_values(channel, row.at, charge_of_row(row))
            connection.execute(_SQL["insert_charge"], values)
            _add_balance(connection, channel, unlisted=-row.amount)
            entered += 1
    return entered


def prune_charges(connection: sqlite3.Connection, before: int) -> int:
    """Add up and delete a bounded number of entries older than `before`; return how many."""
    found = connection.execute(_SQL["select_old_charges"], (before, PRUNE_BATCH_MAX)).fetchall()
    old = [old_charge(row) for row in found]
    pruned: dict[int, int] = {}
    for each in old:
        pruned[each.channel] = pruned.get(each.channel, 0) + each.day.amount
    for channel, amount in pruned.items():
        _add_balance(connection, channel, pruned=amount)
    for day in add_up_days(each.day for each in old):
        _add_day(connection, day)
    connection.execute(_SQL["delete_charges"], (json.dumps([each.row_id for each in old]),))
    return len(old)


def balance_faults(connection: sqlite3.Connection) -> list[str]:
    """Return which channels' entries disagree with their `spent`, at one moment."""
    connection.execute("BEGIN")  # reads only, so no writer waits for it
    try:
        return _balance_faults(connection)
    finally:
        connection.execute("ROLLBACK")


def _balance_faults(connection: sqlite3.Connection) -> list[str]:
    listed: dict[int, int] = {}
    for channel, amount in connection.execute(_SQL["select_amounts"]):
        listed[channel] = listed.get(channel, 0) + bytes_amount(amount)
    faults = []
    for row in connection.execute(_SQL["select_balances"]):
        channel, channel_id, spent, reservations, *balance = row
        entries = listed.get(channel, 0) + _sum(balance)
        faults.append(balance_fault(channel_id, bytes_amount(spent), reservations, entries))
    return [fault for fault in faults if fault is not None]


def _add_day(connection: sqlite3.Connection, day: ChargeDay) -> None:
    columns = day_values(day)
    found = connection.execute(_SQL["select_day"], columns[:7]).fetchone()
    if found is not None:
        (total,) = add_up_days([day_from_row(day.id, found), day])
        columns = day_values(total)
    connection.execute(_SQL["upsert_day"], columns)


def _add_balance(
    connection: sqlite3.Connection, channel: int, *, unlisted: int = 0, pruned: int = 0
) -> None:
    found = connection.execute(_SQL["select_balance"], (channel,)).fetchone()
    if found is not None:
        unlisted += bytes_amount(found[0])
        pruned += bytes_amount(found[1])
    columns = (channel, amount_bytes(unlisted), amount_bytes(pruned))
    connection.execute(_SQL["upsert_balance"], columns)


def _sum(amounts: Iterable[bytes | None]) -> int:
    return sum(0 if amount is None else bytes_amount(amount) for amount in amounts)
