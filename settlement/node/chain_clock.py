"""The chain's time: the escrow judges its deadlines by block timestamps (F-111).

This machine's clock only measures how long ago the last block was seen. `skew_s` compares the two
clocks, so that an alarm can report a difference.
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
        """Seconds by which this machine's clock is ahead of the newest block seen while running."""

    def saw(self, head: BlockRef) -> None:
        """Record a new head."""
        is_first = self._seen_at is None
        self._head_at, self._seen_at = float(head.timestamp), self._monotonic()
        if not is_first:  # the first head may be of any age
            self.skew_s = self._wall() - head.timestamp

    def earliest(self) -> int:
        """Return the lesser of this machine's time and the chain's; 0 before the first block.

        Rows are pruned by this time, so that a clock that runs ahead does not prune early (O-90).
        """
        return 0 if self._seen_at is None else min(int(self._wall()), self.now())

    def latest(self) -> int:
        """Return the greater of this machine's time and the chain's, in Unix seconds.

        New rows are stamped with this time. Before the first block it is this machine's time.
        """
        return int(self._wall()) if self._seen_at is None else max(int(self._wall()), self.now())

    def now(self) -> int:
        """Return the chain's time in Unix seconds, never behind the timestamp of the next block.

        Raises:
            LookupError: No block has been seen yet.
        """
        if self._seen_at is None:
            raise LookupError("no block was seen yet")
        return int(self._head_at + (self._monotonic() - self._seen_at))
