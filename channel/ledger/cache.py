"""Keeps states in memory, so that a known channel needs no SELECT.

Two generations approximate a least-recently-used list: an entry that is read moves to the young
one, and when that is full, the old one is dropped. A look-up is one or two dict operations.
"""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

__all__ = ["Cache"]


class Cache(Generic[K, V]):
    """At most `entries_max` entries. One thread writes; other threads may call `peek`."""

    def __init__(self, entries_max: int) -> None:
        self._generation_max = max(1, entries_max // 2)
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def peek(self, key: K) -> V | None:
        """Return the entry without renewing it."""
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def get(self, key: K) -> V | None:
        """Return the entry and renew it."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Store an entry; this may drop the least recently used half."""
        if len(self._young) >= self._generation_max and key not in self._young:
            self._old = self._young
            self._young = {}
        self._young[key] = value

    def clear(self) -> None:
        """Drop every entry."""
        self._young = {}
        self._old = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
