"""Counts a request's usage while it runs: the handler's interface of a metered route."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from channel.engine import Authenticated, Engine, Outcome, RunningReservation
from channel.errors import ConfigError, InsufficientBalanceError, ProblemError
from channel.state.commands import StreamPolicy
from channel.types import ChannelId
from channel.wire.receipt import Receipt
from channel.wire.sse import NeedVoucher, format_need_voucher

__all__ = ["METER", "Meter", "format_need", "metered", "require_meter"]

METER: Final = "mpp_session.meter"
"""The key under which the gate puts the meter into a request's scope."""


class Meter:
    """The units of one paid request. At least one was reserved durably before the handler ran."""

    def __init__(
        self,
        *,
        engine: Engine,
        paid: Authenticated,
        reservation: RunningReservation,
        stream_policy: StreamPolicy,
        pause_s: float,
    ) -> None:
        self.reservation = reservation
        self.pause_s = pause_s
        self.refusal: ProblemError | None = None
        """Why the request could not continue; the gate answers with it."""
        self.has_counted = False
        """Whether the handler has counted, even 0 units; otherwise nothing may be sent."""
        self.has_held = False
        """Whether the handler has reserved its greatest cost."""
        self.announce: Callable[[bytes], Awaitable[None]] | None = None
        """Sends a protocol event between those of the handler, once it sends events."""
        self._engine = engine
        self._paid = paid
        self._stream_policy = stream_policy

    @property
    def units(self) -> int:
        """Units spent by this request so far."""
        return self.reservation.units

    async def hold(self, units: int) -> None:
        """Reserve `units` more durably, before work that cannot be undone.

        Raises:
            InsufficientBalanceError: They are not paid for. Do not catch it: the gate answers
                402 and names the voucher that is needed.
            ProblemError: The channel ends, or the ledger could not be written.
        """
        _require_some(units)
        self.has_held = True
        await self._cover(self.reservation.price_of(units))

    async def _cover(self, amount: int) -> None:
        try:
            await self.reservation.cover(amount)
        except ProblemError as error:
            self.refusal = error
            raise

    async def spend(self, units: int = 1) -> None:
        """Spend `units` before what they pay for is sent. Durable before this returns.

        Between server-sent events it asks for a missing voucher and waits for it.

        Raises:
            ProblemError: As for `hold`; nothing was spent.
            RuntimeError: The answer was already charged and sent, as for a background task.
        """
        _require_some(units)
        if self.reservation.is_finished and units:
            raise RuntimeError("the answer was already charged: spend before it is sent")
        price = self.reservation.price_of(units)
        if self.reservation.covered < price:
            if self.announce is None:
                await self._cover(price)
            else:
                await self._wait_for_voucher(price, self.announce)
        self.has_counted = True
        self.reservation.take(units)

    async def _wait_for_voucher(
        self, amount: int, announce: Callable[[bytes], Awaitable[None]]
    ) -> None:
        announced = -1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.pause_s
        async with self.reservation.watch() as watch:
            while True:
                try:
                    await self.reservation.cover(amount)
                except InsufficientBalanceError as need:
                    remaining_s = deadline - loop.time()
                    if remaining_s <= 0:
                        raise
                    if need.required_cumulative != announced:  # once per threshold (F-60)
                        announced = need.required_cumulative
                        await announce(format_need(self.reservation.key.channel_id, need))
                    await watch.changed(remaining_s)
                else:
                    return

    async def start_stream(self, *, is_emitting: bool = True) -> None:
        """Begin to send units as they are spent; by policy other streams must end (ACC-06).

        With `is_emitting` False, the answer has not begun.

        Raises:
            ProblemError: The channel may not serve a stream now.
        """
        try:
            await self.reservation.start_stream(self._stream_policy, is_emitting=is_emitting)
        except ProblemError as error:
            self.refusal = error
            raise

    def receipt(self) -> Receipt:
        """Return the receipt for the state as last written (RCPT-05)."""
        outcome = Outcome(state=self.reservation.state, shown_max=None)
        return self._engine.receipt(self._paid, outcome, self.units)


@asynccontextmanager
async def metered(scope: Mapping[str, Any], *, is_stream: bool = False) -> AsyncIterator[Meter]:
    """Meter the request of this ASGI scope; the rest of the reservation is released at the end.

        async with metered(request.scope) as meter:
            answer = await generate(prompt)
            await meter.spend(answer.tokens)

    With `is_stream` each server-sent event may be sent as soon as it is spent, and a stream that
    dies is charged at most what it reserved: one reservation step. `PaidEventStream` does that by
    itself. Any other stream cannot ask for vouchers: `hold` its greatest cost before it begins.

    Raises:
        ConfigError: No gate has metered this route.
    """
    meter = require_meter(scope)
    if is_stream:
        await meter.start_stream(is_emitting=False)
    yield meter
    if is_stream:
        await meter.reservation.finish()


def _require_some(units: int) -> None:
    if units < 0:
        raise ValueError(f"expected at least 0 units, found {units}: spent units stay spent")


def format_need(channel_id: ChannelId, need: InsufficientBalanceError) -> bytes:
    """Return the event that names the voucher that a stream waits for (SSE-02)."""
    return format_need_voucher(
        NeedVoucher(
            channel_id=channel_id,
            required_cumulative=need.required_cumulative,
            accepted=need.accepted,
            deposit=need.deposit,
        )
    )


def require_meter(scope: Mapping[str, Any]) -> Meter:
    """Return the meter that the gate put into a scope.

    Raises:
        ConfigError: There is none: the route is not listed as `metered`, or has no gate.
    """
    meter = scope.get(METER)
    if not isinstance(meter, Meter):
        raise ConfigError("this route has no meter: list it as metered in a PaymentGate")
    return meter
