"""Nothing nested deeply reaches a parser that recurses (F-02, SEC-10)."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.wire.depth import is_shallow

DEEP = 32


def nested(depth: int, left: bytes = b"[", right: bytes = b"]") -> bytes:
    return left * depth + right * depth


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def test_the_bound_itself_passes_and_one_more_does_not() -> None:
    assert is_shallow(nested(DEEP), DEEP)
    assert not is_shallow(nested(DEEP + 1), DEEP)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'[{"a":' * 50_000,
        nested(100_000),
        b"[" * 100_000 + b'"' + b"]" * 100_000,
        b'["a\\"]' * 1000 + b"[" * 100_000,
    ],
)
def test_what_would_crash_a_parser_is_not_shallow(text: bytes) -> None:
    """F-02: a dependency raises the recursion limit, which then protects no parser in C."""
    assert not is_shallow(text, DEEP)


def test_wide_is_not_deep() -> None:
    began = time.process_time()
    assert is_shallow(b"[" + b"[]," * 1_000_000 + b"[]]", DEEP)
    assert is_shallow(b'["' + b"[" * 1_000_000 + b'"]', DEEP)
    assert time.process_time() - began < 5


VALUES = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=40,
)


@given(VALUES, st.integers(1, 6))
def test_the_promise_holds_for_every_value(value: Any, depth_max: int) -> None:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if is_shallow(text, depth_max):
        assert depth_of(value) <= 2 * depth_max
    else:
        assert depth_of(value) > depth_max


def test_few_brackets_are_counted_alone() -> None:
    assert is_shallow(b"[[[", 3)
    assert not is_shallow(b"[[[[", 3)
