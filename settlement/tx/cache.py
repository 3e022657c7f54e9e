"""In-memory view of one key's transactions, in front of the journal.

The journal stores every change before the cache does. The cache drops ended transactions after a
while and reads them from the journal again when a caller asks.
"""

import logging
from collections import OrderedDict
from typing import Final

from msgspec.structs import replace

from channel.errors import InvariantError
from channel.types import TxHash
from settlement.tx.journal.interface import Journal
from settlement.tx.state import Event, JournalTx, TxStatus
from settlement.types import Receipt

__all__ = ["TxCache"]

_log: Final = logging.getLogger(__name__)

_KEPT: Final = 1000


class TxCache:
    """Open transactions, transactions that ended lately, and the receipts seen."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: dict[int, JournalTx] = {}
        self._escalated: dict[int, tuple[int | None, int]] = {}
        """Budget and deadline of open transactions that became more urgent than their intent."""
        self._ids: OrderedDict[TxHash, int] = OrderedDict()
        self._ended: OrderedDict[int, JournalTx] = OrderedDict()
        self.receipts: OrderedDict[TxHash, Receipt] = OrderedDict()

    def open(self) -> list[JournalTx]:
        """Return the open transactions, by nonce."""
        return sorted(self._open.values(), key=lambda tx: tx.nonce or 0)

    def is_open(self, tx_id: int) -> bool:
        """Whether the transaction is still followed."""
        return tx_id in self._open

    def escalate(self, tx_id: int, *, budget_wei: int | None, deadline: int) -> None:
        """Apply this budget and deadline to an open transaction from now on."""
        if tx_id in self._open:
            self._escalated[tx_id] = (budget_wei, deadline)
            self.keep(self._open[tx_id])

    async def record(self, tx: JournalTx, *events: Event) -> JournalTx:
        """Store an event of a transaction in the journal, then in the cache.

        Raises:
            NonceTakenError: `Signed` names a nonce that was given before; nothing was stored.
            LeaseLostError: Another settler has the key; nothing was stored.
            LedgerUnavailableError: The database could not make it durable.
        """
        after = await self._journal.record(tx.tx_id, events)
        self.keep(after)
        if after.status is TxStatus.REPLACED:
            _log.error("nonce %s was used by a transaction that is not ours", after.nonce)
        return after

    def keep(self, tx: JournalTx) -> None:
        """Cache a state that the journal holds."""
        for version in tx.versions:
            self._ids[version.tx_hash] = tx.tx_id
        if tx.is_open:
            if tx.tx_id in self._escalated:
                budget_wei, deadline = self._escalated[tx.tx_id]
                wanted = replace(tx.intent, budget_wei=budget_wei, deadline=deadline)
                tx = replace(tx, intent=wanted)
            self._open[tx.tx_id] = tx
            return
        self._open.pop(tx.tx_id, None)
        self._escalated.pop(tx.tx_id, None)
        self._ended[tx.tx_id] = tx
        while len(self._ended) > _KEPT:
            _, old = self._ended.popitem(last=False)
            for version in old.versions:
                self._ids.pop(version.tx_hash, None)

    def keep_receipt(self, receipt: Receipt) -> None:
        """Cache a receipt for the callers that wait for it."""
        self.receipts[receipt.tx_hash] = receipt
        while len(self.receipts) > _KEPT:
            self.receipts.popitem(last=False)

    async def id_of(self, tx_hash: TxHash) -> int | None:
        """Return the id of the transaction with a version of this hash; None if unknown."""
        if tx_hash not in self._ids:
            found = await self._journal.find(tx_hash)
            if found is None:
                return None
            self.keep(found)
        return self._ids[tx_hash]

    async def known(self, tx_id: int, tx_hash: TxHash) -> JournalTx:
        """Return a transaction whose id `id_of` returned.

        Raises:
            InvariantError: A bug.
        """
        found = self._open.get(tx_id) or self._ended.get(tx_id)
        found = found or await self._journal.find(tx_hash)
        if found is None:
            raise InvariantError(f"transaction {tx_id} was forgotten while it was waited for")
        return found
