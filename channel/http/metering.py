"""Count what a request uses, while it uses it: the handler's side of a metered route."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from channel.engine import Authenticated, Engine, Outcome, RunningReservation
from channel.errors import ConfigError, ProblemError
from channel.state.commands import StreamPolicy
from channel.wire.receipt import Receipt

__all__ = ["METER", "Meter", "metered", "require_meter"]

METER: Final = "mpp_session.meter"
"""Where the gate leaves the meter in a request's scope."""


class Meter:
    """The units of one paid request. At least one was held durably before the handler ran."""

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
        """Why the request could not go on, for the gate to answer."""
        self._engine = engine
        self._paid = paid
        self._stream_policy = stream_policy

    @property
    def units(self) -> int:
        """Units spent by this request so far."""
        return self.reservation.units

    async def hold(self, units: int) -> None:
        """Make sure, durably, that `units` more can be spent: before work that cannot be undone.

        Raises:
            InsufficientBalanceError: Not so many are paid for. Let it pass: the gate answers
                402 and says which voucher would do.
            ProblemError: The channel ends, or the books could not be written.
        """
        try:
            await self.reservation.cover(units)
        except ProblemError as error:
            self.refusal = error
            raise

    async def spend(self, units: int = 1) -> None:
        """Spend `units`, before what they pay for is sent. Durable before this returns.

        Raises:
            ProblemError: As `hold`; nothing was spent.
        """
        if units < 0:
            raise ValueError("units are spent, not given back")
        if self.reservation.covered_units < units:
            await self.hold(units)
        self.reservation.take(units)

    async def start_stream(self) -> None:
        """Begin to emit units as they are spent; by policy other streams have to yield (ACC-06).

        Raises:
            ProblemError: The channel may not serve a stream now.
        """
        try:
            await self.reservation.start_stream(self._stream_policy)
        except ProblemError as error:
            self.refusal = error
            raise

    def receipt(self) -> Receipt:
        """Return the receipt for the books as last written (RCPT-05)."""
        outcome = Outcome(state=self.reservation.state, shown_max=None)
        return self._engine.receipt(self._paid, outcome, self.units)


@asynccontextmanager
async def metered(scope: Mapping[str, Any], *, is_stream: bool = False) -> AsyncIterator[Meter]:
    """Meter the request of this ASGI scope; what is not spent at the end is given back.

        async with metered(request.scope) as meter:
            answer = await generate(prompt)
            await meter.spend(answer.tokens)

    With `is_stream` each unit may be sent as soon as it is spent, and a stream that dies is
    charged what it held at most: one reservation step. `PaidEventStream` does that by itself.

    Raises:
        ConfigError: No gate has metered this route.
    """
    meter = require_meter(scope)
    if is_stream:
        await meter.start_stream()
    yield meter
    if is_stream:
        await meter.reservation.finish()


def require_meter(scope: Mapping[str, Any]) -> Meter:
    """Return the meter that the gate left in a scope.

    Raises:
        ConfigError: There is none: the route is not priced as `metered`, or has no gate.
    """
    meter = scope.get(METER)
    if not isinstance(meter, Meter):
        raise ConfigError("this route has no meter: list it as metered in a PaymentGate")
    return meter
