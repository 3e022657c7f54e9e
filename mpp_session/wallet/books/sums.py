"""Sums that decisions read and allowed asks increase, over rolling windows.

A window is divided into sixty buckets, of at least a second. The oldest counts in full. So a sum is
never below what was committed within the window, and above it by a bucket at most.

An entry says which part of a channel's cumulative amount was counted to a sum, in which bucket. A
payee is paid the first part of that amount, so when the channel ends, what lies above `settled` is
taken from exactly the buckets that it was added to. It is returned once, since the entries go with
the channel (tempo#2466: a fee that was reserved and not used never came back).

Every method runs in the caller's transaction. What is kept in memory saves queries only: it is
compared with what is stored, and a change that was undone leaves nothing that matters.
"""

import math
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from operator import itemgetter
from typing import Final, NamedTuple

from msgspec.structs import replace

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
_KEPT_S: Final = 600
"""The same in seconds, where the buckets are short."""
_BYTES: Final = 16
_EVER: Final = 0
"""The bucket of a sum without a window."""


def pack(amount: int) -> bytes:
    """Return an amount as it is stored."""
    return amount.to_bytes(_BYTES, "big")


def unpack(blob: bytes) -> int:
    """Return a stored amount."""
    return int.from_bytes(blob, "big")


def prepare(db: sqlite3.Connection) -> None:
    """Teach a connection to add and subtract amounts."""
    db.create_function("plus", 2, lambda a, b: pack(unpack(a) + unpack(b)), deterministic=True)
    db.create_function(
        "minus", 2, lambda a, b: pack(max(0, unpack(a) - unpack(b))), deterministic=True
    )


