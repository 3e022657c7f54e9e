"""The charges of one channel, the newest first, a page at a time and back to the first one.

The accounts are in order of time and have no index by channel, which each paid request would have
to keep up. So they are read backwards in stretches of time, a bounded number of rows for one page.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from channel.ledger.accounts import ChargeRow
from channel.ledger.interface import Ledger
from channel.types import ChannelKey

__all__ = ["CHARGES_SHOWN", "History", "HistoryPage"]

CHARGES_SHOWN: Final = 200
"""Charges after which a page ends; it may have some more, of the same stretch of time."""
_ROWS_READ_MAX: Final = 20_000
"""Rows of all channels that one page reads, but for a last stretch."""
_ROWS_AT_ONCE: Final = 1000
_STRETCH_S: Final = 3600


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page."""

    charges: tuple[ChargeRow, ...]
    """The newest first."""
    older: int | None
    """Unix seconds before which the next page begins; None if this is the last one."""


class History:
    """Reads the accounts backwards."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = now

    async def read(self, key: ChannelKey, before: int | None = None) -> HistoryPage:
        """Return the charges of a channel before a time, in Unix seconds; the newest if None.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        end = int(self._now()) + 1
        until = end if before is None else min(before, end)
        oldest = await self._ledger.list_charges(0, until, limit=1)
        begin = oldest[0].at if oldest else until
        found: list[ChargeRow] = []
        read, stretch_s = 0, _STRETCH_S
        while until > begin and len(found) < CHARGES_SHOWN and read < _ROWS_READ_MAX:
            since = max(begin, until - stretch_s)
            rows = await self._ledger.list_charges(since, until, limit=_ROWS_AT_ONCE)
            read += len(rows)
            if len(rows) == _ROWS_AT_ONCE:
                if until - since > 1:
                    stretch_s = max(1, (until - since) // 2)
                    continue
                rows += await self._read_rest(since, until, rows[-1])
            found += [row for row in reversed(rows) if row.key == key]
            until, stretch_s = since, 2 * stretch_s
        return HistoryPage(charges=tuple(found), older=until if until > begin else None)

    async def _read_rest(self, since: int, until: int, after: ChargeRow) -> list[ChargeRow]:
        """Return the rest of a stretch that cannot be halved: of one second."""
        rest: list[ChargeRow] = []
        while page := await self._ledger.list_charges(
            since, until, after=after, limit=_ROWS_AT_ONCE
        ):
            rest += page
            after = page[-1]
        return rest
