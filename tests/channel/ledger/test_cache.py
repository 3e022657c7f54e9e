"""A bounded memory of what was used last."""

from hypothesis import given
from hypothesis import strategies as st

from channel.ledger.cache import Cache


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    cache: Cache[int, int] = Cache(4)
    for number in range(20):
        cache.put(number, number * 10)
        assert cache.get(0) == 0
        assert cache.peek(number) == number * 10
    assert cache.get(5) is None
    assert cache.peek(5) is None
    cache.clear()
    assert (cache.get(0), len(cache)) == (None, 0)


@given(st.integers(1, 9), st.lists(st.tuples(st.booleans(), st.integers(0, 20))))
def test_it_never_grows_beyond_its_bound_and_never_lies(
    entries_max: int, steps: list[tuple[bool, int]]
) -> None:
    cache: Cache[int, int] = Cache(entries_max)
    newest: dict[int, int] = {}
    for turn, (is_put, key) in enumerate(steps):
        if is_put:
            newest[key] = turn
            cache.put(key, turn)
            assert cache.peek(key) == turn
        else:
            assert cache.get(key) in (None, newest.get(key))
        assert len(cache) <= max(2, entries_max)
