"""How deeply JSON is nested, before any parser that recurses sees it (F-02, SEC-10).

A parser written in C trusts Python's recursion limit to stop it, and a dependency of ours raises
that limit to 100,000 when it is imported: nested deeply enough, a text would then end the whole
process with a segmentation fault instead of an error.
"""

import re
from typing import Final

__all__ = ["is_shallow"]

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def is_shallow(text: bytes, depth_max: int) -> bool:
    """Say whether JSON text can be parsed without nesting far deeper than `depth_max`.

    True promises at most `2 * depth_max` levels. False says it is deeper than `depth_max`, or no
    JSON at all. Innermost pairs of brackets are peeled off a level at a time, each in one pass
    over the text.
    """
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return True
    brackets = _STRING.sub(b"", text).translate(None, _NOT_BRACKETS)
    for _ in range(depth_max):
        if not brackets:
            break
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return not brackets
