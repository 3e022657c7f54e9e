"""Carries out what the operator orders while the settler runs: to settle everything now.

The dashboard has no key. It places an order in the journal, and the settler finds it there.
"""

import asyncio
import logging
import time
from typing import Final

from channel.errors import ChainUnavailableError, LedgerUnavailableError
from settlement.log_once import LogOnce
from settlement.tx.journal.interface import OrderName, SettlerJournal
from settlement.watch.watcher import ChannelWatcher, Sweep

__all__ = ["SettleOrders"]

_log: Final = logging.getLogger(__name__)

_LOOK_S: Final = 1.0


class SettleOrders:
    """Looks for an order to settle, and carries it out."""

    def __init__(self, journal: SettlerJournal, watcher: ChannelWatcher) -> None:
        self._journal = journal
        self._watcher = watcher

    async def run(self) -> None:
        """Look for ever. An order stands until it was carried out.

        Raises:
            InvariantError: A bug.
        """
        log_once = LogOnce(_log, "an order to settle waits: %s")
        while True:
            try:
                order = await self._journal.order(OrderName.SETTLE)
                if order is not None and order.stands:
                    outcome = _describe(await self._watcher.settle_all())
                    _log.info("settled on the operator's order: %s", outcome)
                    await self._journal.end_order(
                        OrderName.SETTLE, at=int(time.time()), outcome=outcome
                    )
                log_once.over()
            except (LedgerUnavailableError, ChainUnavailableError) as error:
                log_once.make(error)
            await asyncio.sleep(_LOOK_S)


def _describe(done: Sweep) -> str:
    closed = f", {done.closed} closed" if done.closed else ""
    waiting = f", {done.waiting} could not be settled yet: see the log" if done.waiting else ""
    return f"channels: {done.settled} settled{closed}{waiting}"
