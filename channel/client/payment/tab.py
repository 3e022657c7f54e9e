"""One channel's exact counts: what arrived, what is in flight, what may have been lost.

Every task of a client counts here, in the event loop, without an `await` in between. A unit is in
flight until it is received or lost, never neither and never both. The store is updated afterwards.
So the bound on a server's claim does not depend on which task runs first (F-94).

When requests share a channel, an honest claim may exceed the bound. Data under way cannot be
distinguished from data that never comes: a stream may have used what was signed for a concurrent
request. A claim may also be stale, because its request has ended. Such a claim is never signed and
never called a lie; the client asks again once the other requests have made progress.
"""

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from channel.client.store.record import ChannelRecord, count_lost
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    ChannelUnusableError,
    OverclaimError,
    UnsettledClaimError,
)
from channel.types import ChannelKey

__all__ = ["Hold", "Tab"]

SETTLE_S_MAX = 60.0
"""How long a claim waits for the other requests of its channel."""


class Hold:
    """What one request has in flight; released exactly once."""

    def __init__(self, *, cost: int, cost_max: int, is_stream: bool) -> None:
        self.cost = cost
        """First cost, in base units: the amount to sign before it is served."""
        self.cost_max = cost_max
        """The most it may cost before any of it is counted."""
        self.is_stream = is_stream
        self.is_released = False
        self.was_shared = False
        """Whether another request was in flight on the channel since this one was sent."""
        self.is_sent = False
        """Whether a credential was sent for it and its answer is not counted yet."""
        self.is_streaming = False
        """Whether its answer is a stream that has begun."""
        self.is_waiting = False
        """Whether it waits for the others, which then need not wait for it."""
        self._step = 0
        self._tab: Tab | None = None

    @property
    def tab(self) -> "Tab":
        """The counts of the channel that pays; it may end while the request continues."""
        if self._tab is None:
            raise ChannelUnusableError("The request has no channel yet.")
        return self._tab

    @property
    def key(self) -> ChannelKey:
        """The channel that pays for the request."""
        return self.tab.key

    @property
    def has_channel(self) -> bool:
        """Whether the paying channel is known."""
        return self._tab is not None

    def use(self, tab: "Tab") -> None:
        """Pay from this channel from now on."""
        if self._tab is tab or self.is_released:
            return
        if self._tab is not None:
            self._tab.remove(self)
        self._tab = tab
        tab.add(self)

    @property
    def step(self) -> int:
        """How far its vouchers may exceed the count, in base units."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = value
        if self._tab is not None:
            self._tab.step_max = max(self._tab.step_max, value)

    def begin_counting(self) -> None:
        """Stop being in flight: what arrives is counted from now on."""
        self.cost = self.cost_max = 0
        self.is_sent = False

    @property
    def is_alone(self) -> bool:
        """Whether nothing else is in flight on this channel."""
        return self.tab.holds <= {self}

    def release(self) -> None:
        """Release the hold."""
        self.is_released = True
        if self._tab is not None:
            self._tab.remove(self)


class Tab:
    """This process's counts of one channel, which no other process uses (see `locks`)."""

    def __init__(self, record: ChannelRecord) -> None:
        self.key = record.key
        self.holds: set[Hold] = set()
        self.step_max = 0
        """The greatest step since nothing was in flight. A server reserves ahead for a stream, so
        what it asks of requests during or just after that stream starts from there."""
        self.may_have_lost = record.signed > 0
        """Whether a request on this channel ended unseen, here or in an earlier process."""
        self._counts = record
        self._waiters: set[asyncio.Future[None]] = set()

    def view(self, record: ChannelRecord) -> ChannelRecord:
        """Return a stored channel with the current counts."""
        counts = self._counts
        return replace(
            record,
            received=counts.received,
            units=counts.units,
            lost=counts.lost,
            waived=counts.waived,
        )

    def change(self, change: Callable[[ChannelRecord], ChannelRecord]) -> None:
        """Change the counts immediately; `store` makes them durable."""
        before, self._counts = self._counts, change(self._counts)
        if self._counts != before:
            self._notify()

    def lose(self, value: int, *, lost_max: int) -> None:
        """Grant the possible cost of a request that ended unseen, within a bound."""
        self.may_have_lost = True
        self.change(lambda counts: count_lost(counts, value=value, lost_max=lost_max))

    async def store(
        self,
        store: PaymentStore,
        change: Callable[[ChannelRecord], ChannelRecord] = lambda current: current,
    ) -> ChannelRecord:
        """Store the current counts together with `change` of the channel, and return it.

        Every call writes everything that is not on disk yet, because an earlier write may have
        been cancelled in the store's queue before it began.

        Raises:
            StoreError: The store failed; the next call stores the counts.
            ReceiptViolationError: As raised by `change`.
        """
        counts = self._counts

        def carry(current: ChannelRecord) -> ChannelRecord:
            return replace(
                change(current),
                received=counts.received,
                units=counts.units,
                lost=counts.lost,
                waived=counts.waived,
            )

        return await store.update(self.key, carry)

    def note_signed(self, signed: int) -> None:
        """Update the signed amount, which the store has on disk."""
        self._counts = replace(self._counts, signed=max(signed, self._counts.signed))

    @property
    def counts(self) -> ChannelRecord:
        """The channel; only its counts and the signed amount are current."""
        return self._counts

    @property
    def signed(self) -> int:
        """Greatest amount ever signed."""
        return self._counts.signed

    @property
    def in_flight(self) -> int:
        """First costs of the requests that wait for an answer, in base units."""
        return sum(hold.cost for hold in self.holds)

    @property
    def allowance(self) -> int:
        """How far vouchers may exceed the count now: everything in flight and one step."""
        return sum(hold.cost_max for hold in self.holds) + self.step_max

    @property
    def ceiling(self) -> int:
        """The greatest amount that may be signed now."""
        return max(self._counts.claimable + self.allowance, self.signed)

    def require_claim(self, hold: Hold, claimed: int, *, unit_price: int, lost_max: int) -> None:
        """Check a server's claim against the counts, and grant what a broken request explains.

        If a request ended unseen, the server may have charged what never arrived. Then a claim
        counts as lost, up to what an honest server could reach and within `lost_max`. That is at
        most what the server holds already plus what this request may cost.

        Raises:
            OverclaimError: No honest server can demand so much.
            UnsettledClaimError: Concurrent or broken requests may have used it.
        """
        ceiling = self.ceiling
        if claimed <= ceiling:
            return
        is_possible = claimed <= self.signed + hold.cost_max + hold.step + unit_price
        lost = self._counts.lost
        if is_possible and self.may_have_lost and claimed - ceiling <= lost_max - lost:
            self.change(lambda counts: replace(counts, lost=lost + claimed - ceiling))
            return
        if is_possible and (self.may_have_lost or hold.was_shared):
            raise UnsettledClaimError(
                asked=claimed, allowed=ceiling, received=self._counts.received, lost=lost
            )
        raise OverclaimError(asked=claimed, allowed=ceiling, received=self._counts.claimable)

    async def settle(self, hold: Hold, claimed: int) -> bool:
        """Wait until a claim fits, or nothing else moves on the channel; return whether it fits.

        Raises:
            TimeoutError: Neither happened in time.
        """
        hold.is_waiting = True
        self._notify()
        try:
            async with asyncio.timeout(SETTLE_S_MAX):
                while claimed > self.ceiling and self._moves_beside(hold):
                    await self._changed()
        finally:
            hold.is_waiting = False
        return claimed <= self.ceiling

    def sent(self, hold: Hold) -> None:
        """Record that a request is sent: concurrent ones may affect its answer from now on."""
        hold.is_sent = True
        hold.was_shared = not hold.is_alone

    def add(self, hold: Hold) -> None:
        """Add a request in flight."""
        for other in self.holds:
            other.was_shared = hold.was_shared = True
        self.holds.add(hold)
        self.step_max = max(self.step_max, hold.step)

    def remove(self, hold: Hold) -> None:
        """Remove a request in flight."""
        self.holds.discard(hold)
        if not self.holds:
            self.step_max = 0
        self._notify()

    def _moves_beside(self, hold: Hold) -> bool:
        return any(not other.is_waiting for other in self.holds if other is not hold)

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
