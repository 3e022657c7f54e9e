"""Nothing nested deeply reaches a parser that recurses (F-02, SEC-10)."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import WireError
from channel.wire.depth import is_shallow, scan_json

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


def elements_of(value: Any) -> int:
    """One for each bracket that opens, each comma, each string."""
    if isinstance(value, dict):
        pairs = sum(1 + elements_of(inner) for inner in value.values())
        return 1 + pairs + max(0, len(value) - 1)
    if isinstance(value, list):
        return 1 + sum(map(elements_of, value)) + max(0, len(value) - 1)
    return int(isinstance(value, str))


@given(
    value=VALUES,
    depth_max=st.integers(1, 6),
    window=st.integers(1, 20),
    is_ascii=st.booleans(),
)
def test_depth_and_elements_of_every_value_are_known(
    value: Any, depth_max: int, window: int, *, is_ascii: bool
) -> None:
    """O-22: wherever a window ends, in an escape or between two."""
    text = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("channel.wire.depth.JSON_WINDOW_BYTES", window)
        assert is_shallow(text, depth_max) == (depth_of(value) <= depth_max)
        elements = elements_of(value)
        list(scan_json(text, depth_max=100, elements_max=elements))
        if elements:
            with pytest.raises(WireError, match="elements"):
                list(scan_json(text, depth_max=100, elements_max=elements - 1))


def test_few_brackets_are_counted_alone() -> None:
    assert is_shallow(b"[[[", 3)
    assert not is_shallow(b"[[[[", 3)
