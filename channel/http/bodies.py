"""Bounds the memory of request bodies: per channel, per address, and in total (O-24).

A body is read after the voucher is verified, but before anything is spent. Without a bound a payer
with a small deposit could fill the memory with requests that never end, or that wait for a slow
model (F-98, F-100).
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

    def room(self, channel_id: ChannelId | None, source: bytes) -> "BodyRoom":
        """Return the counter for one request's body.

        `channel_id` is None before a channel is proven; `source` is empty when unknown.
        """
        bounds: dict[tuple[bytes, bytes], int] = {}
        if channel_id is not None:
            bounds[b"channel", bytes(channel_id)] = BODIES_PER_CHANNEL_BYTES_MAX
        bounds[_ALL] = BODIES_BYTES_MAX
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
        """Count received bytes.

        Raises:
            TooManyRequestsError: The bound is reached; these bytes are not counted.
        """
        if not size:
            return
        for key, most in self._bounds.items():
            if self._held[key] + size > most:
                raise TooManyRequestsError(
                    f"Requests without an answer yet hold {most} bytes, the most that may be held "
                    f"{_WHOSE[key[0]]}. Wait for their answers."
                )
        for key in self._bounds:
            self._held[key] += size
        self._taken += size

    def release(self) -> None:
        """Stop counting these bytes; a second call does nothing."""
        taken, self._taken = self._taken, 0
        if not taken:
            return
        for key in self._bounds:
            self._held[key] -= taken
            if not self._held[key]:
                del self._held[key]


_WHOSE = {b"channel": "of one channel", b"source": "of one address", b"all": "in all"}
