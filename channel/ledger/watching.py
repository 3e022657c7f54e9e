"""The waiters of this process, by channel."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from channel.errors import LedgerUnavailableError
from channel.limits import WATCHES_MAX
from channel.types import ChannelKey

__all__ = ["Watcher", "Watchers"]


class Watcher:
    """One waiter on one channel: see `interface.Watch`."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float) -> bool:
        """Wait until the channel may have changed since the last call; False after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def wake(self) -> None:
        """Make the current or the next call of `changed` return."""
        self._changed.set()


class Watchers:
    """All waiters of a ledger, by channel. Bounded; an unwatched channel takes no memory."""

    def __init__(self) -> None:
        self._by_key: dict[ChannelKey | None, set[Watcher]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keys(self) -> list[ChannelKey]:
        """Return the watched channels."""
        return [key for key in self._by_key if key is not None]

    @asynccontextmanager
    async def watch(self, key: ChannelKey | None) -> AsyncIterator[Watcher]:
        """Register a waiter for the duration of the context; None for every channel.

        Raises:
            LedgerUnavailableError: There are `WATCHES_MAX` waiters already.
        """
        if self._count >= WATCHES_MAX:
            raise LedgerUnavailableError("Too many streams are waiting for vouchers.")
        watcher = Watcher()
        self._by_key.setdefault(key, set()).add(watcher)
        self._count += 1
        try:
            yield watcher
        finally:
            self._count -= 1
            watching = self._by_key[key]
            watching.discard(watcher)
            if not watching:
                del self._by_key[key]

    def wake(self, keys: Iterable[ChannelKey]) -> None:
        """Wake the waiters of these channels, and those of every channel."""
        if self._count:
            for key in (None, *keys):
                for watcher in self._by_key.get(key, ()):
                    watcher.wake()

    def wake_all(self) -> None:
        """Wake every waiter: another process wrote to an unknown channel."""
        for watching in self._by_key.values():
            for watcher in watching:
                watcher.wake()
