"""The owner's side of the reservation of one running request or stream (decision 8).

The reserved amount is durable before anything is sent. This module counts in memory what was sent
and what that costs under the tariff; the cost becomes `spent` with the next step or at the end. A
process that dies in between loses that count: then a stream's whole reservation becomes spent, and
a request's is released. Neither can exceed what was reserved.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import cached_property, lru_cache
from typing import Any

import msgspec

from channel.engine.admission import Admission
from channel.engine.lease_renewer import LeaseRenewer
from channel.engine.outcome import Hold, Outcome
from channel.errors import (
    InsufficientBalanceError,
    LedgerUnavailableError,
    ProblemError,
    ReservationEndedError,
    StreamReplacedError,
)
from channel.ledger.interface import ForgetRequest, Ledger, RequestUpdate, StoreResponse, Watch
from channel.limits import AMOUNT_MAX
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.charges import ChargeEnd, ChargeOutcome, clean_text
from channel.state.commands import Command, Extend, Release, Reserve, Spend, StreamPolicy
from channel.state.requests import StoredResponse
from channel.state.transitions import required_cumulative
from channel.tariff import RunningCost, Tariff, Usage
from channel.tasks import Tasks

__all__ = ["RunningReservation", "held_amount", "least_amount", "main_cost", "step_amount"]


_log = logging.getLogger(__name__)


def held_amount(state: ChannelState, reservation_id: bytes) -> int:
    """Return what a reservation holds, in base units; 0 when it has ended."""
    held = state.find_reservation(reservation_id)
    return 0 if held is None else held.amount


@lru_cache(maxsize=1024)
def main_cost(tariff: Tariff, units: int) -> int:
    """Return what a request costs that uses so many units of the main kind."""
    return tariff.cost({tariff.main.kind: units})


def least_amount(tariff: Tariff) -> int:
    """Return what a request costs that uses one unit of the main kind."""
    return main_cost(tariff, 1)


def step_amount(tariff: Tariff, units: int) -> int:
    """Return a step ahead: what `units` of the main kind cost, at least one base unit."""
    price = -(-units * tariff.main.amount // tariff.main.per)
    return price if tariff.maximum is None else min(price, tariff.maximum)


class _Doubt(msgspec.Struct, frozen=True):
    """A change with an unknown outcome (see `interface.Ledger`)."""

    spent: RunningCost | None
    """What it would have made `spent`; None when it spends nothing."""
    lease_expires_at: int
    """The lease it would have written; no other change of this reservation writes the same."""


class RunningReservation:
    """One reservation and its owner's count. One task uses it; any task may call `stop`.

    Every change, with its count, runs to its end as a separate task, so a cancelled owner never
    leaves count and ledger apart (F-42). Changes run one at a time. If the database was lost during
    a change, the next change checks whether it was made, so nothing is spent twice.
    """

    def __init__(  # noqa: PLR0913 -- the parts of the engine that it uses, by name
        self,
        *,
        outcome: Outcome,
        hold: Hold,
        tariff: Tariff,
        min_voucher_delta: int,
        step_units: int,
        ledger: Ledger,
        renewer: LeaseRenewer,
        background: Tasks,
        admission: Admission,
    ) -> None:
        self.key = outcome.state.key
        self.state = outcome.state
        """The channel as last read from disk."""
        self.is_finished = False
        self.stopped_by: ProblemError | None = None
        """Why the stream must end; None while it may continue."""
        self.on_spent: Callable[[RunningReservation, int, int], None] | None = None
        """Called with each amount that became `spent`, and the request's cost up to then."""
        self.outcome = ChargeOutcome.DONE
        """For the accounts: how the request ends. Set it before `finish`."""
        self.response_id = ""
        """For the accounts: the id that the answer states. Set it before `finish`."""
        self.id = self._id = hold.reservation_id
        """Names this request: one reservation is made for each."""
        self.tariff = tariff
        """What it costs, by the challenge that it was paid under."""
        self._note = hold.note
        self._claim = outcome.claim
        self._cost = RunningCost(tariff)
        """What this request has sent so far."""
        self._durable = self._cost.copy()
        """How much of it is `spent`."""
        self.main_kind = tariff.main.kind
        """The kind that a plain number of units is of."""
        self._min_voucher_delta = min_voucher_delta
        self._step_amount = step_amount(tariff, step_units)
        self._ledger = ledger
        self._renewer = renewer
        self._background = background
        self._admission = admission
        held = outcome.state.find_reservation(hold.reservation_id)
        self._lease_expires_at = 0 if held is None else held.lease_expires_at
        self._room = 0 if held is None else held.amount
        """What counts as about to be owed and is not `spent` yet."""
        self._kind = ReservationKind.REQUEST
        self._is_emitting = False  # until then counted units can be given back
        self._held = self._room
        self._taken = 0  # the cost of what is sent and not yet `spent`; never more than _held
        self.covered_units = 0
        """Units of the main kind that a stream may send without asking the ledger."""
        self._changing: asyncio.Task[ProblemError | None] | None = None
        self._may_prefetch = True
        self._doubt: _Doubt | None = None
        renewer.keep(self.key, self._id, self._lease_expires_at)

    @cached_property
    def stopped(self) -> asyncio.Event:
        """Set once the stream must end. Created for streams only: a request never reads it."""
        stopped = asyncio.Event()
        if self.stopped_by is not None:
            stopped.set()
        return stopped

    @cached_property
    def _turn(self) -> asyncio.Lock:
        return asyncio.Lock()

    @property
    def has_claim(self) -> bool:
        """Whether the request has an idempotency key."""
        return self._claim is not None

    @property
    def usage(self) -> Usage:
        """What this request has sent so far, in units by kind."""
        return self._cost.usage

    @property
    def units(self) -> int:
        """Units of the tariff's main kind that this request has sent so far."""
        return self._cost.main_units

    @property
    def cost(self) -> int:
        """What this request has cost so far, in base units."""
        return self._cost.charged

    @property
    def covered(self) -> int:
        """The amount that may be sent without asking the ledger."""
        return self._held - self._taken

    def price_of(self, usage: Usage | int) -> int:
        """Return what it costs to send this, too, in base units; a number is of the main kind.

        Raises:
            ConfigError: The tariff has no rate for a kind.
        """
        return self._cost.price_of({self.main_kind: usage} if isinstance(usage, int) else usage)

    def watch(self) -> AbstractAsyncContextManager[Watch]:
        """Watch the channel, to wait for a voucher on another connection."""
        return self._ledger.watch(self.key)

    def stop(self, reason: ProblemError) -> None:
        """Make the stream end; the first reason counts."""
        if self.stopped_by is None:
            self.stopped_by = reason
        self.stopped.set()

    async def start_stream(self, policy: StreamPolicy, *, is_emitting: bool = True) -> None:
        """Turn the request's reservation into a stream's, in one transaction.

        From here on the owner's death makes the reservation spent, because it may have been sent.
        By policy the channel's other streams must end (ACC-06). A stream that has not sent
        anything can give back what it counted until it is flushed.

        Raises:
            ProblemError: The channel may not serve a stream now; nothing is reserved any more.
        """
        if self._kind is ReservationKind.STREAM:
            return
        refusal = await self._change(self._restart(policy))
        if refusal is not None:
            raise refusal
        self._kind = ReservationKind.STREAM
        self._is_emitting = self._is_emitting or is_emitting
        self._renewer.keep_stream(self.key, self._id, self._lease_expires_at, self.stop)
        if policy is StreamPolicy.REPLACE:
            replaced = StreamReplacedError("A newer stream on this channel replaced this one.")
            self._renewer.stop_streams(self.key, replaced, spare=self._id)

    async def cover(self, amount: int) -> None:
        """Return once `amount` more is reserved durably.

        Raises:
            InsufficientBalanceError: It is not paid for; it names the voucher that would do.
            PeerError: The channel ends, or a newer stream replaced this one.
            OperatorError: It could not be made durable.
        """
        while self.covered < amount:
            if self.stopped_by is not None:
                raise self.stopped_by
            if self._changing is not None and not self._changing.done():
                await asyncio.shield(self._changing)  # a prefetch is running
                continue
            refusal = await self._change(self._fill(amount))
            if self.covered >= amount:
                return
            if refusal is None or isinstance(refusal, InsufficientBalanceError):
                raise self._shortfall(amount)
            raise refusal

    def take(self, usage: Usage | int) -> None:
        """Count this as sent; a number is of the main kind.

        Its price must be covered, with no `await` in between.
        """
        cost = self._cost
        if isinstance(usage, int):
            self._taken = taken = self._taken + cost.add_main(usage)
            self.covered_units -= usage
        else:
            self._taken = taken = self._taken + cost.add(usage)
            self.covered_units = cost.main_within(self._held - taken)
        if (
            (self._held - taken) * 4 <= self._step_amount
            and self._may_prefetch
            and self._kind is ReservationKind.STREAM
            and not self._is_changing
            and self._held - taken < cost.left
        ):
            self._begin(self._fill(0))

    def give_back(self) -> None:
        """Undo the counting of what is not durable: it was not sent (F-48)."""
        self._cost = self._durable.copy()
        self._taken = 0
        self.covered_units = self._cost.main_within(self._held)

    async def flush(self) -> ChannelState:
        """Make everything sent so far `spent`, and continue.

        Raises:
            ReservationEndedError: The reservation has ended; send nothing more for it.
        """
        self._is_emitting = True
        if self._taken and not self.is_finished:
            refusal = await self._change(self._spend())
            if refusal is not None:
                raise refusal
        return self.state

    async def finish(self, response: StoredResponse | None = None) -> ChannelState:
        """Make everything sent `spent`, release the rest, and finish the idempotency key.

        From now on the key repeats `response`. Without a response, a key for which nothing was
        sent is free again. Runs to its end even if the caller is cancelled.

        Raises:
            ReservationEndedError: A request's reservation has ended: do not send the answer.
            LedgerUnavailableError: Not durable. A request's reservation and key are released once
                the ledger answers; a stream's reservation ends with its lease.
        """
        if not self.is_finished:
            self.is_finished = True
            change = self._finish(response)
            # A request's only change needs no task: a queued change is made even if cancelled.
            try:
                refusal = await (change if self._changing is None else self._change(change))
            except LedgerUnavailableError:
                if self._kind is ReservationKind.REQUEST:
                    self._renewer.let_go(self.key, self._id, self._claim)
                raise
            if refusal is not None and self._kind is ReservationKind.REQUEST:
                raise refusal
            if refusal is None and self.usage and _log.isEnabledFor(logging.INFO):
                _log.info(
                    "sold on channel 0x%s...: %s, %d base units",
                    self.key.channel_id[:4].hex(),  # a whole id in a log names its payer
                    " ".join(f"{kind}={units}" for kind, units in self.usage.items()),
                    self.cost,
                )
        return self.state

    @property
    def _is_changing(self) -> bool:
        return self._changing is not None and not self._changing.done()

    async def _change(
        self, change: Coroutine[Any, Any, ProblemError | None]
    ) -> ProblemError | None:
        return await asyncio.shield(self._begin(change))

    def _begin(
        self, change: Coroutine[Any, Any, ProblemError | None]
    ) -> "asyncio.Task[ProblemError | None]":
        self._changing = self._background.start(self._in_turn(change))
        return self._changing

    async def _in_turn(
        self, change: Coroutine[Any, Any, ProblemError | None]
    ) -> ProblemError | None:
        async with self._turn:
            try:
                await self._resolve_doubt()
            except BaseException:
                change.close()
                raise
            return await change

    async def _restart(self, policy: StreamPolicy) -> ProblemError | None:
        least = self.price_of(1)
        # What the handler held stays held: its work may have begun.
        step = self._ahead(max(least, self._held))
        refusal = self._take_room(step)
        if refusal is None:
            refusal = await self._apply(
                Reserve(
                    reservation_id=self._id,
                    kind=ReservationKind.STREAM,
                    amount_min=least,
                    amount_max=step,
                    presented=AMOUNT_MAX,  # the voucher was checked when the request came
                    min_voucher_delta=self._min_voucher_delta,
                    lease_expires_at=self._renewer.lease(self._id),
                    stream_policy=policy,
                    note=self._note,
                    replaces=True,
                )
            )
        if refusal is not None:
            await self._apply(Release(self._id))
        return refusal

    def _ahead(self, amount: int) -> int:
        """Return what to reserve: a step or more, never above the tariff's maximum."""
        return max(amount, min(self._step_amount, self._cost.left))

    async def _fill(self, amount: int) -> ProblemError | None:
        """Spend what was sent and reserve the next step, at least `amount`, in one transaction.

        What was counted for an answer that has not begun stays reserved in addition: all of it is
        given back if the answer fails (F-48).
        """
        kept = 0 if self._is_emitting else self._taken
        ahead = self._ahead(amount)
        refusal = self._take_room(ahead)
        if refusal is not None:
            self._may_prefetch = False
            return refusal
        refusal = await self._apply(
            Extend(
                reservation_id=self._id,
                amount_min=amount + kept,
                amount_max=ahead + kept,
                min_voucher_delta=self._min_voucher_delta,
                lease_expires_at=self._renewer.lease(self._id),
            ),
            is_spending=self._is_emitting,
        )
        # After a short step the next would be short, too: prefetch no more until it is used up.
        self._may_prefetch = self._held >= ahead
        return refusal

    async def _spend(self) -> ProblemError | None:
        return await self._apply()

    async def _finish(self, response: StoredResponse | None) -> ProblemError | None:
        # Durable after this: `spent` covers everything sent, and nothing is reserved.
        self._renewer.drop(self._id)
        end = ChargeEnd(self.outcome, dict(self.usage), clean_text(self.response_id))
        return await self._apply(Release(self._id, end), request=self._request_update(response))

    async def _apply(
        self,
        *commands: Command,
        request: RequestUpdate | None = None,
        is_spending: bool = True,
    ) -> ProblemError | None:
        """Spend what was counted so far and run `commands`, in one transaction."""
        spent = self._cost.copy() if is_spending and self._taken else None
        spend = [Spend(self._id, self._taken)] if spent is not None else []
        try:
            applied = await self._ledger.apply(self.key, [*spend, *commands], request=request)
        except LedgerUnavailableError:
            leases = [one.lease_expires_at for one in commands if isinstance(one, Extend)]
            self._doubt = _Doubt(spent, max(leases, default=0))
            raise
        self._take_over(
            applied.state,
            spent,
            has_ended=isinstance(applied.refusal, ReservationEndedError),
        )
        return applied.refusal

    async def _resolve_doubt(self) -> None:
        """Find out whether the previous change was made, if its outcome is unknown.

        The reserved amount shows it, because only the owner's changes alter it, or the lease. When
        neither does, for example after a renewal, the change counts as not made. Then everything
        sent is charged in any case, and less than a step is charged twice.
        """
        doubt = self._doubt
        if doubt is None:
            return
        state = (await self._ledger.apply(self.key, [])).state
        self._doubt = None
        held = state.find_reservation(self._id)
        was_made = held is not None and (
            held.amount != self._held or held.lease_expires_at == doubt.lease_expires_at
        )
        self._take_over(state, doubt.spent if was_made else None, has_ended=held is None)

    def _take_over(
        self, state: ChannelState, spent: RunningCost | None, *, has_ended: bool
    ) -> None:
        """Update the counts from the ledger's state after a change."""
        self.state = state
        before = self._durable.charged
        if spent is not None:  # what was given back meanwhile is paid for if it is sent again
            self._durable = spent if spent.charged <= self._cost.charged else self._cost.copy()
            self._taken = self._cost.charged - self._durable.charged
        held = state.find_reservation(self._id)
        amount = 0 if held is None else held.amount
        self._held = amount
        self.covered_units = 0 if held is None else self._cost.main_within(amount - self._taken)
        if not has_ended:  # an ended reservation may be spent
            self._admission.give_back(self._room - (self._durable.charged - before) - amount)
        self._room = amount
        if held is not None:
            self._lease_expires_at = held.lease_expires_at
            self._renewer.renewed(self._id, held.lease_expires_at)
        if spent is not None and self.on_spent is not None:
            self.on_spent(self, spent.charged - before, spent.charged)

    def _take_room(self, amount: int) -> ProblemError | None:
        """Count what is about to be owed: `amount` reserved in addition to what was sent."""
        missing = amount + self._taken - self._room
        if missing <= 0:
            return None
        try:
            self._admission.take_room(missing)
        except ProblemError as refusal:
            return refusal
        self._room += missing
        return None

    def _request_update(self, response: StoredResponse | None) -> RequestUpdate | None:
        claim = self._claim
        if claim is None:
            return None
        if response is not None:
            return StoreResponse(claim, response)
        return None if self.usage else ForgetRequest(claim)

    def _shortfall(self, amount: int) -> InsufficientBalanceError:
        state = self.state
        missing = amount - self.covered
        return InsufficientBalanceError(
            required_cumulative=required_cumulative(state, missing, self._min_voucher_delta),
            accepted=state.accepted,
            spent=state.spent,
            deposit=state.deposit,
        )
