"""States kept in memory so that a known channel costs no SELECT.

Two generations stand in for a least-recently-used list: what is read moves to the young one,
and when that is full the old one is forgotten. A look-up is one or two dict operations.
"""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

__all__ = ["Cache"]


class Cache(Generic[K, V]):
    """At most `entries_max` entries; one thread writes, others may read with `peek`."""

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
        """Keep an entry; the least recently used half may go for it."""
        if len(self._young) >= self._generation_max and key not in self._young:
            self._old = self._young
            self._young = {}
        self._young[key] = value

    def clear(self) -> None:
        """Forget everything."""
        self._young = {}
        self._old = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
