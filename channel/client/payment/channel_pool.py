"""Assigns requests to channels, and tracks what is in flight on each (F-41).

A slot holds one channel of one scope, opened when first needed. Requests share slot 0. A channel
carries one stream (ACC-06), so a second stream waits or gets a further slot.
"""

import asyncio

from channel.client.payment.tab import Hold, Tab
from channel.client.store.record import ChannelRecord, Scope
from channel.errors import ChannelBusyError
from channel.types import ChannelKey, SignedVoucher

__all__ = ["ChannelPool", "ChannelSlot"]

STREAM_WAIT_S_MAX = 60.0


class ChannelSlot:
    """One channel in this process. Its counts are in the `Tab`, its record in the store."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.lock = asyncio.Lock()
        """Held while a credential is made, or a channel is opened or topped up."""
        self.funding = asyncio.Lock()
        """Held while the channel is topped up; vouchers do not wait for it."""
        self.key: ChannelKey | None = None
        """None until a channel is found or opened."""
        self.is_checked = False
        """Whether the channel was compared with the chain since start-up (CLIENT-05)."""
        self.has_stream = False
        self.holds: set[Hold] = set()
        """Requests in flight, and those that wait for their turn to sign."""
        self.last_voucher: SignedVoucher | None = None

    def forget_channel(self) -> None:
        """Make the next payment find or open another channel."""
        self.key = None
        self.is_checked = False


class ChannelPool:
    """The slots of every scope."""

    def __init__(self, *, streams_max: int, stream_wait_s: float = STREAM_WAIT_S_MAX) -> None:
        self._streams_max = streams_max
        self._stream_wait_s = stream_wait_s
        self._by_scope: dict[Scope, list[ChannelSlot]] = {}
        self._tabs: dict[ChannelKey, Tab] = {}
        self._freed = asyncio.Event()

    async def enter(
        self, scope: Scope, *, cost: int, cost_max: int, is_stream: bool
    ) -> tuple[ChannelSlot, Hold]:
        """Return a hold on a slot. A stream waits, bounded, for a slot without a stream.

        Raises:
            ChannelBusyError: No slot became free in time.
        """
        pool = self._by_scope.setdefault(scope, [ChannelSlot(scope)])
        if not is_stream:
            slot = pool[0]
        else:
            slot = await self._free_slot(scope, pool)
            slot.has_stream = True
        hold = Hold(cost=cost, cost_max=cost_max, is_stream=is_stream)
        slot.holds.add(hold)
        tab = None if slot.key is None else self._tabs.get(slot.key)
        if tab is not None:
            hold.use(tab)
        return slot, hold

    async def _free_slot(self, scope: Scope, pool: list[ChannelSlot]) -> ChannelSlot:
        def free() -> ChannelSlot | None:
            slot = next((slot for slot in pool if not slot.has_stream), None)
            if slot is None and len(pool) < self._streams_max:
                slot = ChannelSlot(scope)
                pool.append(slot)
            return slot

        try:
            async with asyncio.timeout(self._stream_wait_s):
                while (slot := free()) is None:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise ChannelBusyError(
                f"{scope.origin}: {len(pool)} streams are running, and none ended within "
                f"{self._stream_wait_s:g} s. Raise `parallel_streams_max` to allow more channels."
            ) from None
        return slot

    def leave(self, slot: ChannelSlot, hold: Hold) -> None:
        """Release a hold and its slot; a second call does nothing."""
        if hold.is_released:
            return
        hold.release()
        slot.holds.discard(hold)
        if hold.is_stream:
            slot.has_stream = False
            self._freed.set()

    def tab(self, record: ChannelRecord) -> Tab:
        """Return this process's counts of a channel, initially from its record."""
        tab = self._tabs.get(record.key)
        if tab is None:
            tab = self._tabs[record.key] = Tab(record)
        return tab

    def use(self, slot: ChannelSlot, hold: Hold, record: ChannelRecord) -> None:
        """Pay a request from a channel, and the requests behind it that have none, too."""
        slot.key = record.key
        tab = self.tab(record)
        hold.use(tab)
        for other in slot.holds:
            if not other.has_channel:
                other.use(tab)

    def find_tab(self, key: ChannelKey) -> Tab | None:
        """Return the counts of a channel, if this process has them."""
        return self._tabs.get(key)

    def is_busy(self, key: ChannelKey) -> bool:
        """Return whether a request is in flight on this channel."""
        return key in self._tabs and bool(self._tabs[key].holds)

    def taken(self, scope: Scope) -> set[ChannelKey]:
        """Return the channels that slots of this scope use."""
        return {slot.key for slot in self._by_scope.get(scope, ()) if slot.key is not None}

    def forget(self, key: ChannelKey) -> None:
        """Drop a channel that has ended."""
        if not self.is_busy(key):
            self._tabs.pop(key, None)
        for pool in self._by_scope.values():
            for slot in pool:
                if slot.key == key:
                    slot.forget_channel()
