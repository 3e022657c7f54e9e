"""A sum over a rolling window is never below the truth, by an exact list of times."""

import math
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp_session.wallet.books.sums import SCHEMA, Sums, bucket_s, prepare
from mpp_session.wallet.types import Counter
from tests.mpp_session.wallet.books.small_policy import NOW, USDC

BIG = 2**100
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "end", "forget"]),
        # Mostly forward; a clock that is set back counts more, never less.
        st.one_of(st.floats(0, 40), st.floats(0, 4_000), st.floats(-30, 0)),
        st.integers(1, BIG),
        st.integers(1, 3),
    ),
    max_size=40,
)


def counter_of(window_s: int | None, scope: str = "envelope lab") -> Counter:
    return Counter(what="spent", scope=scope, token=USDC, window_s=window_s)


def opened() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.row_factory = sqlite3.Row
    prepare(db)
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    return db


def total(db: sqlite3.Connection, sums: Sums, counter: Counter, now: float) -> int:
    return sums.read(db, [counter], now)[counter].total


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([1, 59, 61, 90, 3_600, 3_599]))
def test_a_rolling_window_is_never_below_the_truth(
    steps: list[tuple[str, float, int, int]], window_s: int
) -> None:
    """Nor above it by more than a bucket, unless a closed channel leaves more, to be safe."""
    counter, now = counter_of(window_s), NOW
    added: list[tuple[float, int, int]] = []
    owed: list[tuple[float, int]] = []
    with closing(opened()) as db:
        sums = Sums()
        for kind, seconds, amount, channel in steps:
            now += seconds
            if kind == "add":
                sums.add(db, sums.read(db, [counter], now)[counter], amount, now, channel)
                added.append((now, amount, channel))
            elif kind == "forget":  # a restart
                sums = Sums()
            else:  # the channel ends, and paid the first part of what it signed
                own = [(at, each) for at, each, whose in added if whose == channel]
                rest = settled = min(amount, sum(each for _, each in own))
                sums.give_back(db, channel, settled, now)
                sums.give_back(db, channel, settled, now)
                added = [each for each in added if each[2] != channel]
                for at, each in own:
                    owed.append((at, min(each, rest)))
                    rest -= owed[-1][1]
            found = total(db, sums, counter, now)
            live = [(at, each) for at, each, _ in added]
            assert found >= sum(each for at, each in [*owed, *live] if at > now - window_s)
            oldest = math.floor((now - window_s) / bucket_s(window_s)) * bucket_s(window_s)
            if not owed:
                assert found == sum(each for at, each in live if at >= oldest)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (3_600, 7_200, 111),
        (7_200, 3_600, 11),
        (None, 3_600, 111),
        (3_600, None, 111),
        (600, 3_600, 11),
    ],
)
def test_another_window_goes_on_with_what_was_spent(
    before: int | None, after: int | None, expected: int
) -> None:
    """A policy with another window is no new budget. What was forgotten is not known any more."""
    with closing(opened()) as db:
        sums = Sums()
        old, new = counter_of(before), counter_of(after)
        for seconds, amount in ((0, 100), (3_500, 10), (3_700, 1)):
            at = NOW + seconds
            sums.add(db, sums.read(db, [old], at)[old], amount, at, None)
        now = NOW + 3_700
        assert total(db, sums, new, now) == expected
        sums.add(db, sums.read(db, [new], now)[new], 5, now, 1)
        assert total(db, sums, new, now) == total(db, Sums(), new, now) == expected + 5
        sums.give_back(db, 1, 0, now)
        assert total(db, sums, new, now) == expected, "only what the channel added comes back"


def test_many_sums_are_read_at_once() -> None:
    with closing(opened()) as db:
        sums = Sums()
        counters = [counter_of(None, f"envelope e{number}") for number in range(80)]
        for number, each in enumerate(sums.read(db, counters, NOW).values()):
            sums.add(db, each, number, NOW, None)
        for _ in range(2):
            found = sums.read(db, counters, NOW)
            assert [found[each].total for each in counters] == list(range(80))


def test_a_long_lived_channel_keeps_few_entries() -> None:
    """What the window has left behind is one row, and the whole is still known at the end."""
    counter = counter_of(60)
    with closing(opened()) as db:
        sums = Sums()
        for second in range(0, 1_000, 2):
            at = NOW + second
            sums.add(db, sums.read(db, [counter], at)[counter], 1, at, 7)
        (entries,) = db.execute("SELECT count(*) FROM envelope_entry").fetchone()
        (buckets,) = db.execute("SELECT count(*) FROM bucket").fetchone()
        assert entries <= buckets + 1 <= 70
        assert sums.give_back(db, 7, 490, NOW + 1_000) == 10
        assert total(db, sums, counter, NOW + 1_000) == 20
