"""Bounds the bytes of answers that are stored for repeats: per channel, and in total.

A payer pays a route's price for an answer, and storing it may cost more than that (O-10). So a
channel keeps its newest answers up to a bound that grows with `spent`. When the channel has stored
another quarter of its bound, the ledger deletes its oldest answers. A second bound covers all
channels; pruning makes room under it by deleting the oldest answers of all. The ledger keeps the
key of a deleted answer: a repeat gets "outcome unknown" and is not charged.

A process counts the bytes it stores itself, and learns the total when it prunes.
"""

from collections import OrderedDict
from typing import Final

from msgspec.structs import replace

from channel.limits import (
    CHANNELS_CACHED_MAX,
    STORED_BYTES_MAX,
    STORED_BYTES_PER_BASE_UNIT,
    STORED_BYTES_PER_CHANNEL_MAX,
    STORED_BYTES_PER_CHANNEL_MIN,
)
from channel.state.requests import RequestRecord, StoredResponse

__all__ = ["AnswerBounds", "allowance", "size_of"]

_SLACK: Final = 4


def allowance(spent: int) -> int:
    """Return how many bytes of answers a channel with this `spent` may keep."""
    earned = STORED_BYTES_PER_CHANNEL_MIN + spent * STORED_BYTES_PER_BASE_UNIT
    return min(earned, STORED_BYTES_PER_CHANNEL_MAX)


def size_of(response: StoredResponse) -> int:
    """Return the approximate size of an answer: its body, and its headers without encoding."""
    return len(response.body) + sum(len(name) + len(value) for name, value in response.headers)


class AnswerBounds:
    """Counts what this process has stored, and decides when old answers must be deleted."""

    def __init__(self) -> None:
        self.total = 0
        """Bytes stored in total, as far as this process knows."""
        self._since: OrderedDict[int, int] = OrderedDict()
        """Bytes stored since the last deletion, by the row of a channel."""

    @property
    def surplus(self) -> int:
        """Bytes that pruning must free, to get down to three quarters of the total bound."""
        return max(0, self.total - STORED_BYTES_MAX * (_SLACK - 1) // _SLACK)

    def take(
        self, channel: int, record: RequestRecord, *, spent: int
    ) -> tuple[RequestRecord, int | None]:
        """Count an answer that is about to be stored for a channel with this `spent`.

        Returns the record, without its answer when the total bound leaves no room for it, and the
        bytes that the channel may keep when its oldest answers must be deleted now. That is also
        the case for the first answer that this process stores for a channel, because the process
        does not know what was stored before.
        """
        if record.response is None:
            return record, None
        size = size_of(record.response)
        if self.total + size > STORED_BYTES_MAX:
            return replace(record, response=None), None
        self.total += size
        known = self._since.pop(channel, None)
        since = size if known is None else known + size
        is_due = known is None or _SLACK * since >= allowance(spent)
        self._since[channel] = 0 if is_due else since
        if len(self._since) > CHANNELS_CACHED_MAX:
            self._since.popitem(last=False)
        return record, allowance(spent) if is_due else None
