"""How much of requests' bodies is held: of one channel, of one address, and in all (O-24).

It takes a proven voucher to get here, but none that is spent: without a bound a payer of little
could fill the memory with requests that never end, or that wait for a slow model (F-98, F-100).
"""

from collections import Counter

from channel.errors import TooManyRequestsError
from channel.limits import (
    BODIES_BYTES_MAX,
    BODIES_PER_CHANNEL_BYTES_MAX,
    BODIES_PER_SOURCE_BYTES_MAX,
)
from channel.types import ChannelId

__all__ = ["BodyBounds", "BodyRoom"]

_ALL = (b"all", b"")


class BodyBounds:
    """Counts the bytes of bodies whose answers have not begun."""

    def __init__(self) -> None:
        self._held: Counter[tuple[bytes, bytes]] = Counter()

    def room(self, channel_id: ChannelId, source: bytes) -> "BodyRoom":
        """Return what counts the bytes of one request; `source` is empty where it is unknown."""
        bounds = {
            (b"channel", bytes(channel_id)): BODIES_PER_CHANNEL_BYTES_MAX,
            _ALL: BODIES_BYTES_MAX,
        }
        if source:
            bounds[b"source", source] = BODIES_PER_SOURCE_BYTES_MAX
        return BodyRoom(self._held, bounds)


class BodyRoom:
    """The bytes of one request's body."""

    def __init__(
        self, held: Counter[tuple[bytes, bytes]], bounds: dict[tuple[bytes, bytes], int]
    ) -> None:
        self._held = held
        self._bounds = bounds
        self._taken = 0

    def take(self, size: int) -> None:
        """Count bytes that have come.

        Raises:
            TooManyRequestsError: As many are held as may be; these are not counted.
        """
        if not size:
            return
        for key, most in self._bounds.items():
            if self._held[key] + size > most:
                raise TooManyRequestsError(
                    f"Requests that are not answered yet hold {most} bytes, as many as may be "
                    f"held {_WHOSE[key[0]]}. Wait for their answers."
                )
        for key in self._bounds:
            self._held[key] += size
        self._taken += size

    def release(self) -> None:
        """Count them no more; a second time does nothing."""
        taken, self._taken = self._taken, 0
        if not taken:
            return
        for key in self._bounds:
            self._held[key] -= taken
            if not self._held[key]:
                del self._held[key]


_WHOSE = {b"channel": "of one channel", b"source": "of one address", b"all": "in all"}
