"""What time it is on the chain: deadlines of the escrow are judged by its blocks (F-111).

This machine's clock is used only to measure how long ago the last block was seen, and is held
against the chain's: when the two differ, somebody should know.
"""

import time
from collections.abc import Callable

from settlement.types import BlockRef

__all__ = ["ChainClock"]


class ChainClock:
    """The chain's time, also while no node answers."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._head_at = 0.0
        self._seen_at: float | None = None
        self.skew_s = 0.0
        """How far this machine's clock is ahead of the newest block that came while we looked."""

    def saw(self, head: BlockRef) -> None:
        """Note a head that is new."""
        is_first = self._seen_at is None
        self._head_at, self._seen_at = float(head.timestamp), self._monotonic()
        if not is_first:  # the first one may be of any age
            self.skew_s = self._wall() - head.timestamp

    def earliest(self) -> int:
        """Return the lesser of this machine's time and the chain's: nothing is older than by that.

        What is forgotten for its age is forgotten by this one (O-90); 0 before the first block.
        """
        return 0 if self._seen_at is None else min(int(self._wall()), self.now())

    def latest(self) -> int:
        """Return the greater of this machine's time and the chain's.

        What is to count as new is marked with it; this machine's before the first block.
        """
        return int(self._wall()) if self._seen_at is None else max(int(self._wall()), self.now())

    def now(self) -> int:
        """Return the chain's time in Unix seconds: never behind what the next block will say.

        Raises:
            LookupError: No block was seen yet.
        """
        if self._seen_at is None:
            raise LookupError("no block was seen yet")
        return int(self._head_at + (self._monotonic() - self._seen_at))
