"""Sums that decisions read and allowed asks increase, over rolling windows.

A window is divided into sixty buckets, of at least a second. The oldest counts in full, and what
comes back when a channel ends is taken from the oldest first. So a sum is never below what was
committed within the window, and above it by a bucket at most.

What a channel returns is known by its own entries: `signed - settled` of each sum that it was
counted to, and no more than the channel added to it within the window. It is returned once, since
the entries go with the channel (tempo#2466: a fee that was reserved and not used never came back).

Every method runs in the caller's transaction; nothing is kept in memory but the numbers of rows
that were committed before.
"""

import math
import sqlite3
from collections.abc import Collection, Iterator
from importlib import resources
from itertools import groupby
from operator import itemgetter
from typing import Final

from channel.sql import parse_queries
from mpp_session.wallet.types import Counter

__all__ = ["BUCKETS", "QUERIES", "SCHEMA", "Sum", "Sums", "bucket_s", "pack", "prepare", "unpack"]

_SQL: Final = resources.files("mpp_session.wallet.books") / "sql"
SCHEMA: Final = (_SQL / "schema.sql").read_text()
QUERIES: Final = parse_queries((_SQL / "queries.sql").read_text())

BUCKETS: Final = 60
"""Of a window."""
_KEPT: Final = BUCKETS + 4
"""Buckets that are kept beyond the window, for a clock that is set back and for a longer window."""
_BYTES: Final = 16
_LEFT_BEHIND: Final = -1
_EVER: Final = 0
"""The bucket of a sum without a window."""
_BY_IDS: Final = [
    f"SELECT id, total, since FROM counter WHERE id IN ({', '.join('?' * count)})"  # noqa: S608
    for count in range(33)
]


def pack(amount: int) -> bytes:
    """Return an amount as it is stored."""
    return amount.to_bytes(_BYTES, "big")


def unpack(blob: bytes) -> int:
    """Return a stored amount."""
    return int.from_bytes(blob, "big")


def prepare(db: sqlite3.Connection) -> None:
    """Teach a connection to add and subtract amounts."""
    db.create_function("plus", 2, lambda a, b: pack(unpack(a) + unpack(b)), deterministic=True)
    db.create_function("minus", 2, lambda a, b: pack(unpack(a) - unpack(b)), deterministic=True)


