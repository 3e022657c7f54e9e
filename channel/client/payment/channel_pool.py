"""Assigns requests to channels (F-41), and counts exactly what is in flight on each (F-94).

A slot holds one channel of one scope, opened when first needed. Requests share slot 0. A channel
carries one stream (ACC-06), so a second stream waits or gets a further slot.

Every task of a client counts here, in the event loop, without an `await` in between. A unit is in
flight until it is received or lost, never neither and never both. The store is updated afterwards.
So the bound on a server's claim does not depend on which task runs first (F-94).

When requests share a channel, an honest claim may exceed the bound. Data under way cannot be
distinguished from data that never comes: a stream may have used what was signed for a concurrent
request. A claim may also be stale, because its request has ended. Such a claim is never signed and
never called a lie; the client asks again once the other requests have made progress.
"""

import asyncio
from collections.abc import Callable, Collection

from msgspec.structs import replace

from channel.client.payment.request import PaidRequest
from channel.client.policy.budget import Budget
from channel.client.policy.policy import Amounts, Offer, TokenLimits, require_deposit
from channel.client.store.record import ChannelRecord, Scope, choose_amount, count_lost
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelBusyError, OverclaimError, UnsettledClaimError
from channel.types import ChannelKey, SignedVoucher

__all__ = ["ChannelPool", "ChannelSlot", "Tab"]

SETTLE_S_MAX = 60.0
"""How long a claim waits for the other requests of its channel."""
STREAM_WAIT_S_MAX = 60.0