def bucket_s(window_s: int) -> int:
    """Return how long a bucket of a window is."""
    return max(1, window_s // BUCKETS)


class Sum:
    """A sum as a transaction read it, and how to write it."""

    __slots__ = ("carried", "counter", "head", "head_amount", "id", "is_moved", "since", "total")

    def __init__(self, counter: Counter, row: Sequence[int | bytes | None]) -> None:
        number, total, since, head, head_amount = row
        self.counter = counter
        self.id: int | None = number  # type: ignore[assignment]  # as the columns are typed
        """None before it is first added to."""
        self.total = unpack(total)  # type: ignore[arg-type]
        """Of the window, from bucket `since` on."""
        self.since: int = since  # type: ignore[assignment]
        self.head: int = head  # type: ignore[assignment]
        """The bucket that was added to last. It has no row of its own yet; none has without a
        window."""
        self.head_amount = unpack(head_amount)  # type: ignore[arg-type]
        self.is_moved = False
        """Whether buckets have left the window since it was stored."""
        self.carried: list[tuple[int, int]] = []
        """Buckets that a new sum takes over from the same one over another window."""

    @property
    def window_s(self) -> int | None:
        """None counts for ever."""
        return self.counter.window_s

    @property
    def forgotten(self) -> int:
        """The first bucket that is kept: what lies before it is forgotten."""
        return self.since - max(_KEPT, _KEPT_S // bucket_s(self.window_s or _KEPT_S))

    def bucket(self, at: float) -> int:
        """Return the bucket of a time."""
        return _bucket_at(self.counter, at)


class _Counting(NamedTuple):
    """What a channel's vouchers are counted to, and its amount after the last of them."""

    places: frozenset[tuple[int, int]]
    """Sums and buckets."""
    signed: int


class Sums:
    """The sums of one file."""

    def __init__(self) -> None:
        self._ids: dict[Counter, int] = {}
        self._counting: dict[int, _Counting] = {}

    def read(self, db: sqlite3.Connection, counter: Counter, now: float) -> Sum:
        """Return a sum at a time; one that was never added to is 0."""
        number, row = self._ids.get(counter), None
        if number is not None:
            row = db.execute(QUERIES["load_known"], (number, *_name(counter))).fetchone()
        found = self._find(db, counter, now) if row is None else Sum(counter, row)
        _move(db, found, now)
        return found

    def add(self, db: sqlite3.Connection, to: Sum, amount: int, now: float) -> None:
        """Add to a sum that was read in this transaction."""
        to.total += amount
        if to.window_s is not None:
            bucket = to.bucket(now)
            if bucket != to.head:
                if to.id is not None and to.head_amount:
                    db.execute(QUERIES["add_bucket"], (to.id, to.head, pack(to.head_amount)))
                to.head, to.head_amount = bucket, 0
            to.head_amount += amount
        if to.id is None:
            self._create(db, to)
        else:
            _store(db, to)
        if to.is_moved and to.window_s is not None:
            db.execute(QUERIES["delete_buckets"], (to.id, to.forgotten))

    def add_entries(
        self,
        db: sqlite3.Connection,
        channel: int,
        sums: Collection[Sum],
        *,
        before: int,
        after: int,
        now: float,
    ) -> None:
        """Note what a channel's amounts from `before` to `after` were added to.

        Mostly nothing is written: an entry goes on until its bucket or the sums change. If the last
        voucher was undone, or another process made it, all entries end at `before`.
        """
        places = frozenset((each.id, each.bucket(now)) for each in sums if each.id is not None)
        last = self._counting.get(channel)
        self._counting[channel] = _Counting(places, after)
        if last is not None and last.signed == before:
            if last.places == places:
                return
            for counter, bucket in last.places - places:
                db.execute(QUERIES["end_entry"], (pack(before), channel, counter, bucket))
            new = places - last.places
        else:
            db.execute(QUERIES["end_entries"], (pack(before), channel))
            new = places
        for each in sums:
            place = (each.id, each.bucket(now))
            if place in new:
                db.execute(QUERIES["add_entry"], (channel, *place, pack(before)))
                if each.window_s is not None:
                    values = (channel, each.id, each.forgotten)
                    db.execute(QUERIES["delete_old_entries"], values)

    def lock(self, db: sqlite3.Connection, to: Sum, amount: int, now: float, channel: int) -> None:
        """Add to a sum of deposits, and note it of the channel."""
        self.add(db, to, amount, now)
        db.execute(QUERIES["add_lock"], (channel, to.id, pack(amount)))

    def lower_locked(self, db: sqlite3.Connection, channel: int, locked: int) -> None:
        """Make no sum of deposits count more of a channel than lies in it now."""
        for counter, amount in db.execute(QUERIES["load_locks"], (channel,)).fetchall():
            back = unpack(amount) - locked
            if back > 0:
                db.execute(QUERIES["take_locked"], (pack(back), counter))
                db.execute(QUERIES["store_lock"], (channel, counter, pack(locked)))

    def raise_locked(self, db: sqlite3.Connection, channel: int, increase: int) -> None:
        """Count more of a channel, because the chain shows more in it."""
        packed = pack(increase)
        for counter, _ in db.execute(QUERIES["load_locks"], (channel,)).fetchall():
            db.execute(QUERIES["give_locked"], (packed, counter))
            db.execute(QUERIES["add_lock"], (channel, counter, packed))

    def give_back(
        self, db: sqlite3.Connection, channel: int, *, signed: int, settled: int, now: float
    ) -> None:
        """Return what a channel signed and did not pay, and forget its entries."""
        rows = db.execute(QUERIES["load_entries"], (channel,)).fetchall()
        sums: dict[int, Sum] = {}
        for row in rows:
            number = row["counter"]
            if number not in sums:
                window_s = row["window_s"] or None
                counter = Counter(what="spent", scope="", token="", window_s=window_s)
                sums[number] = Sum(
                    counter, db.execute(QUERIES["load_counter"], (number,)).fetchone()
                )
                _move(db, sums[number], now)
            last = signed if row["last"] is None else unpack(row["last"])
            back = last - max(unpack(row["first"]), settled)
            if back > 0:
                _take(db, sums[number], row["bucket"], back)
        for each in sums.values():
            _store(db, each)
        db.execute(QUERIES["delete_entries"], (channel,))
        db.execute(QUERIES["delete_locks"], (channel,))
        self._counting.pop(channel, None)

    def next_release(
        self, db: sqlite3.Connection, each: Sum, now: float
    ) -> tuple[float, int] | None:
        """Return when the oldest part of a sum leaves its window, and how much that is."""
        if each.window_s is None:
            return None
        step = bucket_s(each.window_s)
        last = max(each.bucket(now), each.head) + 1
        for bucket, amount in sorted(_rows(db, each, each.since, last)):
            if amount:
                return float((bucket + 1) * step + each.window_s), amount
        return None

    def _find(self, db: sqlite3.Connection, counter: Counter, now: float) -> Sum:
        row = db.execute(QUERIES["find_counter"], _name(counter)).fetchone()
        if row is not None:
            self._ids[counter] = row["id"]
            return Sum(counter, row)
        since = _first_bucket(counter, now)
        new = Sum(counter, (None, pack(0), since, _bucket_at(counter, now), pack(0)))
        for bucket, amount in _carry(db, counter, now):
            new.carried.append((bucket, amount))
            new.total += amount if bucket >= since else 0
        return new

    def _create(self, db: sqlite3.Connection, new: Sum) -> None:
        counter = new.counter
        values = (*_name(counter), pack(new.total), new.since, new.head, pack(new.head_amount))
        new.id = db.execute(QUERIES["add_counter"], values).lastrowid
        if counter.window_s is not None:
            for bucket, amount in new.carried:
                db.execute(QUERIES["add_bucket"], (new.id, bucket, pack(amount)))


def _name(counter: Counter) -> tuple[str, str, str, int]:
    """Return what a counter's row is found by."""
    return counter.what, counter.scope, counter.token, counter.window_s or _EVER


def _store(db: sqlite3.Connection, each: Sum) -> None:
    values = (pack(each.total), each.since, each.head, pack(each.head_amount), each.id)
    db.execute(QUERIES["update_counter"], values)


def _rows(db: sqlite3.Connection, each: Sum, first: int, last: int) -> list[tuple[int, int]]:
    """Return buckets and amounts from `first` to before `last`; those of a bucket may be two."""
    if each.id is None:
        return []
    rows = db.execute(QUERIES["load_buckets"], (each.id, first, last))
    found = [(bucket, unpack(amount)) for bucket, amount in rows]
    if first <= each.head < last:
        found.append((each.head, each.head_amount))
    return found


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
    change = sum(amount for _, amount in _rows(db, each, min(first, since), max(first, since)))
    each.total += change if first < since else -change
    each.since, each.is_moved = first, True


def _take(db: sqlite3.Connection, each: Sum, bucket: int, back: int) -> None:
    """Take from a bucket, also from one that has left the window, if it is kept.

    Never more than it holds: of a bucket that was forgotten nothing is in the total, also where the
    clock was set back and its time is within the window again.
    """
    if each.window_s is not None:
        back = min(back, sum(amount for _, amount in _rows(db, each, bucket, bucket + 1)))
    if each.window_s is None or bucket >= each.since:
        each.total -= back
    if each.window_s is not None:
        of_head = min(back, each.head_amount) if bucket == each.head else 0
        each.head_amount -= of_head
        if back > of_head:
            db.execute(QUERIES["take_bucket"], (pack(back - of_head), each.id, bucket))


def _carry(db: sqlite3.Connection, counter: Counter, now: float) -> Iterator[tuple[int, int]]:
    """Give the buckets of the same sum over another window, for one whose window is new.

    A policy with another window goes on with what was spent; it is no new budget. Each amount gets
    the latest time that it may have.
    """
    if counter.what == "locked":
        return
    name = (counter.what, counter.scope, counter.token)
    rows = db.execute(QUERIES["find_windows"], name).fetchall()
    if not rows:
        return
    window_s, *row = _closest(rows, counter.window_s)
    source = Sum(replace(counter, window_s=window_s or None), row)
    if source.window_s is None:
        yield _bucket_at(counter, now), source.total
        return
    step = bucket_s(source.window_s)
    last = max(source.bucket(now), source.head) + _KEPT
    for bucket, amount in _rows(db, source, 0, last):
        yield _bucket_at(counter, (bucket + 1) * step - 1), amount


def _closest(rows: list[sqlite3.Row], window_s: int | None) -> sqlite3.Row:
    """Return the shortest window that covers a new one, or else the longest."""
    windows = sorted((row for row in rows if row["window_s"]), key=itemgetter("window_s"))
    covering = [row for row in windows if window_s is not None and row["window_s"] >= window_s]
    return (covering or windows[::-1] or rows)[0]


def _bucket_at(counter: Counter, at: float) -> int:
    return _EVER if counter.window_s is None else math.floor(at / bucket_s(counter.window_s))
