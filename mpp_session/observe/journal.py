"""Reads the settler's journal at intervals: who settles, what is under way, what gas it cost."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from channel.errors import LedgerUnavailableError
from settlement.tx.gas_hour import HOUR_S, payout_cost_wei
from settlement.tx.journal.interface import Look, SettlerJournal

__all__ = ["JournalLook", "JournalReader"]

_log: Final = logging.getLogger(__name__)

_INTERVAL_S: Final = 15.0
_DAY_S: Final = 24 * HOUR_S


class JournalLook(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal showed."""

    has_settler: bool
    """Whether a settler holds the key's lease."""
    pending: int
    """Transactions under way."""
    quarantined: int
    """Channels whose settle or close the chain refuses for now."""
    hour_wei: int
    """Gas of the last hour's settles and closes, actual or likely at most."""
    day_wei: int
    """The same of the last 24 hours, of at most 2,000 transactions."""
    look: Look | None
    """The settler's last look at the chain."""


class JournalReader:
    """The last look at the journal."""

    def __init__(
        self,
        journal: SettlerJournal,
        *,
        interval_s: float = _INTERVAL_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.last: JournalLook | None = None
        """None while the database does not answer."""
        self._journal = journal
        self._interval_s = interval_s
        self._now = now

    async def run(self) -> None:
        """Read for ever."""
        while True:
            try:
                self.last = await self.read()
            except LedgerUnavailableError as error:
                if self.last is not None:
                    _log.warning("reading the settler's journal failed, will retry: %s", error)
                self.last = None
            await asyncio.sleep(self._interval_s)

    async def read(self) -> JournalLook:
        """Read the journal now.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        journal, now = self._journal, int(self._now())
        day = await journal.sent_since(now - _DAY_S)
        return JournalLook(
            has_settler=await journal.lease_holder() is not None,
            pending=len(await journal.open_transactions()),
            quarantined=len(await journal.quarantined()),
            hour_wei=payout_cost_wei(await journal.sent_since(now - HOUR_S)),
            day_wei=payout_cost_wei(day),
            look=await journal.last_look(),
        )
