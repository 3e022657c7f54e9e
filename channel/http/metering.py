"""Counts a request's usage while it runs: the handler's interface of a metered route."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.requests import HTTPConnection

from channel.engine import Authenticated, Engine, Outcome, RunningReservation
from channel.errors import ConfigError, InsufficientBalanceError, ProblemError
from channel.state.commands import StreamPolicy
from channel.tariff import Usage
from channel.types import ChannelId
from channel.wire.receipt import Receipt
from channel.wire.sse import NeedVoucher

__all__ = ["METER", "Meter", "current_meter", "describe_need", "metered", "require_meter"]

METER: Final = "mpp_session.meter"
"""The key under which the gate puts the meter into a request's scope."""


class Meter:
    """The usage of one paid request. The price of one unit was reserved before the handler ran.

    A plain number is of the tariff's main kind, the first one. Other kinds go by name:

        await meter.hold(input_token=200, output_token=500)
        await meter.spend(input_token=187, output_token=35)
    """

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
        self.is_client_gone = False
        """Whether the client left while the answer was under way."""
        self.reported: Usage | None = None
        """The usage that the handler's own source reports, such as a model server. It changes no
        bill: hooks compare it with what was delivered."""
        self.announce: Callable[[NeedVoucher], Awaitable[None]] | None = None
        """Asks the payer for a voucher between what the handler sends, once it can be asked."""
        self._engine = engine
        self._paid = paid
        self._stream_policy = stream_policy

    @property
    def units(self) -> int:
        """Units of the main kind spent by this request so far."""
        return self.reservation.units

    @property
    def usage(self) -> Usage:
        """Units by kind spent by this request so far."""
        return self.reservation.usage

    @property
    def cost(self) -> int:
        """What this request has cost so far, in base units of the token."""
        return self.reservation.cost

    async def hold(self, units: Usage | int | None = None, /, **usage: int) -> None:
        """Reserve what this usage can cost beyond what is spent, before work that is not undone.

        Durable before this returns.

        Raises:
            InsufficientBalanceError: It is not paid for. Do not catch it: the gate answers
                402 and names the voucher that is needed.
            ProblemError: The channel ends, or the ledger could not be written.
            ConfigError: The tariff has no rate for a kind.
        """
        price = self._price_of(_read_usage(units, usage))
        self.has_held = True
        await self._cover(price)

    def _price_of(self, used: Usage | int) -> int:
        try:
            return self.reservation.price_of(used)
        except ProblemError as error:
            self.refusal = error
            raise

    async def _cover(self, amount: int) -> None:
        try:
            await self.reservation.cover(amount)
        except ProblemError as error:
            self.refusal = error
            raise

    async def spend(self, units: Usage | int | None = None, /, **usage: int) -> None:
        """Spend one unit, `units`, or a usage by kind, before what it pays for is sent.

        Paid for, durably, before this returns. Between server-sent events it asks for a missing
        voucher and waits for it.

        Raises:
            ProblemError: As for `hold`; nothing was spent.
            RuntimeError: The answer was already charged and sent, as for a background task.
        """
        used = _read_usage(units, usage)
        if self.reservation.is_finished and used:
            raise RuntimeError("the answer was already charged: spend before it is sent")
        price = self._price_of(used)
        if self.reservation.covered < price:
            if self.announce is None:
                await self._cover(price)
            else:
                await self._wait_for_voucher(price, self.announce)
        self.has_counted = True
        self.reservation.take(used)

    async def _wait_for_voucher(
        self, amount: int, announce: Callable[[NeedVoucher], Awaitable[None]]
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
                        await announce(describe_need(self.reservation.key.channel_id, need))
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
        return self._engine.receipt(self._paid, outcome, self.usage)


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


def _read_usage(units: Usage | int | None, usage: Usage) -> Usage | int:
    if usage and units is not None:
        raise TypeError("expected a number of units, or a usage by kind, found both")
    used = usage or (1 if units is None else units)
    for count in (used,) if isinstance(used, int) else used.values():
        if count < 0:
            raise ValueError(f"expected at least 0 units, found {count}: spent units stay spent")
    return used


def describe_need(channel_id: ChannelId, need: InsufficientBalanceError) -> NeedVoucher:
    """Return the voucher that a stream waits for (SSE-02)."""
    return NeedVoucher(
        channel_id=channel_id,
        required_cumulative=need.required_cumulative,
        accepted=need.accepted,
        deposit=need.deposit,
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


async def current_meter(connection: HTTPConnection) -> Meter:
    """Return the meter of this request or websocket: a dependency for FastAPI.

        Counted = Annotated[Meter, Depends(current_meter)]

    Raises:
        ConfigError: As for `require_meter`.
    """
    return require_meter(connection.scope)
