"""The Merkle tree of RFC 6962 over the records, of which only the right edge is kept (pure)."""

from hashlib import sha256
from typing import Final

__all__ = ["Tree"]

_NODE: Final = b"\x01"


class Tree:
    """Grows by one leaf at a time, and knows its root at each size."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []
        """The roots of the complete subtrees, the largest first: one for each bit of `size`."""

    def add(self, leaf: bytes) -> None:
        """Append the hash of a leaf: a record's own hash is one."""
        beyond = self.size
        while beyond & 1:
            leaf = _join(self._peaks.pop(), leaf)
            beyond >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root over all leaves; of no leaf, the hash of nothing."""
        if not self._peaks:
            return sha256().digest()
        *left, root = self._peaks
        for peak in reversed(left):
            root = _join(peak, root)
        return root


def _join(left: bytes, right: bytes) -> bytes:
    return sha256(_NODE + left + right).digest()
