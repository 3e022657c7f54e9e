"""What may be asked of a ledger, and what durable means.

`apply` returns after the change is on disk and would survive the loss of power: SQLite with
synchronous=FULL in WAL mode, PostgreSQL with synchronous_commit on. Whatever arrives while one
commit runs goes into the next; nothing is acknowledged early, and no timer delays a commit
(decision 3). A ledger decides nothing: it loads the state, calls `channel.state.transition`,
and stores what comes back, all inside one transaction per batch.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from channel.errors import ProblemError
from channel.ledger.marker import BooksId, Marker
from channel.state.channel_state import ChannelState
from channel.state.commands import Command
from channel.state.requests import RequestClaim, StoredResponse
from channel.types import ChannelKey, TxHash

__all__ = [
    "Applied",
    "ClaimRequest",
    "ConsumeProof",
    "ForgetRequest",
    "Ledger",
    "RequestUpdate",
    "Soundness",
    "StoreResponse",
    "Watch",
]


class ClaimRequest(msgspec.Struct, frozen=True, gc=False):
    """Before the commands: answer a repeat from the record. With them: record the claim."""

    claim: RequestClaim


class StoreResponse(msgspec.Struct, frozen=True, gc=False):
    """With the commands that spend: keep the answer for repeats of the key."""

    claim: RequestClaim
    response: StoredResponse


class ForgetRequest(msgspec.Struct, frozen=True, gc=False):
    """With the commands that release: the request was not served, its key may be used again."""

    claim: RequestClaim


RequestUpdate = ClaimRequest | StoreResponse | ForgetRequest


class ConsumeProof(msgspec.Struct, frozen=True, gc=False):
    """A transaction's log taken as evidence, once for ever, by one channel (F-29, F-30)."""

    tx_hash: TxHash
    log_index: int
    is_single: bool = False
    """Taken once even by the same channel, unless that is being closed already: a signature that
    asked for a close, whose hash stands in for a transaction's (O-21)."""


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What is on disk after an `apply`."""

    state: ChannelState
    refusal: ProblemError | None = None
    """Why a command was refused. The commands before it are kept, those after it not run."""
    stored: StoredResponse | None = None
    """The answer given to this idempotency key before; no command was run."""

    def require(self) -> ChannelState:
        """Return the state, or raise the refusal."""
        if self.refusal is not None:
            raise self.refusal
        return self.state


class Soundness(msgspec.Struct, frozen=True, gc=False):
    """Whether the database still keeps what it promised at start."""

    fault: str | None = None
    """Why nothing is accepted any more: a commit may be lost, or was."""
    warning: str | None = None
    """What would lose commits when a machine is lost."""


class Watch(Protocol):
    """Changes of one channel, seen by one waiter."""

    async def changed(self, timeout_s: float) -> bool:
        """Wait until the channel may have changed since the last call; False after the timeout.

        A change that happened between entering the watch, or the last call, and this call is
        not missed. It may wake without a change: load the state and look.
        """


class Ledger(Protocol):
    """The books.

    Every method may raise `LedgerUnavailableError`: then nothing was changed, or, when the
    connection broke during a commit, the caller must load the state and look.
    """

    async def load(self, key: ChannelKey) -> ChannelState | None:
        """Return the channel as it is on disk, or None if it is not known.

        Never older than what this ledger acknowledged. A gateway's ledger, asked for every
        voucher, may answer from memory: then a commit of another process is seen within
        `CACHE_TRUSTED_S`, or at once when it wakes a watch. What is applied is always decided on
        the newest state, and `Applied.state` is that state.
        """

    async def apply(
        self,
        key: ChannelKey,
        commands: Sequence[Command],
        *,
        request: RequestUpdate | None = None,
        proof: ConsumeProof | None = None,
    ) -> Applied:
        """Run commands in order on one channel and return once the result is on disk.

        All commands of one call are in one transaction, together with `request` and `proof`.
        The first command that is refused ends the call: what came before it is kept, the
        refusal is in `Applied.refusal`, and neither a claim nor a response is recorded. The
        proof is consumed if any command changed the channel, or none was refused (VCH-07).
        Cancelling the caller does not undo it: a change that was queued is still made (F-42).

        Raises:
            ChannelNotFoundError: The channel is not known and the first command does not open it.
            PeerError: The channel is not known and opening it was refused.
            VerificationFailedError: The proof was consumed by another channel.
            SignatureUsedError: A proof that is taken once was consumed by this one.
            BadRequestError: The idempotency key is not printable ASCII of bounded length.
            InvariantError: A bug; the ledger refuses all further work.
        """

    def watch(self, key: ChannelKey | None) -> AbstractAsyncContextManager[Watch]:
        """Watch one channel for changes made by anybody: this process or another.

        With None any channel's change wakes the waiter: a close that is decided soon after it
        is, all else when it is seen.
        """

    async def list_channels(
        self, *, after: ChannelKey | None = None, limit: int = 1000, open_only: bool = False
    ) -> list[ChannelState]:
        """Return channels in key order, a page at a time."""

    async def list_pending_closes(self, *, limit: int = 1000) -> list[ChannelState]:
        """Return channels whose close was decided and is not mined: what the settler owes."""

    async def list_foreign(self, *, limit: int = 1000) -> list[ChannelState]:
        """Return channels that were settled or closed on chain, and not by these books (O-89)."""

    async def expire_reservations(self, now: int) -> int:
        """End every reservation whose lease ran out at `now`, in Unix seconds.

        Where a server keeps the books it must have run out by the server's clock, too.
        Returns how many channels had one.
        """

    async def list_leased(self) -> list[ChannelState]:
        """Return channels on which something is held, up to a page of them."""

    async def end_unrenewed(self, key: ChannelKey, unrenewed: Sequence[tuple[bytes, int]]) -> None:
        """End reservations, by id and lease, that nobody has renewed for longer than that."""

    async def end_all_reservations(self) -> int:
        """End every reservation there is: for the one process that owns the books, at start."""

    async def prune(self, now: int) -> int:
        """Drop idempotency rows past their lifetime, and a channel's answers beyond a bound.

        The newest `STORED_RESPONSES_PER_CHANNEL_MAX` answers of a channel stay, unless all of them
        together take more than `STORED_BYTES_MAX`: then the oldest of all go. The key of one
        that went is kept: a repeat is told that its outcome is unknown, and is not charged.
        Returns how many rows and answers went.
        """

    async def faults(self) -> list[str]:
        """Return what is wrong with the stored books, a sentence each; empty when all is well.

        Reads every row: for an operator's check, not for a running gateway.
        """

    async def identity(self, marker: str) -> BooksId:
        """Return which database it is; `marker` names the one that it may have."""

    async def guard(self, marker: Marker) -> Soundness:
        """Hold the books against `marker`, and note in it what is committed from now on.

        That there is one is written into the books. After each lost connection they are held
        against it again. While there is a fault, `apply` raises `LedgerUnavailableError`.
        """

    async def look(self) -> Soundness:
        """Look whether a commit still means "on disk", and whether any was lost (see `guard`)."""

    async def close(self) -> None:
        """Commit what is queued, then release the database."""
