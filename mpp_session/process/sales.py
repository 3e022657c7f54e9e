"""Whether the gateway sells: an operator's order in the journal pauses every process.

A pause keeps what was sold: running streams go on, and vouchers, closes and settlements work.
"""

import asyncio
import logging
import time
from typing import Final

from channel.errors import LedgerUnavailableError, SalesPausedError
from settlement.log_once import LogOnce
from settlement.tx.journal.interface import OrderName, SettlerJournal

__all__ = ["LOOK_S", "Sales"]

_log: Final = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How soon every process knows of a pause."""


class Sales:
    """The pause of sales, as this process knows it."""

    def __init__(self, journal: SettlerJournal) -> None:
        self._journal = journal
        self.paused_at: int | None = None
        """Unix seconds; None while the gateway sells."""

    def require(self) -> None:
        """Check that the gateway sells.

        Raises:
            SalesPausedError: It does not.
        """
        if self.paused_at is not None:
            raise SalesPausedError("The seller has paused sales; nothing was paid. Try later.")

    async def look(self) -> None:
        """Read the order: before the first sale, so that a pause outlives a restart.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        order = await self._journal.order(OrderName.PAUSE)
        self.paused_at = order.placed_at if order is not None and order.stands else None

    async def run(self) -> None:
        """Look for ever; what was known last holds while the database does not answer."""
        log_once = LogOnce(_log, "reading whether sales are paused failed, will retry: %s")
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
                log_once.over()
            except LedgerUnavailableError as error:
                log_once.make(error)

    async def pause(self) -> None:
        """Pause sales here now, and elsewhere within `LOOK_S`.

        Raises:
            LedgerUnavailableError: Nothing was recorded, or it is not known.
        """
        await self._journal.place_order(OrderName.PAUSE, at=int(time.time()))
        await self.look()

    async def resume(self) -> None:
        """Sell again.

        Raises:
            LedgerUnavailableError: Nothing was recorded, or it is not known.
        """
        await self._journal.end_order(OrderName.PAUSE, at=int(time.time()), outcome="resumed")
        await self.look()
