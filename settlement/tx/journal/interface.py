"""The interface of a journal, and what it guarantees about durability.

Each call returns after the change is on disk, as in `channel.ledger`. A journal applies no rules of
its own: it loads the transaction, calls `settlement.tx.state.advance`, and stores the result, in
one database transaction. The same database transaction checks that the writer's lease is still the
newest (decision 10: one settler per key). A settler that was paused and replaced can therefore
neither sign nor record anything.
"""

import enum
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from channel.types import Address, ChannelKey, TxHash
from settlement.tx.state import Event, Intent, JournalTx

__all__ = [
    "LEASE_S_MAX",
    "PRUNED_AT_ONCE",
    "SENT_MAX",
    "Journal",
    "Look",
    "Order",
    "OrderName",
    "Quarantined",
    "Refusals",
    "SettlerJournal",
]


PRUNED_AT_ONCE: Final = 500
SENT_MAX: Final = 2000
LEASE_S_MAX: Final = 600.0
"""Longest lease, in seconds. A row with a longer one was written before a clock went back."""


class Journal(Protocol):
    """The transactions of one key on one chain."""

    @property
    def is_durable(self) -> bool:
        """Whether it survives its process. If not, the chain's `pending` count is read as well."""

    async def add(self, intent: Intent, *, at: int) -> JournalTx:
        """Record an intent to send a transaction. `at` is in Unix seconds."""

    async def next_nonce(self) -> int:
        """Return the nonce after the highest one assigned; 0 if none was."""

    async def record(self, tx_id: int, events: Sequence[Event]) -> JournalTx:
        """Record events of a transaction, and return its new state.

        Raises:
            NonceTakenError: `Signed` has a nonce that was assigned before, or one below an assigned
                nonce without `fills_gap`; nothing was stored.
            LeaseLostError: Another settler has the key; nothing was stored.
            LedgerUnavailableError: The database could not make it durable.
            InvariantError: A bug.
        """

    async def open_transactions(self) -> list[JournalTx]:
        """Return the open transactions, by nonce; those without a nonce come first."""

    async def transactions_from(self, nonce: int) -> list[JournalTx]:
        """Return the transactions with this nonce or a higher one, by nonce."""

    async def find(self, tx_hash: TxHash) -> JournalTx | None:
        """Return the transaction that has a version with this hash."""


class Quarantined(msgspec.Struct, frozen=True, gc=False):
    """A channel whose settle or close the chain refuses for now (F-79)."""

    key: ChannelKey
    reason: str
    """A `RevertReason`'s name."""
    tries: int
    since: int
    """Unix seconds of the first refusal."""
    retry_at: int
    """Unix seconds before which no new attempt is made."""


class Look(msgspec.Struct, frozen=True, gc=False):
    """The newest block a settler saw, and when it last looked at the chain."""

    block_number: int
    block_hash: bytes
    block_time: int
    looked_at: int
    """Unix seconds of the settler's machine."""


class OrderName(enum.Enum):
    """What an operator may order while the programs run."""

    SETTLE = "settle"
    """The settler settles everything, however little, and ends the order."""
    PAUSE = "pause"
    """The gateways sell nothing while the order stands."""


class Order(msgspec.Struct, frozen=True, gc=False):
    """An operator's order."""

    placed_at: int
    """Unix seconds."""
    ended_at: int | None
    """When it was carried out or withdrawn; None while it stands."""
    outcome: str
    """What carrying it out did, one sentence."""

    @property
    def stands(self) -> bool:
        """Whether it is neither carried out nor withdrawn."""
        return self.ended_at is None


class Refusals(Protocol):
    """What the chain refused: read by the credit rules."""

    async def quarantined(self) -> list[Quarantined]:
        """Return every channel in quarantine."""

    async def distrusted(self) -> frozenset[Address]:
        """Return signers and payers on this chain whose contract revoked a voucher.

        Only the newest, if there are very many.
        """


class SettlerJournal(Journal, Refusals, Protocol):
    """A journal in the ledger's database, with a lease and the quarantined channels."""

    @property
    def account(self) -> Address:
        """The account whose transactions the journal holds."""

    async def take_lease(self, holder: str, *, ttl_s: float) -> int | None:
        """Take the key's lease if it is free or has expired; return its fence, or None.

        A lease that ends later than `ttl_s` from now was written before a clock went back, and is
        ignored. The fence keeps two settlers apart that run by mistake.

        From then on this object writes under that fence, which is above every earlier one.
        """

    async def renew_lease(self, *, ttl_s: float) -> None:
        """Renew the lease.

        Raises:
            LeaseLostError: The lease expired and another settler took it.
        """

    async def release_lease(self) -> None:
        """Release the lease, so that a standby need not wait until it expires."""

    async def lease_holder(self) -> str | None:
        """Return the name of the lease's holder, or None if it is free."""

    async def find_quarantined(self, key: ChannelKey) -> Quarantined | None:
        """Return why a channel is in quarantine, or None when it is not."""

    async def quarantine(self, entry: Quarantined) -> None:
        """Put a channel in quarantine, or extend its stay."""

    async def release(self, key: ChannelKey) -> None:
        """Remove a channel from quarantine. Repeating the call changes nothing."""

    async def distrust(self, addresses: Sequence[Address], *, at: int) -> None:
        """Remember, permanently, signers and payers whose contract revoked a voucher."""

    async def prune(self, before: int) -> int:
        """Delete some transactions that ended and were added before then (Unix seconds).

        Returns how many. The number is bounded, so that no other caller waits long for the
        database; 0 means that none is left. The row with the newest nonce is never deleted, because
        the next nonce follows from it.
        """

    async def sent_since(self, at: int) -> list[JournalTx]:
        """Return the signed transactions added since then (Unix seconds), newest first.

        Bounded by `SENT_MAX`.
        """

    async def note_look(self, look: Look) -> None:
        """Record the newest block seen, for `status` and the gateway."""

    async def order(self, name: OrderName) -> Order | None:
        """Return the newest order of a kind, or None if there never was one."""

    async def place_order(self, name: OrderName, *, at: int) -> None:
        """Place an order at a time in Unix seconds. One that stands already stays as it is.

        Any process may place and end orders: it needs no lease.
        """

    async def end_order(self, name: OrderName, *, at: int, outcome: str) -> None:
        """Record that an order was carried out or withdrawn; without one, nothing changes."""

    async def last_look(self) -> Look | None:
        """Return the last look of a settler of this key, or None if no settler ever looked."""

    async def close(self) -> None:
        """Close the database. A lease that was not released expires by itself."""
