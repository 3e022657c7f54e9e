"""One settler per key: who has the lease settles, everybody else stands by (decision 10, F-110).

The lease is a row with a fence that rises with every holder. It only says who should go on; what
keeps two settlers from both writing is the fence, checked inside each write of the journal. So a
holder that was paused for longer than its lease finds out with its next write, and no clock needs
to be right for that.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from channel.errors import LedgerUnavailableError
from settlement.alarms import AlarmKind, Alarms
from settlement.errors import LeaseLostError
from settlement.log_once import LogOnce
from settlement.tx.journal.interface import SettlerJournal

__all__ = ["LeaseLimits", "keep_lease", "wait_for_lease"]

_log: Final = logging.getLogger(__name__)


class LeaseLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a standby takes over: at most `ttl_s + poll_s` after its predecessor died."""

    ttl_s: float = 6.0
    renew_s: float = 2.0
    poll_s: float = 0.5
    away_s_max: float = 60.0
    """How long the database may take nothing before somebody is told."""


async def wait_for_lease(
    journal: SettlerJournal,
    holder: str,
    *,
    limits: LeaseLimits,
    on_standby: Callable[[str], None] = lambda _: None,
    alarms: Alarms | None = None,
) -> int:
    """Return the fence once the lease is ours; `on_standby` hears once who else has it.

    Without the database nobody settles, whoever had the lease: `alarms` ring when that goes on.
    """
    alarms = alarms or Alarms()
    clock = asyncio.get_running_loop().time
    answered_at = clock()
    has_told = False
    log_once = LogOnce(_log, "the lease was not asked for; tried again: %s")
    while True:
        try:
            fence = await journal.take_lease(holder, ttl_s=limits.ttl_s)
            answered_at = clock()
            alarms.end(AlarmKind.BOOKS_AWAY)
            if fence is not None:
                return fence
            if not has_told:
                has_told = True
                on_standby(await journal.lease_holder() or "another settler")
        except LedgerUnavailableError as error:
            log_once.make(error)
            if clock() - answered_at >= limits.away_s_max:
                alarms.ring(AlarmKind.BOOKS_AWAY, f"nothing is settled meanwhile: {error}")
        await asyncio.sleep(limits.poll_s)


async def keep_lease(journal: SettlerJournal, *, limits: LeaseLimits) -> NoReturn:
    """Renew the lease for ever.

    Raises:
        LeaseLostError: Somebody else has it, or the database was away for as long as it lasts.
    """
    clock = asyncio.get_running_loop().time
    renewed_at = clock()
    while True:
        await asyncio.sleep(limits.renew_s)
        asked_at = clock()
        try:
            await journal.renew_lease(ttl_s=limits.ttl_s)
            renewed_at = asked_at
        except LedgerUnavailableError as error:
            _log.warning("the lease was not renewed; tried again: %s", error)
            if clock() - renewed_at >= limits.ttl_s:
                raise LeaseLostError("The lease ran out while the database was away.") from error
