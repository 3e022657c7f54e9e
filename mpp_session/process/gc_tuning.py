"""How often a serving process looks for garbage: seldom, since ours forms next to no cycles."""

import gc
from typing import Final

__all__ = ["collect_seldom"]

_OBJECTS_BETWEEN: Final = 10_000
"""By default 700 more than there were set off a collection, which a few requests in flight are."""


def collect_seldom() -> None:
    """Let what is loaded by now stay, looked at no more, and collect the rest less often.

    For a process that serves, once it is about to; it took a tenth off a paid request.
    """
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN)
