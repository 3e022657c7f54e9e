"""Limits what all settles and closes together may cost within an hour (O-88).

Each transaction has a budget of its own, by the amount at risk. This limit bounds their sum, so
that a node that suggests high fees, or falsely reports many exits, cannot drain the account. The
sum is read from the journal and survives a restart: a mined transaction counts its actual cost, an
open one its likely maximum.
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
"""A channel with fewer seconds left before its payer can withdraw is closed regardless."""


class GasHour:
    """Refuses settles and closes once the last hour's have used up the limit."""

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
        """Check that one more may be sent. `deadline` is in Unix seconds of the chain, 0 for none.

        Raises:
            GasHourUsedError: The limit is spent, or committed to open transactions.
            ChainUnavailableError: No node gives the chain's time.
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
    """Return the cost in wei of the settles and closes among these, the likely one if open."""
    return sum(_cost_wei(tx) for tx in transactions if tx.intent.purpose is not Purpose.OTHER)


def _cost_wei(tx: JournalTx) -> int:
    if tx.inclusion is not None:
        return tx.inclusion.gas_used * tx.inclusion.gas_price_wei
    if tx.is_unmined and tx.versions:
        return likely_gas(tx.intent, tx.gas) * tx.newest.fee.max_fee_wei
    return 0