class Tab:
    """This process's counts of one channel, which no other process uses (see `locks`)."""

    def __init__(self, record: ChannelRecord) -> None:
        self.key = record.key
        self.counts = record
        """The channel; only its counts and the signed amount are current."""
        self.requests: set[PaidRequest] = set()
        """Requests in flight, and streams that run."""
        self.step_max = 0
        """The greatest step since nothing was in flight. A server reserves ahead for a stream, so
        what it asks of requests during or just after that stream starts from there."""
        self.may_have_lost = record.signed > 0
        """Whether a request on this channel ended unseen, here or in an earlier process."""
        self._waiters: set[asyncio.Future[None]] = set()

    def change(self, change: Callable[[ChannelRecord], ChannelRecord]) -> None:
        """Change the counts immediately; `store` makes them durable."""
        before, self.counts = self.counts, change(self.counts)
        if self.counts != before:
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
        counts = self.counts
        return await store.update(self.key, lambda current: _with(counts, change(current)))

    @property
    def in_flight(self) -> int:
        """First costs of the requests that wait for an answer, in base units."""
        return sum(request.cost for request in self.requests)

    @property
    def ahead(self) -> int:
        """What those may cost for input beside that."""
        return sum(request.ahead for request in self.requests)

    @property
    def allowance(self) -> int:
        """How far vouchers may exceed the count now: everything in flight and one step."""
        return sum(request.cost_max for request in self.requests) + self.step_max

    @property
    def ceiling(self) -> int:
        """The greatest amount that may be signed now."""
        return max(self.counts.claimable + self.allowance, self.counts.signed)

    def require(
        self, request: PaidRequest, stored: ChannelRecord, claimed: int, *, is_needed: bool
    ) -> tuple[ChannelRecord, int]:
        """Return the channel with the current counts, and what its next voucher must cover.

        That is what is counted and in flight, or `claimed` if that is more. Without an `await`: the
        counts and what is in flight must belong together.

        Raises:
            OverclaimError: No honest server can demand so much.
            UnsettledClaimError: Concurrent or broken requests may have used it.
        """
        self._require_claim(request, claimed)
        record = _with(self.counts, stored)
        base = max(record.counted, record.spent)
        needed = min(base + self.in_flight, self.ceiling) if is_needed else record.signed
        return record, max(needed, claimed)

    def _require_claim(self, request: PaidRequest, claimed: int) -> None:
        """Check a server's claim against the counts, and grant what a broken request explains.

        If a request ended unseen, the server may have charged what never arrived. Then a claim
        counts as lost, up to what an honest server could reach and within `lost_max`. That is at
        most what the server holds already plus what this request may cost.
        """
        ceiling, lost, amounts = self.ceiling, self.counts.lost, request.amounts
        if claimed <= ceiling:
            return
        reach = self.counts.signed + request.cost_max + request.step + amounts.unit
        is_possible = claimed <= reach
        if is_possible and self.may_have_lost and claimed - ceiling <= amounts.lost_max - lost:
            self.change(lambda counts: replace(counts, lost=lost + claimed - ceiling))
            return
        if is_possible and (self.may_have_lost or request.was_shared):
            raise UnsettledClaimError(
                asked=claimed, allowed=ceiling, received=self.counts.received, lost=lost
            )
        raise OverclaimError(asked=claimed, allowed=ceiling, received=self.counts.claimable)

    async def sign_for(
        self,
        request: PaidRequest,
        record: ChannelRecord,
        needed: int,
        *,
        deposit: int,
        store: PaymentStore,
        budget: Budget,
        now: float,
    ) -> ChannelRecord:
        """Make the amount of the next voucher durable, and return the channel with it.

        If the limits allow it, a stream's voucher includes one further step, and that of an answer
        in one piece its input. What `require` has checked is not checked again after a top-up.

        Raises:
            BudgetExceededError: It exceeds the policy's caps or the budgets.
        """
        limits, expectation = request.limits, request.expectation
        counts = _with(self.counts, record)
        allowance = max(self.allowance, needed - counts.claimable)
        cap = deposit if limits.cumulative_max is None else limits.cumulative_max
        is_stream = request.is_streaming or (expectation.is_stream and not expectation.is_guess)
        ahead = needed + self.ahead
        if is_stream:
            ahead = max(counts.counted, counts.spent) + self.allowance

        def choose(current: ChannelRecord, budget_left: int) -> int:
            amount = choose_amount(
                replace(counts, signed=current.signed, deposit=deposit),
                required=needed,
                ahead=min(ahead, cap, current.signed + budget_left),
                allowance=allowance,
                min_delta=request.offer.request.min_voucher_delta,
            )
            if amount > current.signed:
                require_deposit(limits, amount, current.origin)
            return amount

        context = request.context()
        record = await store.sign_for(self.key, choose, budget=budget, now=now, context=context)
        self.counts = replace(self.counts, signed=max(record.signed, self.counts.signed))
        return record

    async def settle(self, request: PaidRequest, claimed: int) -> bool:
        """Wait until a claim fits, or nothing else moves on the channel; return whether it fits.

        Raises:
            TimeoutError: Neither happened in time.
        """
        request.is_waiting = True
        self._notify()
        try:
            async with asyncio.timeout(SETTLE_S_MAX):
                while claimed > self.ceiling and any(
                    not other.is_waiting for other in self.requests - {request}
                ):
                    await self._changed()
        finally:
            request.is_waiting = False
        return claimed <= self.ceiling

    def note_sent(self, request: PaidRequest) -> None:
        """Record that a request is sent: concurrent ones may affect its answer from now on."""
        request.is_sent = True
        request.was_shared = not self.requests <= {request}

    def grow_step(self, request: PaidRequest, value: int) -> None:
        """Use larger steps for a request from now on; a smaller value changes nothing."""
        request.step = max(request.step, value)
        self.step_max = max(self.step_max, request.step)

    def add(self, request: PaidRequest) -> None:
        """Pay a request from this channel from now on."""
        if request.has_channel:
            if request.tab is self:
                return
            request.tab.remove(request)
        request.tab, request.has_channel = self, True
        for other in self.requests:
            other.was_shared = request.was_shared = True
        self.requests.add(request)
        self.step_max = max(self.step_max, request.step)

    def remove(self, request: PaidRequest) -> None:
        """Remove a request in flight."""
        self.requests.discard(request)
        if not self.requests:
            self.step_max = 0
        self._notify()

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


def _with(counts: ChannelRecord, record: ChannelRecord) -> ChannelRecord:
    """Return a stored channel with the current counts."""
    return replace(
        record,
        received=counts.received,
        units=counts.units,
        lost=counts.lost,
        waived=counts.waived,
    )


