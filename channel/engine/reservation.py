"""The owner's side of the reservation of one running request or stream (decision 8).

The reserved amount is durable before a unit is sent. This module counts in memory which units were
sent; the count becomes `spent` with the next step or at the end. A process that dies in between
loses that count: then a stream's whole reservation becomes spent, and a request's is released.
Neither can exceed what was reserved.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import Any

import msgspec

from channel.engine.admission import Admission
from channel.engine.background import Background
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
from channel.state.commands import Command, Extend, Release, Reserve, Spend, StreamPolicy
from channel.state.requests import StoredResponse
from channel.state.transitions import required_cumulative

__all__ = ["RunningReservation", "held_amount"]


_log = logging.getLogger(__name__)


def held_amount(state: ChannelState, reservation_id: bytes) -> int:
    """Return what a reservation holds, in base units; 0 when it has ended."""
    held = state.find_reservation(reservation_id)
    return 0 if held is None else held.amount


class _Doubt(msgspec.Struct, frozen=True):
    """A change with an unknown outcome (see `interface.Ledger`)."""

    spent_units: int
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
        unit_price: int,
        min_voucher_delta: int,
        step_units: int,
        ledger: Ledger,
        renewer: LeaseRenewer,
        background: Background,
        admission: Admission,
    ) -> None:
        self.key = outcome.state.key
        self.state = outcome.state
        """The channel as last read from disk."""
        self.units = 0
        """Units that this request has sent so far."""
        self.is_finished = False
        self.stopped_by: ProblemError | None = None
        """Why the stream must end; None while it may continue."""
        self._id = hold.reservation_id
        self._claim = outcome.claim
        self._unit_price = unit_price
        self._min_voucher_delta = min_voucher_delta
        self._step_units = step_units
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
        self._held_units = self._room // unit_price
        self._taken_units = 0  # sent and not yet `spent`; never more than _held_units
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
    def covered_units(self) -> int:
        """Units that may be sent without asking the ledger."""
        return self._held_units - self._taken_units

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

    async def cover(self, units: int) -> None:
        """Return once `units` more are reserved durably.

        Raises:
            InsufficientBalanceError: They are not paid for; it names the voucher that would do.
            PeerError: The channel ends, or a newer stream replaced this one.
            OperatorError: It could not be made durable.
        """
        while self.covered_units < units:
            if self.stopped_by is not None:
                raise self.stopped_by
            if self._changing is not None and not self._changing.done():
                await asyncio.shield(self._changing)  # a prefetch is running
                continue
            refusal = await self._change(self._fill(max(self._step_units, units)))
            if self.covered_units >= units:
                return
            if refusal is None or isinstance(refusal, InsufficientBalanceError):
                raise self._shortfall(units)
            raise refusal

    def take(self, units: int) -> None:
        """Count units as sent. They must be covered, with no `await` in between."""
        self._taken_units = taken = self._taken_units + units
        self.units += units
        if (
            (self._held_units - taken) * 4 <= self._step_units
            and self._may_prefetch
            and self._kind is ReservationKind.STREAM
            and not self._is_changing
        ):
            self._begin(self._fill(self._step_units))

    def give_back(self) -> None:
        """Undo the counting of units that are not durable: they were not sent (F-48)."""
        self.units -= self._taken_units
        self._taken_units = 0

    async def flush(self) -> ChannelState:
        """Make everything sent so far `spent`, and continue.

        Raises:
            ReservationEndedError: The reservation has ended; send nothing more for it.
        """
        self._is_emitting = True
        if self._taken_units and not self.is_finished:
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
            if refusal is None and self.units:
                _log.info(
                    "sold on channel 0x%s...: %d units, %d base units",
                    self.key.channel_id[:4].hex(),  # a whole id in a log names its payer
                    self.units,
                    self.units * self._unit_price,
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
        refusal = self._take_room(self._step_units)
        if refusal is not None:
            await self._apply(Release(self._id))
            return refusal
        return await self._apply(
            Release(self._id),
            Reserve(
                reservation_id=self._id,
                kind=ReservationKind.STREAM,
                unit_price=self._unit_price,
                units_min=1,
                units_max=self._step_units,
                presented=AMOUNT_MAX,  # the voucher was checked when the request came
                min_voucher_delta=self._min_voucher_delta,
                lease_expires_at=self._renewer.lease(self._id),
                stream_policy=policy,
            ),
        )

    async def _fill(self, units_max: int) -> ProblemError | None:
        """Spend what was sent and reserve the next step, in one transaction.

        Units counted for an answer that has not begun stay reserved in addition: all of them are
        given back if the answer fails (F-48).
        """
        is_emitting = self._is_emitting
        refusal = self._take_room(units_max)
        if refusal is not None:
            self._may_prefetch = False
            return refusal
        refusal = await self._apply(
            Extend(
                reservation_id=self._id,
                unit_price=self._unit_price,
                units_max=units_max if is_emitting else units_max + self._taken_units,
                min_voucher_delta=self._min_voucher_delta,
                lease_expires_at=self._renewer.lease(self._id),
            ),
            is_spending=is_emitting,
        )
        # After a short step the next would be short, too: prefetch no more until it is used up.
        self._may_prefetch = self._held_units >= self._step_units
        return refusal

    async def _spend(self) -> ProblemError | None:
        return await self._apply()

    async def _finish(self, response: StoredResponse | None) -> ProblemError | None:
        # Durable after this: `spent` covers everything sent, and nothing is reserved.
        self._renewer.drop(self._id)
        return await self._apply(Release(self._id), request=self._request_update(response))

    async def _apply(
        self,
        *commands: Command,
        request: RequestUpdate | None = None,
        is_spending: bool = True,
    ) -> ProblemError | None:
        """Spend what was counted so far and run `commands`, in one transaction."""
        taken = self._taken_units if is_spending else 0
        spend = [Spend(self._id, taken * self._unit_price)] if taken else []
        try:
            applied = await self._ledger.apply(self.key, [*spend, *commands], request=request)
        except LedgerUnavailableError:
            leases = [one.lease_expires_at for one in commands if isinstance(one, Extend)]
            self._doubt = _Doubt(taken, max(leases, default=0))
            raise
        self._take_over(
            applied.state,
            taken,
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
            held.amount != self._held_units * self._unit_price
            or held.lease_expires_at == doubt.lease_expires_at
        )
        spent = min(doubt.spent_units, self._taken_units) if was_made else 0
        self._take_over(state, spent, has_ended=held is None)

    def _take_over(self, state: ChannelState, spent_units: int, *, has_ended: bool) -> None:
        """Update the counts from the ledger's state after a change."""
        self.state = state
        self._taken_units -= spent_units
        held = state.find_reservation(self._id)
        amount = 0 if held is None else held.amount
        self._held_units = amount // self._unit_price
        if not has_ended:  # an ended reservation may be spent
            self._admission.give_back(self._room - spent_units * self._unit_price - amount)
        self._room = amount
        if held is not None:
            self._lease_expires_at = held.lease_expires_at
            self._renewer.renewed(self._id, held.lease_expires_at)

    def _take_room(self, units: int) -> ProblemError | None:
        """Count what is about to be owed: `units` reserved in addition to what was sent."""
        missing = (units + self._taken_units) * self._unit_price - self._room
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
        return None if self.units else ForgetRequest(claim)

    def _shortfall(self, units: int) -> InsufficientBalanceError:
        state = self.state
        cost = (units - self.covered_units) * self._unit_price
        return InsufficientBalanceError(
            required_cumulative=required_cumulative(state, cost, self._min_voucher_delta),
            accepted=state.accepted,
            spent=state.spent,
            deposit=state.deposit,
        )
