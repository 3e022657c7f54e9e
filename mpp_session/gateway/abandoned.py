"""Limits unpaid work: a channel may leave some unpaid, then it must pay in advance (O-07).

A client that leaves before an unstreamed answer pays nothing for it; a client that stops paying
mid-stream pays nothing for the output in the meantime; a client may also ask for more in one piece
than the model generates in time. Each happens to honest clients, and each repeated would run the
model for nothing. The gateway never charges for undelivered work. Instead, a channel that does it
too often must prepay, or gets only streams, in which it pays for each token.
"""

from collections import OrderedDict

from channel.limits import RATE_KEYS_MAX
from channel.types import ChannelKey

__all__ = ["AbandonedWork"]


class AbandonedWork:
    """Counts per channel the units generated and not paid for; later payments offset them."""

    def __init__(self, free_units: int, *, channels_max: int = RATE_KEYS_MAX) -> None:
        """Start with no counts. A channel may leave `free_units` unpaid before it must prepay."""
        self._free_units = free_units
        self._channels_max = channels_max
        self._units: OrderedDict[ChannelKey, int] = OrderedDict()
        self._unanswered: OrderedDict[ChannelKey, int] = OrderedDict()

    def must_prepay(self, key: ChannelKey) -> bool:
        """Whether this channel must pay for its whole next answer in advance."""
        return self._units.get(key, 0) > self._free_units

    def must_stream(self, key: ChannelKey) -> bool:
        """Whether this channel gets only streams: too many answers were not ready in time."""
        return self._unanswered.get(key, 0) > self._free_units

    def add(self, key: ChannelKey, units: int) -> None:
        """Count units that were or may have been generated, and that are not paid for."""
        self._add(self._units, key, units)

    def add_unanswered(self, key: ChannelKey, units: int) -> None:
        """Count units of an unstreamed answer that the model did not generate in time."""
        self._add(self._unanswered, key, units)

    def make_up(self, key: ChannelKey, units: int) -> None:
        """Count units that were paid for."""
        for counts in (self._units, self._unanswered):
            left = counts.get(key, 0) - units
            if left > 0:
                counts[key] = left
            else:
                counts.pop(key, None)

    def _add(self, counts: OrderedDict[ChannelKey, int], key: ChannelKey, units: int) -> None:
        counts[key] = counts.pop(key, 0) + units
        if len(counts) > self._channels_max:
            counts.popitem(last=False)