def bucket_s(window_s: int) -> int:
    """Return how long a bucket of a window is."""
    return max(1, window_s // BUCKETS)


class Sum:
    """A sum as a transaction read it: what it is now, and how to write it."""

    __slots__ = ("carried", "counter", "id", "is_moved", "since", "total")

    def __init__(self, counter: Counter, number: int | None, total: int, since: int) -> None:
        self.counter = counter
        self.id = number
        """None before it is first added to."""
        self.total = total
        self.since = since
        self.is_moved = False
        """Whether buckets have left the window since it was stored."""
        self.carried: list[tuple[int, int]] = []
        """Buckets that a new sum takes over from the same one over another window."""


class Sums:
    """The sums of one file."""

    def __init__(self) -> None:
        self._ids: dict[Counter, int] = {}
        self._folded: dict[tuple[int, int], int] = {}
        """The bucket in which a channel's old entries of a sum were last added up."""

    def read(
        self, db: sqlite3.Connection, counters: Collection[Counter], now: float
    ) -> dict[Counter, Sum]:
        """Return sums at a time, in one query for those that are known."""
        known = {self._ids[counter]: counter for counter in counters if counter in self._ids}
        found: dict[Counter, Sum] = {}
        ids = list(known)
        while ids:
            part, ids = ids[: len(_BY_IDS) - 1], ids[len(_BY_IDS) - 1 :]
            for number, total, since in db.execute(_BY_IDS[len(part)], part):
                counter = known[number]
                found[counter] = Sum(counter, number, unpack(total), since)
        for counter in counters:
            if counter not in found:
                found[counter] = self._find(db, counter, now)
        for each in found.values():
            _move(db, each, now)
        return found

    def add(
        self, db: sqlite3.Connection, to: Sum, amount: int, now: float, channel: int | None
    ) -> None:
        """Add to a sum that was read in this transaction, on behalf of a channel or of none."""
        if amount == 0:
            return
        window_s = to.counter.window_s
        to.total += amount
        if to.id is None:
            self._create(db, to)
        else:
            db.execute(QUERIES["update_counter"], (pack(to.total), to.since, to.id))
        packed = pack(amount)
        bucket = _EVER
        if window_s is not None:
            bucket = math.floor(now / bucket_s(window_s))
            db.execute(QUERIES["add_bucket"], (to.id, bucket, packed))
            if to.is_moved:
                db.execute(QUERIES["delete_buckets"], (to.id, to.since - _KEPT))
        if channel is not None and to.id is not None:
            db.execute(QUERIES["add_entry"], (channel, to.id, bucket, packed))
            if self._folded.get((channel, to.id)) != bucket:
                self._folded[channel, to.id] = bucket
                _fold(db, channel, to.id, to.since - _KEPT)

    def lower_locked(self, db: sqlite3.Connection, channel: int, locked: int) -> None:
        """Make no sum of deposits count more of a channel than lies in it now."""
        for counter, _, amount, _, total, since in db.execute(
            QUERIES["load_entries"], (channel, "locked")
        ).fetchall():
            back = unpack(amount) - locked
            if back > 0:
                values = (pack(unpack(total) - back), since, counter)
                db.execute(QUERIES["update_counter"], values)
                db.execute(QUERIES["store_entry"], (channel, counter, _EVER, pack(locked)))

    def raise_locked(self, db: sqlite3.Connection, channel: int, increase: int) -> None:
        """Count more of a channel, because the chain shows more in it."""
        for counter, bucket, amount, _, total, since in db.execute(
            QUERIES["load_entries"], (channel, "locked")
        ).fetchall():
            values = (pack(unpack(total) + increase), since, counter)
            db.execute(QUERIES["update_counter"], values)
            entry = (channel, counter, bucket, pack(unpack(amount) + increase))
            db.execute(QUERIES["store_entry"], entry)

    def give_back(self, db: sqlite3.Connection, channel: int, settled: int, now: float) -> int:
        """Return what a channel signed and did not pay, and forget its entries.

        Returns:
            The greatest amount that a sum got back, in base units.
        """
        rows = db.execute(QUERIES["load_entries"], (channel, "spent")).fetchall()
        most = 0
        for number, group in groupby(rows, itemgetter("counter")):
            entries = list(group)
            booked = sum(unpack(row["amount"]) for row in entries)
            back = max(0, booked - settled)
            most = max(most, back)
            self._take(db, number, entries, back, now)
            self._folded.pop((channel, number), None)
        db.execute(QUERIES["delete_entries"], (channel,))
        return most

    def _take(
        self,
        db: sqlite3.Connection,
        number: int,
        entries: list[sqlite3.Row],
        back: int,
        now: float,
    ) -> None:
        row = entries[0]
        window_s = row["window_s"] or None
        counter = Counter(what="spent", scope="", token="", window_s=window_s)
        current = Sum(counter, number, unpack(row["total"]), row["since"])
        _move(db, current, now)
        for entry in entries:  # the oldest first
            is_counted = window_s is None or entry["bucket"] >= current.since
            part = min(back, unpack(entry["amount"])) if is_counted else 0
            if part and window_s is not None:
                db.execute(QUERIES["take_bucket"], (pack(part), number, entry["bucket"]))
            back -= part
            current.total -= part
        db.execute(QUERIES["update_counter"], (pack(current.total), current.since, number))

    def next_release(
        self, db: sqlite3.Connection, each: Sum, now: float
    ) -> tuple[float, int] | None:
        """Return when the oldest part of a sum leaves its window, and how much that is."""
        window_s = each.counter.window_s
        if window_s is None or each.id is None:
            return None
        step = bucket_s(window_s)
        last = math.floor(now / step) + _KEPT
        for bucket, amount in db.execute(QUERIES["load_buckets"], (each.id, each.since, last)):
            if unpack(amount):
                return float((bucket + 1) * step + window_s), unpack(amount)
        return None

    def _find(self, db: sqlite3.Connection, counter: Counter, now: float) -> Sum:
        name = (counter.what, counter.scope, counter.token)
        row = db.execute(QUERIES["find_counter"], (*name, counter.window_s or _EVER)).fetchone()
        if row is not None:
            self._ids[counter] = row["id"]
            return Sum(counter, row["id"], unpack(row["total"]), row["since"])
        since = _first_bucket(counter, now)
        new = Sum(counter, None, 0, since)
        for bucket, amount in _carry(db, counter, now):
            new.carried.append((bucket, amount))
            new.total += amount if bucket >= since else 0
        return new

    def _create(self, db: sqlite3.Connection, new: Sum) -> None:
        counter = new.counter
        name = (counter.what, counter.scope, counter.token, counter.window_s or _EVER)
        values = (*name, pack(new.total), new.since)
        new.id = db.execute(QUERIES["add_counter"], values).lastrowid
        if counter.window_s is not None:
            for bucket, amount in new.carried:
                db.execute(QUERIES["add_bucket"], (new.id, bucket, pack(amount)))


def _first_bucket(counter: Counter, now: float) -> int:
    """Return the oldest bucket that a window still reaches, in full or in part."""
    if counter.window_s is None:
        return _EVER
    return math.floor((now - counter.window_s) / bucket_s(counter.window_s))


def _move(db: sqlite3.Connection, each: Sum, now: float) -> None:
    """Bring a sum to a time: less what has left the window, or more if the clock was set back."""
    first, since = _first_bucket(each.counter, now), each.since
    if first == since:
        return
    if each.id is not None:
        values = (each.id, min(first, since), max(first, since))
        rows = db.execute(QUERIES["load_buckets"], values)
        change = sum(unpack(amount) for _, amount in rows)
        each.total += change if first < since else -change
    each.since, each.is_moved = first, True


def _fold(db: sqlite3.Connection, channel: int, number: int, first: int) -> None:
    """Add up the entries of a channel that no window reaches any more."""
    rows = db.execute(QUERIES["load_old_entries"], (channel, number, first)).fetchall()
    if rows:
        total = sum(unpack(amount) for _, amount in rows)
        db.execute(QUERIES["delete_old_entries"], (channel, number, first))
        db.execute(QUERIES["add_entry"], (channel, number, _LEFT_BEHIND, pack(total)))


def _carry(db: sqlite3.Connection, counter: Counter, now: float) -> Iterator[tuple[int, int]]:
    """Give the buckets of the same sum over another window, for one whose window is new.

    A policy with another window goes on with what was spent; it is no new budget. Each amount gets
    the latest time that it may have.
    """
    if counter.what == "locked":
        return
    rows = db.execute(
        QUERIES["find_windows"], (counter.what, counter.scope, counter.token)
    ).fetchall()
    if not rows:
        return
    source = _closest(rows, counter.window_s)
    if not source["window_s"]:
        yield _bucket_at(counter, now), unpack(source["total"])
        return
    step = bucket_s(source["window_s"])
    last = math.floor(now / step) + _KEPT
    for bucket, amount in db.execute(QUERIES["load_buckets"], (source["id"], 0, last)).fetchall():
        yield _bucket_at(counter, (bucket + 1) * step - 1), unpack(amount)


def _closest(rows: list[sqlite3.Row], window_s: int | None) -> sqlite3.Row:
    """Return the shortest window that covers a new one, or else the longest."""
    windows = sorted((row for row in rows if row["window_s"]), key=itemgetter("window_s"))
    covering = [row for row in windows if window_s is not None and row["window_s"] >= window_s]
    return (covering or windows[::-1] or rows)[0]


def _bucket_at(counter: Counter, at: float) -> int:
    return _EVER if counter.window_s is None else math.floor(at / bucket_s(counter.window_s))
