"""How deep and how wide JSON is, before any parser sees it (F-02, SEC-10, O-22).

A parser written in C trusts Python's recursion limit to stop it, and a dependency of ours raises
that limit to 100,000 when it is imported: nested deeply enough, a text would then end the whole
process with a segmentation fault instead of an error. And a parser makes an object of every two
bytes of `[],[],`, while everything else waits.
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
    """Say whether JSON text is nested no deeper than `depth_max`."""
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return True
    try:
        for _ in scan_json(text, depth_max=depth_max):
            pass
    except WireError:
        return False
    return True


def scan_json(text: bytes, *, depth_max: int, elements_max: int | None = None) -> Iterator[None]:
    """Check JSON text a window at a time; between two windows others may have their turn.

    Elements are brackets that open, commas and strings, so that no value is left out.

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
        # Of a run of backslashes every second one is escaped; what is left ends no string.
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
