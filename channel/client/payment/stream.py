"""The payer's side of one paid stream: its count, its vouchers, its end.

Vouchers exceed the count by up to one step. When half of that is used, the next voucher is signed
and presented while the stream runs, so that the server need not stop and ask. A server that stops
anyway gets its answer before the stream is read further. A fast stream gets larger steps, and a low
deposit is topped up during the stream, before a voucher needs it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

import httpx

from channel.client.payment.channel_pool import ChannelPool
from channel.client.payment.receipts import ReceiptChecker
from channel.client.payment.request import PaidRequest
from channel.client.payment.vouchers import VoucherIssuer, VoucherWithDeposit
from channel.client.policy.decisions import SETTLE_TRIES_MAX, SETTLE_WAIT_S_STEP
from channel.client.policy.prices import worth
from channel.client.policy.rate import DeliveryRate
from channel.client.policy.usage import Counted
from channel.client.store.record import ChannelRecord, count_received, count_unread
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    MppSessionError,
    PaymentRefusedError,
    ReceiptViolationError,
    UnsettledClaimError,
    WireError,
)
from channel.tariff import Usage
from channel.wire.sse import NEED_VOUCHER_EVENT, parse_need_voucher

__all__ = ["PaidStream"]

IDLE_NEEDS_MAX = 3
SHARED_NEEDS_MAX = 32
"""The same when concurrent or broken requests may use what was signed for this stream."""

_log = logging.getLogger(__name__)


class PaidStream:
    """Counts each event as it arrives; stores the count before a voucher and at the end."""

    def __init__(
        self,
        *,
        store: PaymentStore,
        pool: ChannelPool,
        issuer: VoucherIssuer,
        receipts: ReceiptChecker,
        request: PaidRequest,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._store = store
        self._pool = pool
        self._issuer = issuer
        self._receipts = receipts
        self._request = request
        self._now = now
        self._sleep = sleep
        self._rate = DeliveryRate(now())
        self._unpaid = 0
        """What arrived since this stream's last voucher, in base units."""
        self._idle_needs = 0
        self._refill: asyncio.Task[None] | None = None
        self._funding: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._failure: MppSessionError | httpx.TransportError | None = None
        self._may_fund = True
        request.is_streaming = True
        request.is_sent = False  # `end` counts what was not read
        self.has_receipt = False
        """Whether the final receipt arrived and was possible."""

    def count(self, data: str, stated: Usage | int | None = None) -> None:
        """Count one event; see `RequestCost.take_event`.

        Raises:
            ReceiptViolationError: It states a kind that the offer does not price.
        """
        self._add(self._request.usage.take_event(data, stated))

    def count_measured(self, usage: Usage) -> None:
        """Count what this client measured by itself; kinds without a price cost nothing."""
        self._add(self._request.usage.take_measured(usage))

    @property
    def main_kind(self) -> str:
        """The kind that an event without a statement is counted as."""
        return self._request.usage.tariff.main.kind

    async def keep_up(self) -> None:
        """Wait for the voucher under way if more than a step is unpaid: it goes first."""
        if self._unpaid > self._request.step:
            await _finish(self._refill)

    def _add(self, counted: Counted | None) -> None:
        if counted is None:
            return
        value, units, delivered = counted
        self._request.begin_counting()
        self._request.tab.change(partial(count_received, value=value, units=units))
        self._end_settling()
        self._unpaid += value
        self._idle_needs = 0
        self._rate.add(delivered)
        if self._refill is None and self._is_running_low:
            self._refill = asyncio.create_task(self._pay_ahead())

    @property
    def _is_running_low(self) -> bool:
        request, amounts = self._request, self._request.amounts
        return 2 * self._unpaid > request.step and amounts.step_max > amounts.unit

    def _grow_step(self) -> None:
        """Adapt the step to the stream's rate; a step of 1 in the policy stays 1."""
        self._rate.measure(self._now())
        request, amounts = self._request, self._request.amounts
        wanted = min(self._rate.step, amounts.step_max)
        request.tab.grow_step(request, wanted)

    async def need_voucher(self, data: str) -> None:
        """Answer a server that waits for a voucher (SSE-01, CLIENT-07).

        Raises:
            OverclaimError: It demands more than it has delivered plus one step.
            PaymentRefusedError: It keeps asking without delivering, or refuses.
            ReceiptViolationError: Its event cannot be parsed.
        """
        request = self._request
        try:
            need = parse_need_voucher(data)
        except WireError as error:
            raise ReceiptViolationError(
                field=NEED_VOUCHER_EVENT, said=f"unreadable ({error})", expected="what is needed"
            ) from error
        if need.channel_id != request.tab.key.channel_id:
            return  # another channel's event does not concern this stream
        self._grow_step()
        paused_at = self._now()
        await _finish(self._refill)
        await request.tab.store(self._store)
        self._idle_needs += 1
        is_shared = request.was_shared or request.tab.may_have_lost
        idle_max = SHARED_NEEDS_MAX if is_shared else IDLE_NEEDS_MAX
        if self._idle_needs > idle_max:
            raise PaymentRefusedError(
                status=200,
                problem_type=NEED_VOUCHER_EVENT,
                detail=f"the server asked {idle_max} times and delivered nothing",
            )
        try:
            prepared = await self._prepare_voucher(claimed=need.required_cumulative)
        except UnsettledClaimError as claim:
            # Data that concurrent requests paid for may be under way, in this stream too.
            self._end_settling()
            self._settling = asyncio.create_task(self._settle(claim))
            return
        if prepared.deposit is None:
            await self._issuer.present_voucher(request, prepared)
        self._rate.leave_out(self._now() - paused_at)

    async def _settle(self, claim: UnsettledClaimError) -> None:
        """Answer a claim once it fits the counts, while the stream is read on.

        If the stream continues by itself, the claim is void.
        """
        request = self._request
        for attempt in range(1, SETTLE_TRIES_MAX + 1):
            try:
                await request.tab.settle(request, claim.asked)
                prepared = await self._prepare_voucher(claimed=claim.asked)
                if prepared.deposit is None:
                    await self._issuer.present_voucher(request, prepared)
            except UnsettledClaimError:
                await self._sleep(SETTLE_WAIT_S_STEP * attempt)
            except (MppSessionError, TimeoutError, httpx.TransportError) as error:
                self._failure = claim if isinstance(error, TimeoutError) else error
                return
            else:
                return
        self._failure = claim

    def _end_settling(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
            self._failure = None

    @property
    def settling(self) -> asyncio.Task[None] | None:
        """The task that waits until a claim can be answered or is refused; None without one."""
        return self._settling

    def require_settled(self) -> None:
        """Raise the error that ended a stream which waited for a voucher.

        Raises:
            MppSessionError: It demanded more than could be signed.
            httpx.TransportError: The voucher could not be presented.
        """
        if self._failure is not None:
            raise self._failure

    async def _prepare_voucher(
        self, *, claimed: int = 0, is_needed: bool = True
    ) -> VoucherWithDeposit:
        """Make a voucher; one with a deposit is presented before anything else is signed."""
        request = self._request
        async with request.slot.lock:
            unpaid = self._unpaid
            prepared = await self._issuer.make(request, claimed=claimed, is_needed=is_needed)
            if prepared.deposit is not None:
                await self._issuer.present_voucher(request, prepared)
        self._unpaid -= unpaid
        return prepared

    async def _pay_ahead(self) -> None:
        """Present a voucher before the server asks; errors are reported when it does ask.

        Nothing is deposited for it, because `needed` is what is already signed. If the stream uses
        half a step while a voucher is presented, the next one follows immediately: the server may
        have stopped by then, and nothing more would be counted.
        """
        request = self._request
        try:
            while self._is_running_low:
                self._grow_step()
                record = await request.tab.store(self._store)
                self._fund_ahead(record)
                prepared = await self._prepare_voucher(is_needed=False)
                if prepared.voucher.cumulative_amount > record.signed:
                    await self._issuer.present_voucher(request, prepared)
        except (MppSessionError, httpx.TransportError) as error:
            _log.debug("no voucher ahead: %s", type(error).__name__)
        finally:
            self._refill = None

    def _fund_ahead(self, record: ChannelRecord) -> None:
        """Top up during the stream if the deposit ends soon and the answer may not."""
        request, limits = self._request, self._request.limits
        if self._funding is not None or not self._may_fund:
            return
        lead = max(request.step, self._rate.lead)
        rest = worth(request.usage.tariff, request.usage.units_left)
        caps = (limits.deposit_max, limits.cumulative_max)
        goal = record.counted + min(lead, rest)
        goal = min(goal, *(cap for cap in caps if cap is not None))
        if goal > record.deposit:
            self._funding = asyncio.create_task(self._fund(goal))

    async def _fund(self, goal: int) -> None:
        try:
            await self._issuer.fund(self._request, goal)
        except (MppSessionError, httpx.TransportError) as error:
            self._may_fund = False  # retried when a voucher needs it
            _log.debug("no deposit ahead: %s", type(error).__name__)
        finally:
            self._funding = None

    async def take_receipt(self, data: str) -> None:
        """Accept the receipt at the end (SSE-04).

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        await self._receipts.end_stream(self._request, data)
        self.has_receipt = True

    async def end(self, *, is_broken: bool) -> None:
        """Count the rest and release the channel.

        What the caller left unread was delivered, up to one step and the input that was not stated.
        What a broken connection lost is granted within the policy's bound, because a server could
        break connections deliberately. Both apply only until the next receipt states what was
        spent.
        """
        request, tab = self._request, self._request.tab
        try:
            if not self.has_receipt:
                request.begin_counting()
                counts = tab.counts
                unread = request.step + request.usage.unseen
                unread = max(0, min(unread, counts.signed - counts.counted - tab.in_flight))
                if is_broken:
                    tab.lose(unread, lost_max=request.amounts.lost_max)
                else:
                    tab.may_have_lost = True
                    tab.change(partial(count_unread, value=unread))
            for task in (self._refill, self._funding, self._settling):
                if task is not None:
                    task.cancel()
                    await _finish(task)
            await tab.store(self._store)
        finally:
            self._pool.leave(request)


async def _finish(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        await asyncio.wait({task})