class ChannelSlot:
    """One channel in this process. Its counts are in the `Tab`, its record in the store."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.lock = asyncio.Lock()
        """Held while a credential is made, or a channel is opened or topped up."""
        self.funding = asyncio.Lock()
        """Held while the channel is topped up; vouchers do not wait for it."""
        self.tab: Tab | None = None
        """None until a channel is found or opened, and after it has ended."""
        self.is_checked = False
        """Whether the channel was compared with the chain since start-up (CLIENT-05)."""
        self.has_stream = False
        self.requests: set[PaidRequest] = set()
        """Requests in flight, and those that wait for their turn to sign."""
        self.last_voucher: SignedVoucher | None = None

    def forget_channel(self) -> None:
        """Make the next payment find or open another channel."""
        self.tab = None
        self.is_checked = False


class ChannelPool:
    """The slots of every scope."""

    def __init__(self, *, streams_max: int = 1, stream_wait_s: float = STREAM_WAIT_S_MAX) -> None:
        self._streams_max = streams_max
        self._stream_wait_s = stream_wait_s
        self._by_scope: dict[Scope, list[ChannelSlot]] = {}
        self._tabs: dict[ChannelKey, Tab] = {}
        self._freed = asyncio.Event()

    @property
    def scopes(self) -> Collection[Scope]:
        """The scopes of the requests in flight and of the channels in use."""
        return self._by_scope.keys()

    async def enter(
        self,
        request: PaidRequest,
        scope: Scope,
        offer: Offer,
        limits: TokenLimits,
        amounts: Amounts,
    ) -> None:
        """Put a request in a slot of this scope, under this offer; or leave it in its own.

        A stream waits, bounded, for a slot without a stream.

        Raises:
            ChannelBusyError: No slot became free in time.
        """
        if request.has_slot and request.slot.scope != scope:
            self.leave(request)
        is_new = not request.has_slot
        if is_new:
            if request.expectation.is_stream:
                slot = await self._free_slot(scope)
                slot.has_stream = True
            else:
                slot = self._slots(scope)[0]
            request.reset()
            request.slot, request.has_slot = slot, True
            request.source = scope.chain_id, scope.payer
            slot.requests.add(request)
        request.offer, request.limits, request.amounts = offer, limits, amounts
        request.challenge_ids.add(offer.challenge.id)
        request.cost, request.cost_max, request.step = amounts.cost, amounts.cost_max, amounts.step
        request.ahead = amounts.ahead - amounts.cost
        if is_new and request.slot.tab is not None:
            request.slot.tab.add(request)
        elif request.has_channel:
            request.tab.grow_step(request, amounts.step)

    def _slots(self, scope: Scope) -> list[ChannelSlot]:
        """Return the slots of a scope, of which there is at least one."""
        slots = self._by_scope.get(scope)
        if slots is None:
            slots = self._by_scope[scope] = [ChannelSlot(scope)]
        return slots

    def _drop_unused(self, scope: Scope) -> None:
        """Forget a scope that no request and no channel uses.

        Else a server that names another payee in each offer would fill the memory, although none of
        its offers is paid.
        """
        slots = self._by_scope.get(scope, ())
        if not any(slot.requests or slot.has_stream or slot.tab is not None for slot in slots):
            self._by_scope.pop(scope, None)

    async def _free_slot(self, scope: Scope) -> ChannelSlot:
        def free() -> ChannelSlot | None:
            slots = self._slots(scope)
            slot = next((slot for slot in slots if not slot.has_stream), None)
            if slot is None and len(slots) < self._streams_max:
                slot = ChannelSlot(scope)
                slots.append(slot)
            return slot

        try:
            async with asyncio.timeout(self._stream_wait_s):
                while (slot := free()) is None:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            count = len(self._slots(scope))
            raise ChannelBusyError(
                f"{scope.origin}: {count} streams are running, and none ended within "
                f"{self._stream_wait_s:g} s. Raise `parallel_streams_max` to allow more channels."
            ) from None
        return slot

    def leave(self, request: PaidRequest) -> None:
        """Take a request out of its slot; a second call does nothing."""
        if not request.has_slot:
            return
        request.has_slot = False
        request.slot.requests.discard(request)
        if request.has_channel:
            request.tab.remove(request)
        if request.expectation.is_stream:
            request.slot.has_stream = False
            self._freed.set()
        self._drop_unused(request.slot.scope)

    def tab(self, record: ChannelRecord) -> Tab:
        """Return this process's counts of a channel, initially from its record."""
        tab = self._tabs.get(record.key)
        if tab is None:
            tab = self._tabs[record.key] = Tab(record)
        return tab

    def use(self, request: PaidRequest, record: ChannelRecord) -> None:
        """Pay a request from a channel, and the requests behind it that have none, too."""
        tab = request.slot.tab = self.tab(record)
        tab.add(request)
        request.spent_before.setdefault(record.key, record.spent)
        for other in request.slot.requests:
            if not other.has_channel:
                tab.add(other)

    def is_busy(self, key: ChannelKey) -> bool:
        """Return whether a request is in flight on this channel."""
        return key in self._tabs and bool(self._tabs[key].requests)

    def taken(self, scope: Scope) -> set[ChannelKey]:
        """Return the channels that slots of this scope use."""
        tabs = (slot.tab for slot in self._by_scope.get(scope, ()))
        return {tab.key for tab in tabs if tab is not None}

    def forget(self, key: ChannelKey) -> None:
        """Drop a channel that has ended."""
        if not self.is_busy(key):
            self._tabs.pop(key, None)
        for scope, slots in [*self._by_scope.items()]:
            for slot in slots:
                if slot.tab is not None and slot.tab.key == key:
                    slot.forget_channel()
                    self._drop_unused(scope)
