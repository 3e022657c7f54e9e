"""What a channel had made and left unpaid: free up to a bound, then paid for in advance (O-07).

A client that leaves before an answer in one piece is there pays nothing for it, and one that
stops paying in mid-stream nothing for what the model made meanwhile. Each is a matter of course
once, and a way to run the model for nothing when it is done again and again. So is asking for more
in one piece than the model makes while the gateway waits. That is no reason to charge anything: a
channel that did it too often is answered in streams, where each token is paid for as it comes.
"""

from collections import OrderedDict

from channel.limits import RATE_KEYS_MAX
from channel.types import ChannelKey

__all__ = ["AbandonedWork"]


class AbandonedWork:
    """Units that each channel had made and did not pay for; what it pays for makes up for it."""

    def __init__(self, free_units: int, *, channels_max: int = RATE_KEYS_MAX) -> None:
        """Begin with nothing. A channel may leave `free_units` before it must pay in advance."""
        self._free_units = free_units
        self._channels_max = channels_max
        self._units: OrderedDict[ChannelKey, int] = OrderedDict()
        self._unanswered: OrderedDict[ChannelKey, int] = OrderedDict()

    def must_prepay(self, key: ChannelKey) -> bool:
        """Say whether this channel pays for the whole of its next answer in advance."""
        return self._units.get(key, 0) > self._free_units

    def must_stream(self, key: ChannelKey) -> bool:
        """Say whether this channel gets no answers in one piece: too many did not come in time."""
        return self._unanswered.get(key, 0) > self._free_units

    def add(self, key: ChannelKey, units: int) -> None:
        """Count units that were made, or may have been, and that nobody pays for."""
        self._add(self._units, key, units)

    def add_unanswered(self, key: ChannelKey, units: int) -> None:
        """Count units of an answer in one piece that the model did not make in time."""
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
