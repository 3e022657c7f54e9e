"""Which channel a request is paid from, and what is on its way there (F-41).

A lane is one channel of one scope, opened when it is first needed. Requests share lane 0; a
channel carries one stream (ACC-06), so a second stream waits or takes a lane of its own.
"""

import asyncio
import time
from typing import Protocol

from channel.client.account import Scope
from channel.errors import ChannelBusyError, ChannelUnusableError
from channel.types import ChannelKey, SignedVoucher

__all__ = ["Counting", "Hold", "Lane", "Lanes"]

STREAM_WAIT_S_MAX = 60.0
NOTICED_S_MAX = 3.0
"""How long servers take to notice that nobody reads a stream any more: ours two seconds."""


class Counting(Protocol):
    """A stream that counts in memory what arrives."""

    async def store_count(self) -> None:
        """Store what was counted until now."""


class Lane:
    """One channel's place in this process. Money is in the purse, never here."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.lock = asyncio.Lock()
        """Held while a credential is made, a channel opened or topped up."""
        self.funding = asyncio.Lock()
        """Held while the channel is topped up, which vouchers need not wait for."""
        self.key: ChannelKey | None = None
        """None until a channel is found or opened."""
        self.is_checked = False
        """The channel was compared with the chain since this process started (CLIENT-05)."""
        self.has_stream = False
        self.counting: set[Counting] = set()
        """The streams that run on the channel."""
        self.streamed_at = -NOTICED_S_MAX
        """When the last one ended, by the monotonic clock."""
        self.holds: set[Hold] = set()
        self.step_max = 0
        """The greatest step since nothing was in flight. A server reserves ahead for a stream, and
        what it asks of the requests beside that stream, or just behind it, counts from there."""
        self.last_voucher: SignedVoucher | None = None

    @property
    def is_streaming(self) -> bool:
        """Whether a stream runs on the channel, or has ended a moment ago.

        The server may not have noticed yet, and have something reserved for it.
        """
        return bool(self.counting) or self.was_left

    @property
    def was_left(self) -> bool:
        """Whether a stream has ended a moment ago; see `is_streaming`."""
        return time.monotonic() - self.streamed_at < NOTICED_S_MAX

    @property
    def in_flight(self) -> int:
        """First costs of the requests that wait for an answer, in base units."""
        return sum(hold.cost for hold in self.holds)

    @property
    def in_flight_max(self) -> int:
        """The most those requests may cost."""
        return sum(hold.cost_max for hold in self.holds)

    async def store_counts(self) -> None:
        """Store what the streams of this channel have counted until now."""
        for stream in tuple(self.counting):
            await stream.store_count()

    def forget_channel(self) -> None:
        """Let the next payment find or open another channel."""
        self.key = None
        self.is_checked = False


class Hold:
    """What one request has on its way; released once, whatever happens."""

    def __init__(self, lane: Lane, *, cost: int, cost_max: int, is_stream: bool) -> None:
        self.lane = lane
        self.cost = cost
        self.cost_max = cost_max
        self.is_stream = is_stream
        self._step = 0
        self._key: ChannelKey | None = None

    @property
    def key(self) -> ChannelKey:
        """The channel that the request is paid from; it may end while the request goes on."""
        if self._key is None:
            raise ChannelUnusableError("The request has no channel yet.")
        return self._key

    def use(self, key: ChannelKey) -> None:
        """Pay from this channel from now on."""
        self._key = key

    @property
    def step(self) -> int:
        """How far its vouchers may run ahead of the count, in base units."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = value
        self.lane.step_max = max(self.lane.step_max, value)

    @property
    def is_alone(self) -> bool:
        """Nothing else of this channel is in flight."""
        return self.lane.holds <= {self}


class Lanes:
    """The lanes of every scope."""

    def __init__(self, *, streams_max: int, stream_wait_s: float = STREAM_WAIT_S_MAX) -> None:
        self._streams_max = streams_max
        self._stream_wait_s = stream_wait_s
        self._by_scope: dict[Scope, list[Lane]] = {}
        self._freed = asyncio.Event()

    async def enter(self, scope: Scope, *, cost: int, cost_max: int, is_stream: bool) -> Hold:
        """Return a hold on a lane; a stream waits, bounded, for one without a stream.

        Raises:
            ChannelBusyError: None became free in time.
        """
        lanes = self._by_scope.setdefault(scope, [Lane(scope)])
        if not is_stream:
            lane = lanes[0]
        else:
            lane = await self._free_lane(scope, lanes)
            lane.has_stream = True
        hold = Hold(lane, cost=cost, cost_max=cost_max, is_stream=is_stream)
        lane.holds.add(hold)
        return hold

    async def _free_lane(self, scope: Scope, lanes: list[Lane]) -> Lane:
        def free() -> Lane | None:
            lane = next((lane for lane in lanes if not lane.has_stream), None)
            if lane is None and len(lanes) < self._streams_max:
                lane = Lane(scope)
                lanes.append(lane)
            return lane

        try:
            async with asyncio.timeout(self._stream_wait_s):
                while (lane := free()) is None:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise ChannelBusyError(
                f"{scope.origin}: {len(lanes)} streams are running, and none ended within "
                f"{self._stream_wait_s:g} s; `parallel_streams_max` allows more channels."
            ) from None
        return lane

    def leave(self, hold: Hold) -> None:
        """Release a hold; a second time does nothing."""
        if hold not in hold.lane.holds:
            return
        hold.lane.holds.discard(hold)
        if not hold.lane.holds:
            hold.lane.step_max = 0
        if hold.is_stream:
            hold.lane.has_stream = False
            hold.lane.streamed_at = time.monotonic()
            self._freed.set()

    def is_busy(self, key: ChannelKey) -> bool:
        """Say whether anything of this channel is in flight."""
        return any(
            lane.key == key and lane.holds for lanes in self._by_scope.values() for lane in lanes
        )

    def taken(self, scope: Scope) -> set[ChannelKey]:
        """Return the channels that lanes of this scope use."""
        return {lane.key for lane in self._by_scope.get(scope, ()) if lane.key is not None}

    def forget(self, key: ChannelKey) -> None:
        """Let go of a channel that has ended."""
        for lanes in self._by_scope.values():
            for lane in lanes:
                if lane.key == key:
                    lane.forget_channel()
