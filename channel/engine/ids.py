"""Unpredictable ids, drawn in bulk from the operating system."""

import os
from typing import Final
from weakref import WeakSet

__all__ = ["RandomIds"]

_BYTES: Final = 16
_AT_ONCE: Final = 256


class RandomIds:
    """Returns 16 random bytes at each call, never the same ones twice.

    A forked process drops the ids drawn before the fork; otherwise both would use them.
    """

    def __init__(self) -> None:
        self._drawn: list[bytes] = []
        _all.add(self)

    def __call__(self) -> bytes:
        """Return an id; one call in 256 reads from the operating system."""
        if not self._drawn:
            drawn = os.urandom(_BYTES * _AT_ONCE)
            self._drawn = [drawn[at : at + _BYTES] for at in range(0, len(drawn), _BYTES)]
        return self._drawn.pop()

    def forget(self) -> None:
        """Drop the drawn ids."""
        self._drawn = []


_all: Final[WeakSet[RandomIds]] = WeakSet()


def _forget_all() -> None:
    for ids in _all:
        ids.forget()


os.register_at_fork(after_in_child=_forget_all)
