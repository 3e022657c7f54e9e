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


def spend(
    db: sqlite3.Connection,
    sums: Sums,
    counter: Counter,
    amount: int,
    now: float,
    *,
    channel: int,
    signed: int,
) -> None:
    row = sums.read(db, counter, now)
    sums.add(db, row, amount, now)
    sums.add_entries(db, channel, [row], before=signed, after=signed + amount, now=now)


def total(db: sqlite3.Connection, sums: Sums, counter: Counter, now: float) -> int:
    return sums.read(db, counter, now).total


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([1, 59, 61, 90, 3_600, 3_599]))
def test_a_rolling_window_is_never_below_the_truth(
    steps: list[tuple[str, float, int, int]], window_s: int
) -> None:
    """Nor above it by more than a bucket; what a channel did not pay is taken from where it was."""
    counter, now, latest = counter_of(window_s), NOW, NOW
    spent: list[tuple[float, int]] = []
    channels: dict[int, list[tuple[float, int]]] = {}
    with closing(opened()) as db:
        sums = Sums()
        for kind, seconds, amount, channel in steps:
            latest = max(latest, now + seconds)
            now = max(now + seconds, latest - 600)  # a clock that is set back further is not known
            own = channels.setdefault(channel, [])
            signed = sum(each for _, each in own)
            if kind == "add":
                spend(db, sums, counter, amount, now, channel=channel, signed=signed)
                own.append((now, amount))
            elif kind == "forget":  # a restart
                sums = Sums()
            else:  # the channel ends, and paid the first part of what it signed
                rest = min(amount, signed)
                for _ in range(2):
                    sums.give_back(db, channel, signed=signed, settled=min(amount, signed), now=now)
                for at, each in channels.pop(channel):
                    spent.append((at, min(each, rest)))
                    rest -= spent[-1][1]
            found = total(db, sums, counter, now)
            every = [*spent, *(each for own in channels.values() for each in own)]
            assert found >= sum(each for at, each in every if at > now - window_s)
            oldest = math.floor((now - window_s) / bucket_s(window_s)) * bucket_s(window_s)
            assert found == sum(each for at, each in every if at >= oldest)


def test_a_channel_pays_for_each_sum_what_it_settled_of_it() -> None:
    """Two tasks share a channel; the payee is paid the first part, so the second task gets back."""
    first, second, both = (counter_of(None, scope) for scope in ("task a", "task b", "lab"))
    with closing(opened()) as db:
        sums = Sums()
        for signed, scopes in ((0, (first, both)), (10, (second, both)), (20, (first, both))):
            rows = [sums.read(db, scope, NOW) for scope in scopes]
            for row in rows:
                sums.add(db, row, 10, NOW)
            sums.add_entries(db, 1, rows, before=signed, after=signed + 10, now=NOW)
        sums.give_back(db, 1, signed=30, settled=12, now=NOW)
        assert [total(db, sums, each, NOW) for each in (first, second, both)] == [10, 2, 12]


@pytest.mark.parametrize("is_undone", [True, False])
def test_what_was_undone_leaves_no_entry(*, is_undone: bool) -> None:
    """A commit that failed, and what another process signed, are no part of an entry."""
    first, second = counter_of(None, "task a"), counter_of(None, "task b")
    with closing(opened()) as db:
        sums = Sums()
        spend(db, sums, first, 10, NOW, channel=1, signed=0)
        db.execute("BEGIN")
        spend(db, sums, second, 10, NOW, channel=1, signed=10)
        db.execute("ROLLBACK" if is_undone else "COMMIT")
        spend(db, sums, second, 5, NOW, channel=1, signed=10 if is_undone else 20)
        sums.give_back(db, 1, signed=15 if is_undone else 25, settled=0, now=NOW)
        assert [total(db, sums, each, NOW) for each in (first, second)] == [0, 0]


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
            sums.add(db, sums.read(db, old, at), amount, at)
        now = NOW + 3_700
        assert total(db, sums, new, now) == expected
        spend(db, sums, new, 5, now, channel=1, signed=0)
        assert total(db, sums, new, now) == total(db, Sums(), new, now) == expected + 5
        sums.give_back(db, 1, signed=5, settled=0, now=now)
        assert total(db, sums, new, now) == expected, "only what the channel added comes back"


@pytest.mark.parametrize("amount", [300, 400])
def test_what_was_forgotten_is_not_taken_from_others(amount: int) -> None:
    """A clock that is set back far brings a forgotten bucket's time into the window again."""
    with closing(opened()) as db:
        sums, counter = Sums(), counter_of(60)
        spend(db, sums, counter, amount, NOW, channel=1, signed=0)
        spend(db, sums, counter, 250, NOW + 2_000, channel=2, signed=0)
        spend(db, sums, counter, 50, NOW + 2_002, channel=2, signed=250)
        sums.give_back(db, 1, signed=amount, settled=0, now=NOW + 10)
        assert total(db, sums, counter, NOW + 10) == 300
        sums.give_back(db, 2, signed=300, settled=260, now=NOW + 2_003)
        assert total(db, sums, counter, NOW + 2_003) == 260


def test_a_long_lived_channel_keeps_few_entries() -> None:
    """What the window has left behind is forgotten."""
    counter = counter_of(60)
    with closing(opened()) as db:
        sums = Sums()
        for second in range(0, 3_000, 6):
            at = NOW + second
            spend(db, sums, counter, 1, at, channel=7, signed=second // 6)
        for table in ("envelope_entry", "bucket"):
            (rows,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            assert rows <= 120
        sums.give_back(db, 7, signed=500, settled=490, now=NOW + 2_994)
        assert total(db, sums, counter, NOW + 2_994) == 1
