"""What a channel had made and left unpaid: free up to a bound, then paid for in advance (O-07).

A client that leaves before an answer in one piece is there pays nothing for it, and one that
stops paying in mid-stream nothing for what the model made meanwhile. Each is a matter of course
once, and a way to run the model for nothing when it is done again and again.
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

    def must_prepay(self, key: ChannelKey) -> bool:
        """Say whether this channel pays for the whole of its next answer in advance."""
        return self._units.get(key, 0) > self._free_units

    def add(self, key: ChannelKey, units: int) -> None:
        """Count units that were made, or may have been, and that nobody pays for."""
        self._units[key] = self._units.pop(key, 0) + units
        if len(self._units) > self._channels_max:
            self._units.popitem(last=False)

    def make_up(self, key: ChannelKey, units: int) -> None:
        """Count units that were paid for."""
        left = self._units.get(key, 0) - units
        if left > 0:
            self._units[key] = left
        else:
            self._units.pop(key, None)
