"""Revenue from the ledger's accounts, by hour.

The accounts are of every process and outlive a restart. They are read once, and then only what was
added. A request has its row once it has ended.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from channel.ledger.accounts import ChargeRow
from channel.ledger.interface import Ledger
from channel.state.charges import ChargeOutcome
from mpp_session.settings import ProviderConfig, parse_address

__all__ = ["HOUR_S", "Revenue"]

HOUR_S: Final = 3600
_SHOWN_HOURS: Final = 48
_PAGES_AT_A_LOOK: Final = 20
_NO_REQUEST: Final = frozenset({ChargeOutcome.BEFORE, ChargeOutcome.REPAIRED})


class Revenue:
    """What was charged in the last days."""

    def __init__(
        self, config: ProviderConfig, ledger: Ledger, *, now: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._place = (
            config.chain.id,
            parse_address(config.chain.escrow),
            parse_address(config.payee.address),
        )
        self._now = now
        self._after: ChargeRow | None = None
        self.is_kept = config.ledger.charges
        """Whether the ledger keeps accounts."""
        self.by_hour: Counter[int] = Counter()
        """Base units, by hour since 1970."""

    async def look(self) -> None:
        """Read what was added.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        if not self.is_kept:
            return
        now = int(self._now())
        oldest = (now // HOUR_S - _SHOWN_HOURS) * HOUR_S
        for _ in range(_PAGES_AT_A_LOOK):
            page = await self._ledger.list_charges(oldest, now + 1, after=self._after)
            if not page:
                break
            self._after = page[-1]
            self._add(page)
        for hour in [each for each in self.by_hour if each * HOUR_S < oldest]:
            del self.by_hour[hour]

    def _add(self, rows: Iterable[ChargeRow]) -> None:
        for row in rows:
            if (row.key.chain_id, row.key.escrow, row.payee) != self._place:
                continue
            if row.outcome not in _NO_REQUEST:
                self.by_hour[row.at // HOUR_S] += row.amount
