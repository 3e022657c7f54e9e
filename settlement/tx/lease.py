"""One settler per key: the lease holder settles, others stand by (decision 10, F-110).

The lease is a row with a fence number that rises with each holder. The lease only selects the
active settler; the fence keeps two settlers from both writing, because the journal checks it inside
each write. A holder that was paused beyond its lease fails at its next write, and no clock needs to
be right for that.
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
    """How fast a standby takes over: at most `ttl_s + poll_s` after the holder died."""

    ttl_s: float = 6.0
    renew_s: float = 2.0
    poll_s: float = 0.5
    away_s_max: float = 60.0
    """Seconds without an answer from the database before an alarm rings."""


async def wait_for_lease(
    journal: SettlerJournal,
    holder: str,
    *,
    limits: LeaseLimits,
    on_standby: Callable[[str], None] = lambda _: None,
    alarms: Alarms | None = None,
) -> int:
    """Return the fence once this process has the lease. Calls `on_standby` once with the holder.

    While the database does not answer, no settler settles; `alarms` ring when that lasts.
    """
    alarms = alarms or Alarms()
    clock = asyncio.get_running_loop().time
    answered_at = clock()
    has_reported = False
    log_once = LogOnce(_log, "lease request failed, will retry: %s")
    while True:
        try:
            fence = await journal.take_lease(holder, ttl_s=limits.ttl_s)
            answered_at = clock()
            alarms.end(AlarmKind.BOOKS_AWAY)
            if fence is not None:
                return fence
            if not has_reported:
                has_reported = True
                on_standby(await journal.lease_holder() or "another settler")
        except LedgerUnavailableError as error:
            log_once.make(error)
            if clock() - answered_at >= limits.away_s_max:
                alarms.ring(AlarmKind.BOOKS_AWAY, f"the settler cannot settle meanwhile: {error}")
        await asyncio.sleep(limits.poll_s)


async def keep_lease(journal: SettlerJournal, *, limits: LeaseLimits) -> NoReturn:
    """Renew the lease for ever.

    Raises:
        LeaseLostError: Another settler has the lease, or the database was away until it expired.
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
            _log.warning("lease renewal failed, will retry: %s", error)
            if clock() - renewed_at >= limits.ttl_s:
                raise LeaseLostError("The lease ran out while the database was away.") from error
