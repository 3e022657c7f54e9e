"""How many bytes of answers are kept for repeats: by channel as much as it paid for, and in all.

An answer costs its payer what the route asks, and may be far longer than that is worth (O-10). So a
channel keeps its newest answers up to a bound that grows with `spent`; when it has stored a
quarter of that more, the oldest go. In all no more is stored than one bound, and pruning makes room
by the oldest of everybody. The key of an answer that went is kept: a repeat is told that its
outcome is unknown, and is not charged.

A process counts what it stores itself, and learns the rest when it prunes.
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
    """Return how many bytes of answers a channel may keep that has spent so much."""
    earned = STORED_BYTES_PER_CHANNEL_MIN + spent * STORED_BYTES_PER_BASE_UNIT
    return min(earned, STORED_BYTES_PER_CHANNEL_MAX)


def size_of(response: StoredResponse) -> int:
    """Return what an answer takes, nearly: its body, and its headers as they are."""
    return len(response.body) + sum(len(name) + len(value) for name, value in response.headers)


class AnswerBounds:
    """What this process has stored, and whose turn it is to forget."""

    def __init__(self) -> None:
        self.total = 0
        """Bytes stored in all, as far as is known."""
        self._since: OrderedDict[int, int] = OrderedDict()
        """Bytes stored since its oldest went, by a channel's row."""

    @property
    def surplus(self) -> int:
        """How many bytes pruning makes room of: down to three quarters of what may be stored."""
        return max(0, self.total - STORED_BYTES_MAX * (_SLACK - 1) // _SLACK)

    def take(
        self, channel: int, record: RequestRecord, *, spent: int
    ) -> tuple[RequestRecord, int | None]:
        """Count what is to be stored of a channel that has spent so much.

        Returns it, without its answer where that does not fit in any more, and the bytes that the
        channel keeps where its oldest answers have to go now. So they do with the first one that
        this process stores for it: nothing is known before.
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
