"""Measures the depth and width of JSON before a parser reads it (F-02, SEC-10, O-22).

A parser written in C relies on Python's recursion limit, and a dependency raises that limit to
100,000 when it is imported: a deeply nested text would end the process with a segmentation fault
instead of an error. A parser also creates an object for every two bytes of `[],[],`, while the
event loop waits.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from channel.errors import WireError
from channel.limits import JSON_WINDOW_BYTES

__all__ = ["is_shallow", "scan_json"]

_NOT_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in b"[]{},")
_STEPS: Final = tuple(1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in range(256))


def is_shallow(text: bytes, depth_max: int) -> bool:
    """Return whether JSON text is nested no deeper than `depth_max`."""
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return True
    try:
        for _ in scan_json(text, depth_max=depth_max):
            pass
    except WireError:
        return False
    return True


def scan_json(text: bytes, *, depth_max: int, elements_max: int | None = None) -> Iterator[None]:
    """Check JSON text one window at a time; between windows the caller may yield to other tasks.

    Elements are opening brackets, commas and strings, so every value is counted.

    Raises:
        WireError: It is nested deeper, or has more elements.
    """
    depth = elements = 0
    is_in_string = False
    cut_off = b""
    for start in range(0, len(text), JSON_WINDOW_BYTES):
        if start:
            yield
        window = cut_off + text[start : start + JSON_WINDOW_BYTES]
        # Of a run of backslashes every second one is escaped; the rest ends no string.
        if b"\\" in window:
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        cut_off = b"\\" if window.endswith(b"\\") else b""
        pieces = window.split(b'"')
        structure = b"".join(pieces[is_in_string::2]).translate(None, _NOT_STRUCTURE)
        strings = (len(pieces) - is_in_string) // 2
        is_in_string ^= len(pieces) % 2 == 0
        opening = structure.count(b"[") + structure.count(b"{")
        elements += opening + structure.count(b",") + strings
        if elements_max is not None and elements > elements_max:
            raise WireError(f"JSON of more than {elements_max} elements")
        if depth + opening <= depth_max:
            depth += opening - structure.count(b"]") - structure.count(b"}")
            continue
        depths = [*accumulate(map(_STEPS.__getitem__, structure), initial=depth)]
        if max(depths) > depth_max:
            raise WireError(f"JSON nested deeper than {depth_max} levels")
        depth = depths[-1]
