"""One channel's account, exact at every moment: what was counted, what is in flight, what broke.

Every task of a client counts here, in the event loop, with no `await` in between: a unit is in
flight until it is received or lost, never neither and never both. The purse is brought up to date
behind it. So the bound that a server's claim is held against does not depend on which task runs
first (F-94).

A claim may be above the bound and honest all the same, where requests share a channel. Data that
is still on its way cannot be told from data that never comes: a stream may have used what was
signed for the request beside it. And a claim may be stale: what it was made for has ended since.
Such a claim is never signed and never called a lie; it is asked again once the rest has moved on.
"""

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from channel.client.store.record import Account, count_lost
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
    """What one request has on its way; released once, whatever happens."""

    def __init__(self, *, cost: int, cost_max: int, is_stream: bool) -> None:
        self.cost = cost
        """First cost, in base units: what must be signed before it is served."""
        self.cost_max = cost_max
        """The most it may cost before anything of it is counted."""
        self.is_stream = is_stream
        self.is_released = False
        self.was_shared = False
        """Another request was in flight on the channel since this one was sent."""
        self.is_sent = False
        """A credential went out for it, and what it was answered is not counted yet."""
        self.is_streaming = False
        """Its answer is a stream, and has begun."""
        self.is_waiting = False
        """It waits for the others; they need not wait for it."""
        self._step = 0
        self._tab: Tab | None = None

    @property
    def tab(self) -> "Tab":
        """The account of the channel it is paid from; that may end while the request goes on."""
        if self._tab is None:
            raise ChannelUnusableError("The request has no channel yet.")
        return self._tab

    @property
    def key(self) -> ChannelKey:
        """The channel that the request is paid from."""
        return self.tab.key

    @property
    def has_channel(self) -> bool:
        """Whether it is known which channel pays."""
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
        """How far its vouchers may run ahead of the count, in base units."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = value
        if self._tab is not None:
            self._tab.step_max = max(self._tab.step_max, value)

    def begin_counting(self) -> None:
        """Be in flight no more: what arrives is counted from now on."""
        self.cost = self.cost_max = 0
        self.is_sent = False

    @property
    def is_alone(self) -> bool:
        """Nothing else of this channel is in flight."""
        return self.tab.holds <= {self}

    def release(self) -> None:
        """Let go."""
        self.is_released = True
        if self._tab is not None:
            self._tab.remove(self)


class Tab:
    """What this process knows of one channel, which no other process uses (`claims`)."""

    def __init__(self, account: Account) -> None:
        self.key = account.key
        self.holds: set[Hold] = set()
        self.step_max = 0
        """The greatest step since nothing was in flight. A server reserves ahead for a stream, and
        what it asks of the requests beside that stream, or just behind it, counts from there."""
        self.may_have_lost = account.signed > 0
        """A request of this channel ended unseen: here, or in the process before this one."""
        self._counts = account
        self._waiters: set[asyncio.Future[None]] = set()

    def view(self, account: Account) -> Account:
        """Return a channel as it was stored, with the counts of this moment."""
        counts = self._counts
        return replace(
            account,
            received=counts.received,
            units=counts.units,
            lost=counts.lost,
            waived=counts.waived,
        )

    def change(self, change: Callable[[Account], Account]) -> None:
        """Count, at once; `store` writes it down."""
        before, self._counts = self._counts, change(self._counts)
        if self._counts != before:
            self._notify()

    def lose(self, value: int, *, lost_max: int) -> None:
        """Grant what a request that ended unseen may have cost, within a bound."""
        self.may_have_lost = True
        self.change(lambda counts: count_lost(counts, value=value, lost_max=lost_max))

    async def store(
        self, store: PaymentStore, change: Callable[[Account], Account] = lambda current: current
    ) -> Account:
        """Store the counts of this moment with what `change` makes of the channel, and return it.

        Every call writes what is not on disk yet: the write before it may have been cancelled in
        the purse's queue, and then never began.

        Raises:
            StoreError: The purse failed; the counts are stored with the next call.
            ReceiptViolationError: As `change`.
        """
        counts = self._counts

        def carry(current: Account) -> Account:
            return replace(
                change(current),
                received=counts.received,
                units=counts.units,
                lost=counts.lost,
                waived=counts.waived,
            )

        return await store.update(self.key, carry)

    def note_signed(self, signed: int) -> None:
        """Know what was signed, which the purse has on disk."""
        self._counts = replace(self._counts, signed=max(signed, self._counts.signed))

    @property
    def counts(self) -> Account:
        """The channel; only what it counts and what was signed is of this moment."""
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
        """How far vouchers may be ahead of the count now: all in flight and one step."""
        return sum(hold.cost_max for hold in self.holds) + self.step_max

    @property
    def ceiling(self) -> int:
        """The greatest amount that may be signed now."""
        return max(self._counts.claimable + self.allowance, self.signed)

    def require_claim(self, hold: Hold, claimed: int, *, unit_price: int, lost_max: int) -> None:
        """Hold what a server asks for against the account, and grant what a break explains.

        Where a request ended unseen the server may have charged what never arrived: then a claim
        is granted as lost, as far as an honest server could get, and within `lost_max`. That is at
        most what it holds already and what this request may cost.

        Raises:
            OverclaimError: No honest server can ask for so much.
            UnsettledClaimError: The requests beside this one, or that broke, may have used it.
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
        """Wait until a claim fits, or nothing else of the channel moves; say whether it fits.

        Raises:
            TimeoutError: Neither came.
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
        """Note that a request goes out: what is beside it from now on may be in its answer."""
        hold.is_sent = True
        hold.was_shared = not hold.is_alone

    def add(self, hold: Hold) -> None:
        """Have one more request in flight."""
        for other in self.holds:
            other.was_shared = hold.was_shared = True
        self.holds.add(hold)
        self.step_max = max(self.step_max, hold.step)

    def remove(self, hold: Hold) -> None:
        """Have one less in flight."""
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
