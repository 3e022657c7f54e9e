"""A journal in memory, for keys that no other process uses and whose owner can retry.

An agent finds its deposits again by channel id, so it needs no journal on disk. A payee's key needs
a durable one, and the settler accepts no other.
"""

from collections.abc import Sequence
from typing import Final

from channel.types import TxHash
from settlement.errors import NonceTakenError
from settlement.tx.state import Event, Intent, JournalTx, Signed, TxStatus, advance

__all__ = ["MemoryJournal"]

_ENDED_MAX: Final = 1000


class MemoryJournal:
    """See `interface.Journal`. Ended transactions are dropped after a while."""

    is_durable = False

    def __init__(self) -> None:
        self._transactions: dict[int, JournalTx] = {}
        self._added = 0
        self._next_nonce = 0

    async def add(self, intent: Intent, *, at: int) -> JournalTx:  # noqa: ARG002
        """See `interface.Journal.add`."""
        self._added += 1
        tx = self._transactions[self._added] = JournalTx(tx_id=self._added, intent=intent)
        return tx

    async def next_nonce(self) -> int:
        """See `interface.Journal.next_nonce`."""
        return self._next_nonce

    async def record(self, tx_id: int, events: Sequence[Event]) -> JournalTx:
        """See `interface.Journal.record`."""
        tx = self._transactions[tx_id]
        for event in events:
            if isinstance(event, Signed):
                self._require_free(event)
            tx = advance(tx, event)
        before = self._transactions[tx_id]
        self._transactions[tx_id] = tx
        if tx.nonce is not None:
            self._next_nonce = max(self._next_nonce, tx.nonce + 1)
        elif before.nonce is not None and before.nonce == self._next_nonce - 1:
            self._next_nonce = before.nonce
        self._forget()
        return tx

    def _require_free(self, event: Signed) -> None:
        if event.fills_gap:
            is_taken = any(tx.nonce == event.nonce for tx in self._transactions.values())
        else:
            is_taken = event.nonce < self._next_nonce
        if is_taken:
            raise NonceTakenError(f"Nonce {event.nonce} was given before.")

    async def open_transactions(self) -> list[JournalTx]:
        """See `interface.Journal.open_transactions`."""
        return _by_nonce([tx for tx in self._transactions.values() if tx.is_open])

    async def transactions_from(self, nonce: int) -> list[JournalTx]:
        """See `interface.Journal.transactions_from`."""
        given = [tx for tx in self._transactions.values() if tx.nonce is not None]
        return _by_nonce([tx for tx in given if (tx.nonce or 0) >= nonce])

    async def find(self, tx_hash: TxHash) -> JournalTx | None:
        """See `interface.Journal.find`."""
        for tx in self._transactions.values():
            if any(version.tx_hash == tx_hash for version in tx.versions):
                return tx
        return None

    def _forget(self) -> None:
        if len(self._transactions) > _ENDED_MAX:
            ended = [i for i, tx in self._transactions.items() if tx.status >= TxStatus.FINAL]
            for tx_id in ended[: len(ended) // 2]:
                del self._transactions[tx_id]


def _by_nonce(transactions: list[JournalTx]) -> list[JournalTx]:
    return sorted(transactions, key=lambda tx: (-1 if tx.nonce is None else tx.nonce, tx.tx_id))
