"""What may be asked of a journal, and what durable means.

Each call returns after the change is on disk, as `channel.ledger` means it. A journal decides
nothing: it loads the transaction, calls `settlement.tx.state.advance`, and stores what comes
back, in one transaction of the database. In that same transaction it checks that the writer's
lease is still the newest one (decision 10): a settler that was paused and overtaken can neither
sign nor record anything more, whatever it believes.
"""

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
    "Quarantined",
    "Refusals",
    "SettlerJournal",
]


PRUNED_AT_ONCE: Final = 500
SENT_MAX: Final = 2000
LEASE_S_MAX: Final = 600.0
"""Beyond which no lease runs: one that says so was written before a clock went back."""


class Journal(Protocol):
    """The transactions of one key on one chain."""

    @property
    def is_durable(self) -> bool:
        """Whether it survives its process; if not, the chain's `pending` count is asked too."""

    async def add(self, intent: Intent, *, at: int) -> JournalTx:
        """Record that a transaction is wanted. `at` is Unix seconds."""

    async def next_nonce(self) -> int:
        """Return the nonce after the highest that was given; 0 when none was."""

    async def record(self, tx_id: int, events: Sequence[Event]) -> JournalTx:
        """Record what became of a transaction, and return it.

        Raises:
            NonceTakenError: `Signed` names a nonce that was given before, or that is below one that
                was and does not say that it fills a gap; nothing was stored.
            LeaseLostError: Another settler has the key; nothing was stored.
            LedgerUnavailableError: The database could not make it durable.
            InvariantError: A bug.
        """

    async def open_transactions(self) -> list[JournalTx]:
        """Return what is still looked after, by nonce; what has none comes first."""

    async def transactions_from(self, nonce: int) -> list[JournalTx]:
        """Return what has this nonce or a higher one, by nonce."""

    async def find(self, tx_hash: TxHash) -> JournalTx | None:
        """Return the transaction of which one version has this hash."""


class Quarantined(msgspec.Struct, frozen=True, gc=False):
    """A channel the chain refuses to settle or close for now (F-79)."""

    key: ChannelKey
    reason: str
    """A `RevertReason`'s name."""
    tries: int
    since: int
    """Unix seconds of the first refusal."""
    retry_at: int
    """Unix seconds before which it is left alone."""


class Look(msgspec.Struct, frozen=True, gc=False):
    """The newest block a settler saw, and when it last looked at the chain."""

    block_number: int
    block_hash: bytes
    block_time: int
    looked_at: int
    """Unix seconds of the settler's machine."""


class Refusals(Protocol):
    """What the chain refused, as whoever gives credit wants to know it."""

    async def quarantined(self) -> list[Quarantined]:
        """Return every channel in quarantine."""

    async def distrusted(self) -> frozenset[Address]:
        """Return signers and payers on this chain whose contract took back a voucher.

        The newest, if there are very many.
        """


class SettlerJournal(Journal, Refusals, Protocol):
    """A journal in the ledger's database: with a lease, and with what is in quarantine."""

    @property
    def account(self) -> Address:
        """The key whose transactions these are."""

    async def take_lease(self, holder: str, *, ttl_s: float) -> int | None:
        """Take the key's lease if it is free or ran out; return its fence, or None.

        One that ends later than `ttl_s` from now was written before a clock went back, and holds
        for nothing. Two settlers by mistake are kept apart by the fence.

        From then on this object writes under that fence, which is above every earlier one.
        """

    async def renew_lease(self, *, ttl_s: float) -> None:
        """Keep the lease.

        Raises:
            LeaseLostError: It ran out and somebody else took it.
        """

    async def release_lease(self) -> None:
        """Give the lease back, so that nobody has to wait for it to run out."""

    async def lease_holder(self) -> str | None:
        """Return who has the lease, or None when nobody has."""

    async def find_quarantined(self, key: ChannelKey) -> Quarantined | None:
        """Return why a channel is in quarantine, or None when it is not."""

    async def quarantine(self, entry: Quarantined) -> None:
        """Put a channel in quarantine, or keep it there longer."""

    async def release(self, key: ChannelKey) -> None:
        """Let a channel out of quarantine. Repeating it changes nothing."""

    async def distrust(self, addresses: Sequence[Address], *, at: int) -> None:
        """Remember signers and payers whose contract took back a voucher, for good."""

    async def prune(self, before: int) -> int:
        """Forget some of what ended and was wanted before then (Unix seconds); return how many.

        Bounded, so that nobody waits long for the database: 0 means that nothing is left. The
        newest nonce is never forgotten: the next one follows from it.
        """

    async def sent_since(self, at: int) -> list[JournalTx]:
        """Return what was wanted since then (Unix seconds) and signed, the newest first.

        Bounded by `SENT_MAX`.
        """

    async def note_look(self, look: Look) -> None:
        """Record which block was seen last, for whoever asks how the settler stands."""

    async def last_look(self) -> Look | None:
        """Return which block a settler of this key saw last, or None if none ever looked."""

    async def close(self) -> None:
        """Release the database. A lease that was not given back runs out by itself."""
