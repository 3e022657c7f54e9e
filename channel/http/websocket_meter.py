"""What a websocket uses, and what its frames state of it."""

import asyncio
from typing import Any

from channel.errors import ConfigError
from channel.http.metering import Meter
from channel.tariff import Tariff, Usage
from channel.wire.websocket import COUNTED_KINDS, SECOND

__all__ = ["SocketMeter", "require_countable"]


def require_countable(tariff: Tariff, *, metered: bool, units: int, name: str) -> None:
    """Check that the gate, or the handler of a metered route, counts every kind of a tariff.

    A tariff of one other kind, on a route that is not metered, is the price of one connection.

    Raises:
        ConfigError: A kind is counted by neither.
    """
    uncounted = set() if metered else set(tariff.kinds) - COUNTED_KINDS
    is_fixed = uncounted == set(tariff.kinds) and len(uncounted) == 1
    if units != 1 or (uncounted and not is_fixed):
        raise ConfigError(
            f"{name}: expected one price for a connection, prices for kinds that the gate counts "
            f"({', '.join(sorted(COUNTED_KINDS))}), or a metered route; found "
            f"{', '.join(tariff.kinds)}, {units} units"
        )


class SocketMeter(Meter):
    """The meter of one websocket, whose handler may send, receive and spend in several tasks."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        tariff = self.reservation.tariff
        kinds = set(tariff.kinds)
        self.counted = kinds & COUNTED_KINDS
        """The kinds that the gate counts."""
        self.spends = bool(kinds - COUNTED_KINDS)
        """Whether the handler counts."""
        self._default: Usage = {} if tariff.main.kind in COUNTED_KINDS else {tariff.main.kind: 1}
        self._stated: dict[str, int] = {}
        self._turn = asyncio.Lock()

    @property
    def has_clock(self) -> bool:
        """Whether time has a price."""
        return SECOND in self.counted

    async def hold(self, units: Usage | int | None = None, /, **usage: int) -> None:
        """Reserve what this usage can cost; see `Meter.hold`."""
        async with self._turn:
            await super().hold(units, **usage)

    async def spend(self, units: Usage | int | None = None, /, **usage: int) -> None:
        """Spend before what it pays for is sent; see `Meter.spend`."""
        async with self._turn:
            await super().spend(units, **usage)

    def covers(self, usage: Usage) -> bool:
        """Return whether the part that the gate counts needs neither ledger nor voucher."""
        used = self._own(usage)
        return not used or self.reservation.covered >= self.reservation.price_of(used)

    def _own(self, usage: Usage) -> dict[str, int]:
        return {kind: units for kind, units in usage.items() if units and kind in self.counted}

    async def count(self, usage: Usage) -> None:
        """Spend the part of this usage that the gate counts; the handler's own count is apart.

        Raises:
            ProblemError: As for `spend`; nothing was spent.
        """
        used = self._own(usage)
        if not used:
            return
        async with self._turn:
            has_counted = self.has_counted
            await super().spend(used)
            self.has_counted = has_counted

    def take_statement(self) -> Usage | None:
        """Return what the handler counted since the last frame; None if the frame need not say."""
        if not self.spends:
            return None
        new = {
            kind: units - self._stated.get(kind, 0)
            for kind, units in self.usage.items()
            if kind not in COUNTED_KINDS and units > self._stated.get(kind, 0)
        }
        self._stated = dict(self.usage)
        return None if new == self._default else new
