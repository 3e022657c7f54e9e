"""What settling and closing may cost within an hour, over all channels (O-88).

Each transaction has a budget of its own by what is at risk. Together they may cost no more than
this: a node that suggests dear bids, or says that everybody leaves, cannot use up the account. It
is counted from the journal, so a restart forgets nothing: what was mined by what it cost, what is
under way by the most that it is likely to cost.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final

from settlement.errors import GasHourUsedError
from settlement.node.rpc import Rpc
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.pricing import likely_gas
from settlement.tx.state import JournalTx, Purpose

__all__ = ["HOUR_S", "GasHour", "payout_cost_wei"]

HOUR_S: Final = 3600
_LAST_S: Final = 300
"""So shortly before its payer may take everything, a channel is closed whatever the hour cost."""


class GasHour:
    """Says no when the last hour's settles and closes have cost enough."""

    def __init__(
        self,
        journal: SettlerJournal,
        rpc: Rpc,
        *,
        limit_wei: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._rpc = rpc
        self._limit_wei = limit_wei
        self._wall = wall

    async def require_room(self, *, deadline: int) -> None:
        """Check that one more may be sent; `deadline` is its chain time, 0 for none.

        Raises:
            GasHourUsedError: As much as is allowed was spent, or is being spent.
            ChainUnavailableError: No node says what time it is.
            LedgerUnavailableError: The journal does not answer.
        """
        sent = await self._journal.sent_since(int(self._wall()) - HOUR_S)
        spent_wei = payout_cost_wei(sent)
        if spent_wei < self._limit_wei:
            return
        if deadline and deadline - (await self._rpc.block()).timestamp <= _LAST_S:
            return
        raise GasHourUsedError(spent_wei=spent_wei, limit_wei=self._limit_wei)


def payout_cost_wei(transactions: Iterable[JournalTx]) -> int:
    """Return what the settles and closes among these cost, or are likely to cost at most."""
    return sum(_cost_wei(tx) for tx in transactions if tx.intent.purpose is not Purpose.OTHER)


def _cost_wei(tx: JournalTx) -> int:
    if tx.inclusion is not None:
        return tx.inclusion.gas_used * tx.inclusion.gas_price_wei
    if tx.is_unmined and tx.versions:
        return likely_gas(tx.intent, tx.gas) * tx.newest.fee.max_fee_wei
    return 0
